"""An unstable linear system with noise: leave it alone, or push it with one of two thrusters."""

import torch

from hpo_torchrl import DifferentiableEnv

FREE = torch.tensor([[1.02, 0.20], [-0.10, 1.02]])  # what the system does by itself
THRUST = torch.tensor([[0.0, 0.0], [0.1, 1.0], [1.2, 0.3]])  # what each choice adds per input
CALL = torch.tensor([0.0, 0.6, 1.2])  # cost of using it at all
EFFORT, SHOCK = 0.3, 0.25


class Switched(DifferentiableEnv):
    """Reward: minus the squares of state and input, and the calls, about -1.5 a step."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=3,
            continuous_dim=1,
            state_shapes={"x": (2,)},
            observation_dim=2,
            noise_shape=(2,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        x, mode, force = state["x"], action["discrete"], action["continuous"]
        used = (mode > 0).to(force.dtype)
        cost = x.square().sum(-1) + used * EFFORT * force.square().sum(-1) + CALL.to(noise)[mode]
        after = x @ FREE.to(noise).T + force * THRUST.to(noise)[mode] + SHOCK * noise
        return {"x": after.clamp(-20.0, 20.0)}, -cost

    def observe(self, state):
        return state["x"]

    def initial_state(self):
        return {"x": 1.5 * torch.randn(*self.batch_size, 2, generator=self.rng)}

    def draw_noise(self, num_steps, state):
        return torch.randn(*self.batch_size, num_steps, 2, generator=self.rng)
