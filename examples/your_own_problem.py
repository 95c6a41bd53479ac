"""From equations to a trained hybrid policy: a room with a heater that cannot run at low power.

A heater is off, or runs between 30 and 100 % of its power; whenever it runs its pump costs
something. Reward and transition jump in the power, so the breakpoints are declared and the problem
becomes hybrid: off or on, and how much. Its optimum is found on a grid, and printed beside what was
learned. The same problem follows as a plain TorchRL environment.

python examples/your_own_problem.py
"""

from __future__ import annotations

import sys

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from hpo_torchrl import DifferentiableEnv, Evaluation, certify, hybridize, train
from hpo_torchrl.envs import Breakpoint, Gap

LEAST, PUMP, ENERGY = 0.3, 0.4, 1.0


def heat(room, power, weather):
    """The equations: next temperature above the wanted one (degrees), and reward."""
    power = torch.where(power >= LEAST, power, torch.zeros_like(power))
    after = 0.9 * room + 3.0 * power - 1.0 + weather
    cost = after.square() + ENERGY * power + PUMP * (power > 0).to(power.dtype)
    return after, -cost.squeeze(-1)


class Room(DifferentiableEnv):
    """The problem for the fast route: the equations as a method, and what surrounds them."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=1,
            continuous_dim=1,
            continuous_bounds=(0.0, 1.0),
            state_shapes={"room": (1,)},
            observation_dim=1,
            noise_shape=(1,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        room, reward = heat(state["room"], action["continuous"], noise)
        return {"room": room}, reward

    def observe(self, state):
        return state["room"] / 3.0

    def initial_state(self):
        return {"room": 6 * torch.rand(*self.batch_size, 1, generator=self.rng) - 3}

    def draw_noise(self, num_steps, state):
        return 0.3 * torch.randn(*self.batch_size, num_steps, 1, generator=self.rng)


class PlainRoom(EnvBase):
    """The same as any TorchRL environment: a step that keeps the graph is all that is needed."""

    def __init__(self, batch_size=128):
        super().__init__(batch_size=[batch_size])
        shape = (batch_size, 1)
        self.observation_spec = Composite(observation=Unbounded(shape), shape=[batch_size])
        self.action_spec = Bounded(0.0, 1.0, shape=shape)
        self.reward_spec = Unbounded(shape)

    def _reset(self, tensordict=None, **kwargs):
        return TensorDict({"observation": 2 * torch.rand(*self.batch_size, 1) - 1}, self.batch_size)

    def _step(self, tensordict):
        weather = 0.3 * torch.randn(*self.batch_size, 1)
        room, reward = heat(3.0 * tensordict["observation"], tensordict["action"], weather)
        entries = {"observation": room / 3.0, "reward": reward.unsqueeze(-1)}
        entries["done"] = torch.zeros(*self.batch_size, 1, dtype=torch.bool)
        return TensorDict(entries, self.batch_size)

    def _set_seed(self, seed):
        torch.manual_seed(seed or 0)


def main(updates: int = 150, folder: str | None = None, batches: int = 20) -> dict[str, float]:
    jumps = {"breakpoints": [Breakpoint(0.0, "alone"), LEAST], "gaps": [Gap(0.0, LEAST, 0.0)]}
    env = hybridize(Room(batch_size=128, seed=0), **jumps)
    print(f"actions   {env.pieces}")
    print(f"certified {certify(env, 100_000).exact}")
    test = Evaluation(hybridize(Room(batch_size=256), **jumps), num_steps=300, skip=50, seed=1)
    settings = {"num_updates": updates, "unroll_length": 20, "discount": 0.95, "tests": test}
    report = {"num_batches": batches, "num_reference": 2 * batches}
    run = train(env, folder=folder and f"{folder}/fast", gradients=report, **settings)
    first, last = (run.metrics[i]["test_cost"] for i in (0, -1))
    print(f"cost      {first:.4f} before, {last:.4f} after {updates} updates")
    optimum = run.summary["optimal_cost"]  # solved on a grid, for the state is one number
    print(f"optimum   {optimum:.4f}" if optimum is not None else "optimum   of another objective")
    action, _ = run.policy.predict([[2.0 / 3.0], [-2.0 / 3.0]])
    shown = ["off", "on"][action["discrete"][1]], float(action["continuous"][1, 0])
    print(f"policy    two degrees too cold: {shown[0]}, power {shown[1]:.2f}")
    print(f"pictures  {run.folder}/learning_curve.png, {run.folder}/gradients.png")

    # The same policy class, loss and algorithm on the general route.
    plain = hybridize(PlainRoom(), **jumps)
    general = train(plain, folder=folder and f"{folder}/plain", **settings).summary["test_cost"]
    print(f"plain     {general:.4f} after {updates} updates by the EnvBase route")
    return {"first": first, "last": last, "plain": general}


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:2]))
