"""A portfolio with a fixed fee for every trade: hold, or trade to another position.

The signal is worth a few tenths a step beside returns that scatter by about 20.
"""

import torch

from hpo_torchrl import DifferentiableEnv

FEE, RISK, SCATTER, KEPT = 2.0, 1.0, 12.0, 0.95


class Portfolio(DifferentiableEnv):
    """Reward: gain less fees and a charge for risk, about 2 a step."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=2,
            continuous_dim=1,
            continuous_bounds=(-4.0, 4.0),
            state_shapes={"held": (1,), "signal": (1,)},
            observation_dim=2,
            noise_shape=(2,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        trades = action["discrete"].unsqueeze(-1) == 1
        held = torch.where(trades, action["continuous"], state["held"])
        gain = held * (state["signal"] + SCATTER * noise[..., :1])
        reward = gain - RISK * held.square() - FEE * trades.to(gain.dtype)
        signal = KEPT * state["signal"] + noise[..., 1:]
        return {"held": held, "signal": signal}, reward.squeeze(-1)

    def observe(self, state):
        return torch.cat([state["held"], state["signal"]], -1)

    def initial_state(self):
        held, signal = torch.randn(2, *self.batch_size, 1, generator=self.rng)
        return {"held": held, "signal": signal / (1 - KEPT**2) ** 0.5}

    def draw_noise(self, num_steps, state):
        return torch.randn(*self.batch_size, num_steps, 2, generator=self.rng)
