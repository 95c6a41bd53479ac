"""An environment of one's own, which the package has never seen."""

import torch

from hpo_torchrl import DifferentiableEnv


class Tank(DifferentiableEnv):
    """A tank of water: keep it near a level; filling costs a fee to begin with."""

    reports = "reward"

    def __init__(self, target=0.5, fee=0.05, inflow=0.2, masked=False, **others):
        self.target, self.fee, self.inflow, self.masked = target, fee, inflow, masked
        super().__init__(
            num_discrete=2,
            continuous_dim=1,
            continuous_bounds=(0.0, 1.0),
            state_shapes={"level": (1,)},
            observation_dim=1,
            noise_shape=(1,),
            **others,
        )

    @property
    def has_action_mask(self) -> bool:
        return self.masked

    def allowed(self, state):
        if not self.masked:
            return None
        full = state["level"] > 1.0
        return torch.cat([torch.ones_like(full), ~full], -1)

    def dynamics(self, state, action, noise):
        filling = (action["discrete"] == 1).unsqueeze(-1).to(noise)
        level = state["level"] + filling * action["continuous"] - self.inflow + 0.1 * noise
        cost = (level - self.target).square() + self.fee * filling
        return {"level": level}, -cost.squeeze(-1)

    def observe(self, state):
        return state["level"] - 0.5

    def initial_state(self):
        shape = (*self.batch_size, 1)
        return {"level": torch.rand(shape, generator=self.rng, dtype=self.float_dtype)}

    def draw_noise(self, num_steps, state):
        shape = (*self.batch_size, num_steps, 1)
        return torch.randn(shape, generator=self.rng, dtype=self.float_dtype)
