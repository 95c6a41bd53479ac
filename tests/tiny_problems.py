"""Random problems so small that their gradient is a finite sum: what certifies the estimators."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hpo_torchrl.diagnostics import exact_gradient
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv

DOUBLE = torch.float64


def gradient(output, parameters):
    """Gradient of a scalar as one vector; zeros where it does not reach."""
    parts = torch.autograd.grad(
        output, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.flatten() for part in parts])


def scale_gradient(value, factor):
    return value * factor + (value * (1.0 - factor)).detach()


def returns(batch):
    """Return from every step to the end of the window, ``(*B, T)``, off the graph."""
    return batch["next", "reward"].detach().squeeze(-1).flip(-1).cumsum(-1).flip(-1)


class _Staged:
    """Starts in given states; its noise is given, or drawn from a finite support.

    ``cut`` is a planted fault: it takes every next state off the graph.
    """

    cut = False

    def stage(self, start, noise, support):
        self.given_start, self.given_noise, self.support = start, noise, support
        return self

    def initial_state(self):
        copies = self.batch_size.numel() // len(next(iter(self.given_start.values())))
        return {
            name: value.repeat(copies, *(1,) * (value.ndim - 1))
            for name, value in self.given_start.items()
        }

    def draw_noise(self, num_steps, state):
        if self.support is None:
            copies = self.batch_size.numel() // len(self.given_noise)
            return self.given_noise[:, :num_steps].repeat(copies, 1, 1)
        values, chance = self.support
        shape = (*self.batch_size, num_steps)
        drawn = torch.multinomial(
            chance, self.batch_size.numel() * num_steps, replacement=True, generator=self.rng
        )
        return values[drawn.view(shape)]

    def dynamics(self, state, action, noise):
        after, reward = super().dynamics(state, action, noise)
        if self.cut:
            after = {name: value.detach() for name, value in after.items()}
        return after, reward


class _Curved(DifferentiableEnv):
    """Switched dynamics, smooth and nonlinear in x and u, with a reward that depends on both."""

    def __init__(self, A, B, **kwargs):
        options, dim, inputs = B.shape
        super().__init__(
            num_discrete=options,
            continuous_dim=inputs,
            state_shapes={"x": (dim,)},
            observation_dim=dim,
            noise_shape=(dim,),
            dtype=DOUBLE,
            **kwargs,
        )
        self.A, self.B = A, B

    def dynamics(self, state, action, noise):
        x, u, d = state["x"], action["continuous"], action["discrete"]
        moved = (self.A[d] @ x.unsqueeze(-1) + self.B[d] @ u.unsqueeze(-1)).squeeze(-1)
        after = moved + 0.4 * x.sin() + noise
        coupled = (x.sum(-1) * u.sum(-1)).tanh()
        return {"x": after}, 0.3 * coupled - (after**2).sum(-1) - 0.3 * (u**2).sum(-1) - 0.2 * d

    def observe(self, state):
        return state["x"]

    def initial_state(self):
        raise NotImplementedError

    def draw_noise(self, num_steps, state):
        raise NotImplementedError


class Curved(_Staged, _Curved):
    pass


class Linear(_Staged, SwitchedLQREnv):
    pass


class Inventory(_Staged, InventoryEnv):
    def stage(self, *args):
        self.horizon_terminates = True  # nothing beyond: a critic is a baseline only
        return super().stage(*args)


@dataclass
class Problem:
    """A random problem and a random policy for it.

    Args:
        kind: ``"linear"``, ``"curved"`` or ``"inventory"``.
        seed: of every number in it.
        steps: T.
        options: M, for switched systems.
        dim: dimension of the state; number of items.
        inputs: dimension of u, for switched systems.
        support: number of noise values to draw from at each step; 0 holds the noise fixed.
        nodes: quadrature nodes, for a Gaussian u.
        starts: number of initial states that the expected return averages.
        env: further arguments of the environment.
        network: further arguments of the policy's network.
    """

    kind: str
    seed: int
    steps: int
    options: int = 2
    dim: int = 2
    inputs: int = 2
    support: int = 0
    nodes: int | None = None
    starts: int = 2
    env: dict = field(default_factory=dict)
    network: dict = field(default_factory=dict)

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)
        options, dim = self.options, self.dim

        def randn(*shape):
            return torch.randn(shape, generator=generator, dtype=DOUBLE)

        def rand(*shape):
            return torch.rand(shape, generator=generator, dtype=DOUBLE)

        count = max(self.support, 1)
        if self.kind == "inventory":
            slots = max(self.env.get("lead_time", 2), 1)
            start = {"inventory": 2.5 * rand(self.starts, dim, slots) - 0.5}
            noise = 0.2 + 1.8 * rand(self.starts, self.steps, dim)
            values = 0.2 + 1.8 * rand(count, dim)
            costs = {"holding_cost": 0.5 + rand(dim), "shortage_cost": 2.0 + 2.0 * rand(dim)}
            costs = {name: value.tolist() for name, value in costs.items()}
            self.matrices = {
                "num_items": dim,
                "demand": 1.0,
                "fixed_cost_per_item": 0.8,
                "dtype": DOUBLE,
                **costs,
            }
        else:
            start = {"x": randn(self.starts, dim)}
            noise = 0.3 * randn(self.starts, self.steps, dim)
            values = 0.5 * randn(count, dim)
            self.matrices = {
                "A": 0.5 * randn(options, dim, dim),
                "B": 0.6 * randn(options, dim, self.inputs),
            }
            if self.kind == "linear":
                root = {"Q": randn(options, dim, dim), "R": randn(options, *2 * (self.inputs,))}
                for name, factor in root.items():
                    square = 0.3 * factor @ factor.mT
                    self.matrices[name] = square + 0.2 * torch.eye(len(square[0]), dtype=DOUBLE)
                self.matrices |= {"initial_range": float(dim**0.5), "dtype": DOUBLE}
        chance = 0.5 + rand(count)
        support = (values, chance / chance.sum())
        self.staging = (start, noise, None) if self.support == 0 else (start, None, support)
        self.gaussian = self.nodes is not None
        network = {"hidden": (3,), "activation": "tanh"} | self.network
        if self.gaussian:
            network = {"scale": 0.4} | network
        self.policy = HybridPolicy.for_env(self.environment(), **network)
        for name, parameter in self.policy.network.named_parameters():
            # A decided choice and gentle actions: the cross term weighs, and no tail is heavy.
            size = 0.9 if name.startswith("discrete") else 0.4
            parameter.data.copy_(size * randn(*parameter.shape) - float(name == "log_scale"))
        self.named = dict(self.policy.named_parameters())

    def environment(self, copies=1, *, cut=False, seed=0):
        """Build the environment with ``copies`` systems for each initial state."""
        kinds = {"linear": Linear, "curved": Curved, "inventory": Inventory}
        kwargs = {"horizon": self.steps, "batch_size": copies * self.starts, "seed": seed}
        env = kinds[self.kind](**kwargs | self.matrices | self.env).stage(*self.staging)
        env.cut = cut
        return env

    def exact(self, **kwargs):
        """Return the exact gradient of the policy's parameters."""
        _, noise, support = self.staging
        kwargs = {"noise": noise, "noise_support": support, "num_nodes": self.nodes} | kwargs
        return exact_gradient(self.environment(), self.policy, self.steps, **kwargs)

    def flat(self, gradient):
        """Return a gradient by name as one vector."""
        return torch.cat([gradient[name].flatten() for name in self.named])


