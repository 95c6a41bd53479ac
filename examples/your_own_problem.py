"""From equations to a trained hybrid policy: a room with a heater that cannot run at low power.

A heater is off, or runs between 30 and 100 % of its power; whenever it runs its pump costs
something. Reward and transition jump in the power, so the breakpoints are declared and the problem
becomes hybrid: off or on, and how much. The same problem follows as a plain TorchRL environment.

python examples/your_own_problem.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from hpo_torchrl.algorithms import HPO
from hpo_torchrl.diagnostics import GradientSampler, gradient_report
from hpo_torchrl.envs import Breakpoint, DifferentiableEnv, Gap, certify, hybridize
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.reporting import plot_gradients, plot_learning_curve
from hpo_torchrl.training import Evaluation

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


def train(env, test, updates):
    """Train HPO for some updates; return the algorithm and (update, cost) pairs."""
    policy = HybridPolicy.for_env(env)
    hpo = HPO(env, policy, make_value_network(env), window=20, discount=0.95)
    costs = []
    for update in range(updates):
        hpo.anneal(update / updates)
        hpo.iterate()
        if update % 10 == 0 or update == updates - 1:
            costs.append((update + 1, test.run(policy).mean))
    return hpo, costs


def main(updates: int = 150, folder: str = "runs/your_own_problem") -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    jumps = {"breakpoints": [Breakpoint(0.0, "alone"), LEAST], "gaps": [Gap(0.0, LEAST, 0.0)]}
    env = hybridize(Room(batch_size=128, seed=0), **jumps)
    print(f"options   {env.pieces}")
    print(f"certified {certify(env, 100_000).exact}")
    test = Evaluation(hybridize(Room(batch_size=256), **jumps), num_steps=300, skip=50, seed=1)
    hpo, costs = train(env, test, updates)
    print(f"cost      {costs[0][1]:.4f} before, {costs[-1][1]:.4f} after {updates} updates")

    run = Path(folder)
    run.mkdir(parents=True, exist_ok=True)
    plot_learning_curve(run / "learning_curve.png", *zip(*costs, strict=True))
    report = gradient_report(GradientSampler.of(hpo), num_batches=20, num_reference=40)
    plot_gradients(run / "gradients.png", report.rows, ceiling=report.ceiling)
    print(f"pictures  {run}/learning_curve.png, {run}/gradients.png")

    # The same policy class, loss and algorithm on the general route.
    plain = hybridize(PlainRoom(), **jumps)
    _, general = train(plain, test, updates)
    print(f"plain     {general[-1][1]:.4f} after {updates} updates by the EnvBase route")
    return {"first": costs[0][1], "last": costs[-1][1], "plain": general[-1][1]}


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:2]))
