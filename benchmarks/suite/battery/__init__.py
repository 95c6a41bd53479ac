"""A battery on a wandering price: idle, charge or discharge, and at what power."""

import torch

from hpo_torchrl import DifferentiableEnv

CAPACITY, EFFICIENCY, WEAR = (
    4.0,
    0.95,
    3.0,
)  # MWh, share kept each way, of an hour's run
MEAN, KEPT, SHOCK = 50.0, 0.9, 8.0  # of the price per MWh: mean, share left after an hour, shock


class Battery(DifferentiableEnv):
    """Reward: what is earned in an hour, about 1.5."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=3,
            continuous_dim=1,
            continuous_bounds=(0.0, 1.0),
            action_scale=0.5,
            state_shapes={"charge": (1,), "price": (1,)},
            observation_dim=2,
            noise_shape=(1,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        charge, price = state["charge"], state["price"]
        mode, power = action["discrete"].unsqueeze(-1), action["continuous"]
        none = torch.zeros_like(power)
        bought = torch.where(
            mode == 1, torch.minimum(power, (CAPACITY - charge) / EFFICIENCY), none
        )
        sold = torch.where(mode == 2, torch.minimum(power, EFFICIENCY * charge), none)
        after = (charge + EFFICIENCY * bought - sold / EFFICIENCY).clamp(0.0, CAPACITY)
        reward = price * (sold - bought) - WEAR * (mode > 0).to(price.dtype)
        later = MEAN + KEPT * (price - MEAN) + SHOCK * noise
        return {"charge": after, "price": later}, reward.squeeze(-1)

    def observe(self, state):
        return torch.cat([state["charge"] / 2 - 1, (state["price"] - MEAN) / 20], -1)

    def initial_state(self):
        shape, spread = (*self.batch_size, 1), SHOCK / (1 - KEPT**2) ** 0.5
        own = {"generator": self.rng, "dtype": self.float_dtype}
        price = MEAN + spread * torch.randn(shape, **own)
        return {"charge": CAPACITY * torch.rand(shape, **own), "price": price}

    def draw_noise(self, num_steps, state):
        shape = (*self.batch_size, num_steps, 1)
        return torch.randn(shape, generator=self.rng, dtype=self.float_dtype)
