"""A machine that wears with its load: run it, repair it or replace it, and at what load."""

import torch

from hpo_torchrl import DifferentiableEnv

COST, HEALED = torch.tensor([0.0, 550.0, 2300.0]), torch.tensor([0.0, 0.45, 1.0])  # by choice
MEAN, KEPT, SHOCK = 1000.0, 0.85, 150.0  # euros for a day's output at full load, and its wandering


class Maintenance(DifferentiableEnv):
    """Reward: euros a day, some hundreds; the market is observed in euros."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=3,
            continuous_dim=1,
            continuous_bounds=(0.0, 1.0),
            action_scale=0.3,
            state_shapes={"wear": (1,), "market": (1,)},
            observation_dim=2,
            noise_shape=(2,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        wear, market = state["wear"], state["market"]
        choice, load = action["discrete"].unsqueeze(-1), action["continuous"]
        runs = choice == 0
        worn = wear + (0.02 + 0.13 * load.square()) * torch.exp(0.4 * noise[..., :1])
        earned = market * load * (1 - 0.5 * wear.square()) - 120 * load - 60 * wear
        reward = torch.where(runs, earned, -COST.to(noise)[choice])
        after = torch.where(runs, worn, wear * (1 - HEALED.to(noise)[choice]))
        later = MEAN + KEPT * (market - MEAN) + SHOCK * noise[..., 1:]
        return {"wear": after.clamp_max(3.0), "market": later}, reward.squeeze(-1)

    def observe(self, state):
        return torch.cat([state["wear"], state["market"]], -1)

    def initial_state(self):
        shape = (*self.batch_size, 1)
        market = MEAN + SHOCK / (1 - KEPT**2) ** 0.5 * torch.randn(shape, generator=self.rng)
        return {"wear": 1.5 * torch.rand(shape, generator=self.rng), "market": market}

    def draw_noise(self, num_steps, state):
        return torch.randn(*self.batch_size, num_steps, 2, generator=self.rng)
