"""A treatment of 24 weeks: give a session or not, and what dose; the drug stays for some weeks."""

import torch

from hpo_torchrl import DifferentiableEnv

GROWTH, KILL, HALF = 0.12, 0.5, 40.0  # of the illness in a week; by much of the drug; mg for half
STAYS, HARM, BURDEN = 0.6, 4e-4, 0.6  # share of the drug left; per mg^2; of a session
WEEKS = 24


class Dosing(DifferentiableEnv):
    """Reward: minus burden of illness, side effects and sessions in a week, about -2."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=2,
            continuous_dim=1,
            continuous_bounds=(0.0, 120.0),
            action_scale=40.0,
            state_shapes={"illness": (1,), "drug": (1,)},
            observation_dim=3,
            noise_shape=(1,),
            horizon=WEEKS,
            **arguments,
        )

    def dynamics(self, state, action, noise):
        given = (action["discrete"] == 1).unsqueeze(-1).to(noise.dtype)
        drug = STAYS * state["drug"] + given * action["continuous"]
        effect = KILL * drug / (HALF + drug)
        illness = state["illness"] * torch.exp(GROWTH - effect + 0.1 * noise)
        cost = illness + HARM * drug.square() + BURDEN * given
        return {"illness": illness.clamp_max(50.0), "drug": drug}, -cost.squeeze(-1)

    def observe(self, state):
        return torch.cat([state["illness"].log1p(), state["drug"] / 50, state["step"] / WEEKS], -1)

    def initial_state(self):
        illness = 0.5 + 3 * torch.rand(*self.batch_size, 1, generator=self.rng)
        return {"illness": illness, "drug": torch.zeros_like(illness)}

    def draw_noise(self, num_steps, state):
        return torch.randn(*self.batch_size, num_steps, 1, generator=self.rng)
