"""A queue: which class of server is on duty, and at what rate it works; a change costs money."""

import torch
from torch.nn import functional as F

from hpo_torchrl import DifferentiableEnv

RATES, WAGES = torch.tensor([0.0, 7.0, 14.0]), torch.tensor([0.0, 8.0, 20.0])
WAITING, EFFORT, CHANGE = 0.4, 10.0, 15.0  # per customer and minute; at full rate; per change
MEAN, KEPT, SHOCK, SCATTER = 5.0, 0.95, 1.0, 1.5  # of the arrivals in a minute


class Queue(DifferentiableEnv):
    """Reward: minus costs per minute, about -20."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=3,
            continuous_dim=1,
            continuous_bounds=(0.0, 1.0),
            action_scale=0.5,
            state_shapes={"waiting": (1,), "traffic": (1,), "on_duty": (3,)},
            observation_dim=5,
            noise_shape=(2,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        server, rate = action["discrete"], action["continuous"]
        on_duty = F.one_hot(server, 3).to(noise)
        come = (state["traffic"] + SCATTER * noise[..., :1]).clamp_min(0.0)
        served = RATES.to(noise)[server].unsqueeze(-1) * rate
        waiting = (state["waiting"] + come - served).clamp_min(0.0)
        changed = 1.0 - (on_duty * state["on_duty"]).sum(-1, keepdim=True)
        cost = WAITING * waiting + WAGES.to(noise)[server].unsqueeze(-1) + CHANGE * changed
        cost = cost + EFFORT * rate.square() * (server > 0).unsqueeze(-1).to(rate.dtype)
        traffic = MEAN + KEPT * (state["traffic"] - MEAN) + SHOCK * noise[..., 1:]
        after = {"waiting": waiting, "traffic": traffic, "on_duty": on_duty}
        return after, -cost.squeeze(-1)

    def observe(self, state):
        flows = [state["waiting"] / 10, (state["traffic"] - MEAN) / 2]
        return torch.cat([*flows, state["on_duty"]], -1)

    def initial_state(self):
        shape, server = (*self.batch_size, 1), torch.randint(3, self.batch_size, generator=self.rng)
        return {
            "waiting": 20 * torch.rand(shape, generator=self.rng),
            "traffic": MEAN + 2 * torch.randn(shape, generator=self.rng),
            "on_duty": F.one_hot(server, 3).float(),
        }

    def draw_noise(self, num_steps, state):
        return torch.randn(*self.batch_size, num_steps, 2, generator=self.rng)
