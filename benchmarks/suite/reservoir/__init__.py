"""A reservoir: how many turbines run, and how much water each gets, at a price that wanders."""

import torch
from torch.nn import functional as F

from hpo_torchrl import DifferentiableEnv

FULL, INFLOW, SCATTER = 10.0, 1.0, 0.5  # million cubic metres; those that come in a day
LEAST, MOST, START = 0.4, 1.2, 4.0  # flow of a turbine, in them; thousand euros to start one
MEAN, KEPT, SHOCK = 40.0, 0.85, 9.0  # of the price of power


class Reservoir(DifferentiableEnv):
    """Reward: thousand euros a day, about 30."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=3,
            continuous_dim=1,
            continuous_bounds=(LEAST, MOST),
            state_shapes={"level": (1,), "price": (1,), "running": (3,)},
            observation_dim=5,
            noise_shape=(2,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        level, price = state["level"], state["price"]
        turbines = action["discrete"].unsqueeze(-1).to(noise.dtype)
        flow = action["continuous"]
        wanted = turbines * flow
        given = torch.minimum(wanted, level)
        efficiency = 1.0 - 0.5 * (flow - 0.8).square()
        power = given * efficiency * (0.6 + 0.06 * level)  # the head helps
        ran = state["running"] @ torch.arange(3.0).to(noise).unsqueeze(-1)
        reward = price * power - START * (turbines - ran).clamp_min(0.0)
        come = (INFLOW + SCATTER * noise[..., :1]).clamp_min(0.0)
        after = {
            "level": (level - given + come).clamp_max(FULL),
            "price": MEAN + KEPT * (price - MEAN) + SHOCK * noise[..., 1:],
            "running": F.one_hot(action["discrete"], 3).to(noise),
        }
        return after, reward.squeeze(-1)

    def observe(self, state):
        return torch.cat([state["level"], state["price"], state["running"]], -1)

    def initial_state(self):
        shape = (*self.batch_size, 1)
        price = MEAN + SHOCK / (1 - KEPT**2) ** 0.5 * torch.randn(shape, generator=self.rng)
        running = torch.randint(3, self.batch_size, generator=self.rng)
        level = FULL * torch.rand(shape, generator=self.rng)
        return {"level": level, "price": price, "running": F.one_hot(running, 3).float()}

    def draw_noise(self, num_steps, state):
        return torch.randn(*self.batch_size, num_steps, 2, generator=self.rng)
