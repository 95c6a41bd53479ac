"""A ferry's day of 36 half hours: sail or wait for more passengers, and at what speed.

A slow crossing saves fuel, and makes the next departures late; two rushes fill the piers.
"""

import torch

from hpo_torchrl import DifferentiableEnv

SEATS, FARE, SAIL = 120.0, 11.0, 120.0  # passengers, euros each, euros for every crossing
DISTANCE, FUEL = 8.0, 0.1  # km there and back; euros per km and (km/h)^2
WAITING, LATE = 1.5, 0.15  # euros per passenger and half hour; per passenger on board and minute
STEPS = 36


class Ferry(DifferentiableEnv):
    """Reward: euros in half an hour; the return of a day is some thousands."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=2,
            continuous_dim=1,
            continuous_bounds=(10.0, 30.0),
            action_scale=5.0,
            state_shapes={"waiting": (1,), "late": (1,)},
            observation_dim=4,
            noise_shape=(1,),
            horizon=STEPS,
            **arguments,
        )

    def dynamics(self, state, action, noise):
        sails, speed = (action["discrete"] == 1).unsqueeze(-1).to(noise.dtype), action["continuous"]
        waiting, late, hour = state["waiting"], state["late"], state["step"] / 2
        rush = torch.exp(-((hour - 3) / 1.5).square()) + torch.exp(-((hour - 12) / 2).square())
        board = sails * torch.clamp_max(waiting, SEATS)
        crossing = sails * 60 * DISTANCE / speed  # minutes
        cost = sails * (SAIL + FUEL * DISTANCE * speed.square()) + LATE * board * (late + crossing)
        left = waiting - board
        reward = FARE * board - cost - WAITING * left
        come = ((15 + 60 * rush) * (1 + 0.35 * noise)).clamp_min(0.0)
        after = {"waiting": left + come, "late": (late + crossing - 27).clamp_min(0.0)}
        return after, reward.squeeze(-1)

    def observe(self, state):
        hour = 2 * torch.pi * state["step"] / STEPS
        flows = [state["waiting"] / 50, state["late"] / 10]
        return torch.cat([*flows, hour.sin(), hour.cos()], -1)

    def initial_state(self):
        waiting = 40 * torch.rand(*self.batch_size, 1, generator=self.rng)
        return {"waiting": waiting, "late": torch.zeros_like(waiting)}

    def draw_noise(self, num_steps, state):
        return torch.randn(*self.batch_size, num_steps, 1, generator=self.rng)
