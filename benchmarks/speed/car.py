"""A car in one of three gears: a stranger's environment, which the library has never seen."""

from __future__ import annotations

import torch

from hpo_torchrl import DifferentiableEnv

PULL, TOP = (4.0, 3.0, 2.0), (10.0, 20.0, 35.0)  # of a gear: acceleration m/s², fading speed m/s
STEP, DRAG, FUEL = 0.5, 0.002, 0.3  # s, 1/m, cost of full throttle for a step
MEAN, KEPT, SHOCK = 18.0, 0.95, 1.5  # of the speed to follow, m/s: mean, share kept, shock
UNIT, SPREAD = 10.0, 5.0  # m/s, that speeds and their errors are observed in


class Car(DifferentiableEnv):
    """Follow a wandering speed: which gear, and how much throttle, below 0 backwards."""

    reports = "reward"

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=len(PULL),
            continuous_dim=1,
            continuous_bounds=(-1.0, 1.0),
            state_shapes={"speed": (1,), "wanted": (1,)},
            observation_dim=2,
            noise_shape=(1,),
            **arguments,
        )
        place = {"dtype": self.float_dtype, "device": self.device}
        self.pull, self.top = torch.tensor(PULL, **place), torch.tensor(TOP, **place)

    def dynamics(self, state, action, noise):
        speed, wanted, throttle = state["speed"], state["wanted"], action["continuous"]
        gear = action["discrete"].unsqueeze(-1)
        force = self.pull[gear] * throttle * torch.exp(-((speed / self.top[gear]) ** 2))
        after = speed + STEP * (force - DRAG * speed * speed.abs())
        cost = ((after - wanted) / SPREAD) ** 2 + FUEL * throttle**2
        later = MEAN + KEPT * (wanted - MEAN) + SHOCK * noise
        return {"speed": after, "wanted": later}, -cost.squeeze(-1)

    def observe(self, state):
        error = (state["wanted"] - state["speed"]) / SPREAD
        return torch.cat([(state["speed"] - MEAN) / UNIT, error], -1)

    def initial_state(self):
        shape = (*self.batch_size, 1)
        own = {"generator": self.rng, "dtype": self.float_dtype}
        wanted = MEAN + SPREAD * torch.randn(shape, **own)
        return {"speed": 2 * MEAN * torch.rand(shape, **own), "wanted": wanted}

    def draw_noise(self, num_steps, state):
        shape = (*self.batch_size, num_steps, 1)
        return torch.randn(shape, generator=self.rng, dtype=self.float_dtype)
