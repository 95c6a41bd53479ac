"""A house with a heat pump: off, on, or on with an electric heater, and at what power.

The pump cannot run at low power, and works the better the milder it is outside.
"""

import torch

from hpo_torchrl import DifferentiableEnv

WANTED, DISCOMFORT, PRICE, RUNNING = 21.0, 0.06, 0.3, 0.05  # C, per C^2, per kWh, per hour on
LOSS, WARMING = 0.06, 0.5  # share of the difference lost in an hour; C per kWh
LEAST, MOST, HEATER = 0.5, 1.2, 2.0  # kW: of the pump, and of the electric heater
MEAN, KEPT, SHOCK = 3.0, 0.97, 1.3  # of the temperature outside


class Heating(DifferentiableEnv):
    """Reward: minus euros per hour, about -0.3; observations in degrees Celsius."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=3,
            continuous_dim=1,
            continuous_bounds=(0.0, 1.0),
            state_shapes={"inside": (1,), "outside": (1,)},
            observation_dim=2,
            noise_shape=(2,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        inside, outside = state["inside"], state["outside"]
        mode, power = action["discrete"].unsqueeze(-1), action["continuous"]
        none = torch.zeros_like(power)
        pump = torch.where(mode == 1, LEAST + (MOST - LEAST) * power, none)
        pump = torch.where(mode == 2, torch.full_like(power, MOST), pump)
        heater = torch.where(mode == 2, HEATER * power, none)
        gain = (3.0 + 0.07 * outside).clamp(1.2, 5.0)  # kWh of heat per kWh
        after = inside + LOSS * (outside - inside) + WARMING * (gain * pump + heater)
        cost = DISCOMFORT * (inside - WANTED).square() + PRICE * (pump + heater)
        cost = cost + RUNNING * (mode > 0).to(cost.dtype)
        later = MEAN + KEPT * (outside - MEAN) + SHOCK * noise[..., :1]
        return {"inside": after + 0.2 * noise[..., 1:], "outside": later}, -cost.squeeze(-1)

    def observe(self, state):
        return torch.cat([state["inside"], state["outside"]], -1)

    def initial_state(self):
        inside, outside = torch.randn(2, *self.batch_size, 1, generator=self.rng)
        return {"inside": WANTED + 2 * inside, "outside": MEAN + 5 * outside}

    def draw_noise(self, num_steps, state):
        return torch.randn(*self.batch_size, num_steps, 2, generator=self.rng)
