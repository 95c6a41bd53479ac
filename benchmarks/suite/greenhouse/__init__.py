"""A greenhouse: closed, heated, vented or shaded, and how much, under a sun that comes and goes."""

import torch
from torch.nn import functional as F

from hpo_torchrl import DifferentiableEnv

WARM, MOIST, OUTSIDE, DRY = 23.0, 70.0, 16.0, 45.0  # C and %: wanted inside, and found outside
SUN, KEPT, SHOCK = 4.0, 0.9, 1.3  # of the sunshine: mean, share left after an hour, shock


class Greenhouse(DifferentiableEnv):
    """Reward: growth less energy and bad air, euros per square metre and hour, about 0.01."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=4,
            continuous_dim=1,
            continuous_bounds=(0.0, 1.0),
            state_shapes={"warmth": (1,), "moisture": (1,), "sun": (1,)},
            observation_dim=3,
            noise_shape=(1,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        warmth, moisture, amount = state["warmth"], state["moisture"], action["continuous"]
        does = F.one_hot(action["discrete"], 4).to(noise) * amount
        heat, vent, shade = does[..., 1:2], does[..., 2:3], does[..., 3:4]
        light = F.softplus(state["sun"]) * (1 - 0.7 * shade)
        exchange = 0.12 + 0.25 * vent
        warm = warmth + exchange * (OUTSIDE - warmth) + 0.6 * light + 5.0 * heat
        moist = moisture + exchange * (DRY - moisture) + 3.0 + 0.5 * light
        missed = 0.06 * (warmth - WARM).square() + 0.004 * (moisture - MOIST).square()
        used = 0.15 * (action["discrete"] > 0).unsqueeze(-1).to(noise.dtype) + 0.8 * heat
        growth = 4.0 * torch.tanh(light / 4.0)  # more light is of no use
        reward = 0.01 * (growth - missed - used)
        sun = SUN + KEPT * (state["sun"] - SUN) + SHOCK * noise
        return {"warmth": warm, "moisture": moist, "sun": sun}, reward.squeeze(-1)

    def observe(self, state):
        return torch.cat([state["warmth"] / 10, state["moisture"] / 100, state["sun"]], -1)

    def initial_state(self):
        warmth, moisture, sun = torch.randn(3, *self.batch_size, 1, generator=self.rng)
        return {"warmth": WARM + 3 * warmth, "moisture": MOIST + 8 * moisture, "sun": SUN + 3 * sun}

    def draw_noise(self, num_steps, state):
        return torch.randn(*self.batch_size, num_steps, 1, generator=self.rng)
