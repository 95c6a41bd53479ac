"""Bread that keeps for three days and sells for less when old: bake today, and how much.

An oven costs something whenever it is heated; demand that is not met is lost.
"""

import torch

from hpo_torchrl import DifferentiableEnv

PRICES = 3.0, 2.6, 1.8  # of fresh bread, a day old, two days old
FLOUR, OVEN, WASTE, DEMAND, SPREAD = 1.0, 30.0, 0.2, 30.0, 10.0


class Bakery(DifferentiableEnv):
    """Reward: profit of a day, about 30; the observation is in loaves."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=2,
            continuous_dim=1,
            continuous_bounds=(0.0, 150.0),
            state_shapes={"day_old": (1,), "two_days_old": (1,)},
            observation_dim=2,
            noise_shape=(1,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        bakes = (action["discrete"].unsqueeze(-1) == 1).to(noise.dtype)
        stocks = bakes * action["continuous"], state["day_old"], state["two_days_old"]
        wanted, left = (DEMAND + SPREAD * noise).clamp_min(0.0), []
        reward = -FLOUR * stocks[0] - OVEN * bakes
        for price, stock in zip(PRICES[::-1], stocks[::-1], strict=True):  # the oldest goes first
            sold = torch.minimum(stock, wanted)
            reward, wanted = reward + price * sold, wanted - sold
            left.append(stock - sold)
        reward = reward - WASTE * left[0]
        return {"day_old": left[2], "two_days_old": left[1]}, reward.squeeze(-1)

    def observe(self, state):
        return torch.cat([state["day_old"], state["two_days_old"]], -1)

    def initial_state(self):
        day, two = 60 * torch.rand(2, *self.batch_size, 1, generator=self.rng)
        return {"day_old": day, "two_days_old": two / 2}

    def draw_noise(self, num_steps, state):
        return torch.randn(*self.batch_size, num_steps, 1, generator=self.rng)
