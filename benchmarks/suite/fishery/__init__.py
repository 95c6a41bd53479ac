"""A fishery: stay in port, fish the coast or sail to the deep sea, and with how much effort."""

import torch

from hpo_torchrl import DifferentiableEnv

GROWTH, ROOM, SCATTER = 0.35, 800.0, 0.15  # of the stock: rate, tonnes that find food, noise
SAIL = torch.tensor([0.0, 45.0, 160.0])  # thousand euros for an expedition
CATCH = torch.tensor([0.0, 0.25, 0.70])  # how fast effort empties the water that it reaches
PRICE, EFFORT = 2.0, 30.0  # thousand euros per tonne; for full effort


class Fishery(DifferentiableEnv):
    """Reward: thousand euros in a season, about 80; the stock is observed in tonnes."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=3,
            continuous_dim=1,
            continuous_bounds=(0.0, 2.0),
            state_shapes={"stock": (1,)},
            observation_dim=1,
            noise_shape=(1,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        stock, effort, place = state["stock"], action["continuous"], action["discrete"]
        share = 1 - torch.exp(-CATCH.to(noise)[place].unsqueeze(-1) * effort)
        caught = share * stock
        out = (place > 0).unsqueeze(-1).to(noise.dtype)
        cost = SAIL.to(noise)[place].unsqueeze(-1) + out * EFFORT * effort.square()
        left = stock - caught
        after = left * torch.exp(GROWTH * (1 - left / ROOM) + SCATTER * noise)
        return {"stock": after + 5.0}, (PRICE * caught - cost).squeeze(-1)

    def observe(self, state):
        return state["stock"]

    def initial_state(self):
        return {"stock": 1000 * torch.rand(*self.batch_size, 1, generator=self.rng)}

    def draw_noise(self, num_steps, state):
        return torch.randn(*self.batch_size, num_steps, 1, generator=self.rng)