def _gaussian(kind, seed, steps, inputs, **kwargs):
    network = {"scale": 0.4, "learn_scale": True} | kwargs.pop("network", {})
    return Problem(kind, seed, steps, inputs=inputs, nodes=10, network=network, **kwargs)


def _inventory(seed, steps, lead_time, items, support=0, network=(), **env):
    env = {"lead_time": lead_time} | env
    return Problem(
        "inventory", seed, steps, dim=items, support=support, env=env, network=dict(network)
    )


PROBLEMS = {
    "linear, 2 modes": lambda: Problem("linear", 1, 5),
    "linear, 3 modes": lambda: Problem("linear", 2, 4, options=3),
    "linear, scalar": lambda: Problem("linear", 3, 6, dim=1, inputs=1),
    "linear, 1 input": lambda: Problem("linear", 4, 4, dim=3, inputs=1, support=2),
    "linear, 3 modes, noise": lambda: Problem("linear", 5, 3, options=3, support=3),
    "linear, no time": lambda: Problem("linear", 6, 4, env={"observe_time": False}),
    "curved, 2 modes": lambda: Problem("curved", 7, 5),
    "curved, 3 modes": lambda: Problem("curved", 8, 4, options=3),
    "curved, noise": lambda: Problem("curved", 9, 4, support=2),
    "curved, shared trunk": lambda: Problem(
        "curved", 10, 3, options=3, support=2, network={"shared_trunk": True}
    ),
    "curved, bounded": lambda: Problem(
        "curved", 11, 4, inputs=1, env={"continuous_bounds": (-1.0, 2.0)}
    ),
    "curved, window": lambda: Problem("curved", 12, 4, dim=1, inputs=2, env={"horizon": None}),
    "inventory, L=0": lambda: _inventory(21, 4, 0, 1),
    "inventory, L=0, n=2": lambda: _inventory(22, 4, 0, 2, support=2),
    "inventory, L=1": lambda: _inventory(23, 4, 1, 1, support=3),
    "inventory, L=1, n=2": lambda: _inventory(24, 5, 1, 2),
    "inventory, L=2": lambda: _inventory(25, 5, 2, 1, support=2),
    "inventory, L=2, n=2": lambda: _inventory(26, 6, 2, 2),
    "inventory, lost sales": lambda: _inventory(27, 5, 1, 1, lost_sales=True),
    "inventory, procurement": lambda: _inventory(
        28, 4, 0, 2, network={"shared_trunk": True}, procurement_cost=0.5
    ),
    "gaussian, linear": lambda: _gaussian("linear", 31, 3, 1, dim=1),
    "gaussian, linear, u of 2": lambda: _gaussian("linear", 32, 2, 2),
    "gaussian, curved": lambda: _gaussian("curved", 33, 3, 1),
    "gaussian, curved, noise": lambda: _gaussian("curved", 34, 2, 1, support=3, options=3),
    "gaussian, fixed scale": lambda: _gaussian(
        "curved", 35, 2, 2, options=3, network={"learn_scale": False}
    ),
}
