"""Two suppliers: nothing, a cheap order that comes next week, or a dear one that comes now.

Demand is exponential; what is not on stock is delivered later, at a penalty.
"""

import torch

from hpo_torchrl import DifferentiableEnv

FIXED, SURCHARGE = 30.0, 2.0  # of an order; of each unit of a dear one
HOLDING, SHORTAGE, DEMAND = 1.0, 15.0, 10.0  # per unit and week; mean per week


class Suppliers(DifferentiableEnv):
    """Reward: minus the costs of a week, about -40."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=3,
            continuous_dim=1,
            continuous_bounds=(0.0, None),
            action_scale=20.0,
            state_shapes={"stock": (1,), "coming": (1,)},
            observation_dim=2,
            noise_shape=(1,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        choice, amount = action["discrete"].unsqueeze(-1), action["continuous"]
        none = torch.zeros_like(amount)
        slow = torch.where(choice == 1, amount, none)
        fast = torch.where(choice == 2, amount, none)
        stock = state["stock"] + state["coming"] + fast - DEMAND * noise
        cost = HOLDING * stock.clamp_min(0.0) + SHORTAGE * (-stock).clamp_min(0.0)
        cost = cost + SURCHARGE * fast + FIXED * (choice > 0).to(cost.dtype)
        return {"stock": stock, "coming": slow}, -cost.squeeze(-1)

    def observe(self, state):
        return torch.cat([state["stock"], state["coming"]], -1) / DEMAND

    def initial_state(self):
        stock, coming = torch.rand(2, *self.batch_size, 1, generator=self.rng)
        return {"stock": 60 * stock - 20, "coming": 40 * coming}

    def draw_noise(self, num_steps, state):
        noise = torch.empty(*self.batch_size, num_steps, 1, device=self.device)
        return noise.exponential_(generator=self.rng)
