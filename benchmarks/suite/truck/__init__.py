"""A truck on hills: which gear, and how much throttle or brake, to hold a speed on little fuel."""

import torch
from torch.nn import functional as F

from hpo_torchrl import DifferentiableEnv

RATIOS = torch.tensor([9.0, 7.0, 5.5])  # rad of the engine per m of road
WANTED, MASS, SECONDS = 21.0, 30e3, 3.0  # m/s, kg, of a step
TORQUE, BEST, WIDTH, BRAKE = 1500.0, 140.0, 70.0, 40e3  # N m, rad/s, rad/s, N
ROLLING, DRAG, WEIGHT = 1800.0, 4.0, 9.81 * MASS / 100  # N, N per (m/s)^2, N per % of slope
FUEL, TRACK, SHIFT = 18e3, 0.4, 10.0  # J per g; g per (m/s)^2 and second; g
KEPT, SPREAD, STEEP = 0.97, 2.5, 3.5  # of the slope in %, and its steepest


class Truck(DifferentiableEnv):
    """Reward: minus grams of fuel and of missed speed per second, about -15; raw observations."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=3,
            continuous_dim=1,
            continuous_bounds=(-1.0, 1.0),
            state_shapes={"speed": (1,), "slope": (1,), "gear": (3,)},
            observation_dim=5,
            noise_shape=(1,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        speed, slope, pedal = state["speed"], state["slope"], action["continuous"]
        ratio = RATIOS.to(noise)[action["discrete"]].unsqueeze(-1)
        gear = F.one_hot(action["discrete"], 3).to(noise)
        engine = ratio * speed  # rad/s
        torque = pedal.clamp_min(0.0) * TORQUE * torch.exp(-((engine - BEST) / WIDTH).square())
        force = torque * ratio - BRAKE * (-pedal).clamp_min(0.0)
        force = force - ROLLING - DRAG * speed.square() - WEIGHT * STEEP * torch.tanh(slope / STEEP)
        fuel = engine * (torque + 150.0 + engine) / FUEL
        shifted = 1.0 - (gear * state["gear"]).sum(-1, keepdim=True)
        cost = fuel + TRACK * (speed - WANTED).square() + SHIFT / SECONDS * shifted
        speed = (speed + SECONDS * force / MASS).clamp(2.0, 40.0)
        slope = KEPT * slope + SPREAD * (1 - KEPT**2) ** 0.5 * noise
        return {"speed": speed, "slope": slope, "gear": gear}, -cost.squeeze(-1)

    def observe(self, state):
        return torch.cat([state["speed"], state["slope"], state["gear"]], -1)

    def initial_state(self):
        shape = (*self.batch_size, 1)
        gear = torch.randint(3, self.batch_size, generator=self.rng)
        return {
            "speed": WANTED + 3 * torch.randn(shape, generator=self.rng),
            "slope": SPREAD * torch.randn(shape, generator=self.rng),
            "gear": F.one_hot(gear, 3).float(),
        }

    def draw_noise(self, num_steps, state):
        return torch.randn(*self.batch_size, num_steps, 1, generator=self.rng)
