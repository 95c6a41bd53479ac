"""From a case in PyTorch to the same in JAX, and whether both compute the same numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from benchmarks.speed.cases import (
    BACKWARD,
    FORWARD,
    NEVER,
    SCALE,
    UPDATE,
    Call,
    Case,
    Workbench,
)
from benchmarks.speed.equations import EQUATIONS
from benchmarks.speed.hand import DISCOUNT
from benchmarks.speed.in_jax import COMPONENTS, Draws, InJax, Params, State
from hpo_torchrl.collectors import Rollout
from hpo_torchrl.collectors.inputs import policy_noise

# Sizes that numbers are compared on. Over many steps rounding grows where a random policy is
# unstable, and a rounded logarithm may choose another discrete action.
BATCH, HORIZON = 16, 20
# Largest difference allowed, over the largest entry: of a rollout's rewards, of each gradient, of
# what an update adds to each parameter, where Adam divides small gradients by small gradients. In
# double precision torch's softplus is off by 1e-9 from 20 on, and TorchRL's discount is a single.
TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {FORWARD: 1e-6, BACKWARD: 2e-5, UPDATE: 3e-2},
    torch.float64: {FORWARD: 1e-9, BACKWARD: 1e-8, UPDATE: 1e-4},
}


class JaxBench:
    """A case in JAX, with the networks of a workbench.

    Args:
        bench: the workbench.
        discount: the discount factor.
    """

    def __init__(self, bench: Workbench, discount: float = DISCOUNT) -> None:
        case, dtype = bench.case, {torch.float32: jnp.float32, torch.float64: jnp.float64}
        self.program = InJax(
            EQUATIONS[case.problem](bench.env, dtype[bench.dtype]),
            case.batch,
            case.horizon,
            scale=SCALE,
            target_kl=NEVER,
            discount=discount,
            dtype=dtype[bench.dtype],
        )
        self.key = jax.random.key(0)
        self.params = params_of(bench)
        start = self.program.equations.draw_start(self.key, case.batch)
        self.learned = self.program.begin(self.params, start)

    def call(self, measure: str) -> Call:
        """Return what one call of a measure is; it waits for its result."""
        program = {
            FORWARD: self.program.jitted_rollout,
            BACKWARD: self.program.jitted_gradient,
            UPDATE: self.program.jitted_update,
        }[measure]

        def call() -> None:
            self.key, own = jax.random.split(self.key)
            if measure == UPDATE:
                self.learned, _ = jax.block_until_ready(program(self.learned, own))
            else:
                jax.block_until_ready(program(self.params, own))

        return call


def params_of(bench: Workbench) -> Params:
    """Return the parameters of policy and critic, by component."""
    network = bench.policy.network
    continuous = {"net": layers(network.continuous), "skip": to_jax(network.skip.weight.mT)}
    return {
        "discrete": layers(network.discrete),
        "continuous": continuous,
        "value": layers(bench.critic),
    }


def layers(net: nn.Module) -> list[tuple[jax.Array, jax.Array]]:
    """Return weights ``(inputs, outputs)`` and biases of a multilayer perceptron."""
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    return [(to_jax(layer.weight.mT), to_jax(layer.bias)) for layer in linear]


def to_jax(tensor: Tensor) -> jax.Array:
    """Copy a tensor."""
    return jnp.array(tensor.detach().numpy())


def check(case: Case, dtype: torch.dtype, discount: float = DISCOUNT) -> dict[str, float]:
    """Compare JAX with PyTorch: one rollout, its gradient, and one update.

    Both begin with the same parameters and are given the same random numbers. Rollout and gradient
    are compared with the library's, the update with the hand-written one where there is one.

    Args:
        case: the sizes; batch and horizon are small ones.
        dtype: floating-point type.
        discount: that of JAX: another one than the library's is a fault that must be found.

    Returns:
        The largest difference of each measure, over the largest entry.

    Raises:
        RuntimeError: the numbers differ.
    """
    with jax.enable_x64(dtype == torch.float64):
        return _check(case._replace(batch=BATCH, horizon=HORIZON), dtype, discount)


class Given(NamedTuple):
    """What both computations start from, in PyTorch and in JAX.

    Attributes:
        start: where the rollout starts.
        noise: the environment's noise of a rollout, ``(B, T, ...)``.
        state: ``start`` in JAX.
        draws: all random numbers of the rollout.
        orders: those of the update.
    """

    start: TensorDictBase
    noise: Tensor
    state: State
    draws: Draws
    orders: jax.Array


def _check(case: Case, dtype: torch.dtype, discount: float) -> dict[str, float]:
    torch.manual_seed(0)
    bench = Workbench(case, torch.device("cpu"), dtype)
    with torch.no_grad():  # away from the parameters that start at zero
        for parameter in bench.parameters():
            parameter += 0.1 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
    in_jax = JaxBench(bench, discount)
    given = numbers(bench, in_jax.program.epochs)
    differences = of_rollout(bench, in_jax, given)
    if UPDATE in case.measures:
        differences[UPDATE] = of_update(bench, in_jax, given)
    for measure, largest in differences.items():
        if not largest <= TOLERANCES[dtype][measure]:
            raise RuntimeError(
                f"{case}: JAX and PyTorch differ by {largest:.1e} of the largest entry in "
                f"{measure!r} ({dtype}), at most {TOLERANCES[dtype][measure]:.0e} is rounding: "
                "their times are not those of the same computation."
            )
    return differences


def numbers(bench: Workbench, epochs: int) -> Given:
    """Draw the numbers that rollout and update draw from the seed 1, in the same order."""
    env, (horizon, batch) = bench.env, (bench.case.horizon, bench.case.batch)
    start = env.reset()
    if bench.hand is not None:  # it draws its demand itself
        bench.hand.rng.set_state(env.rng.get_state())
    noise = env.sample_noise(horizon)
    torch.manual_seed(1)
    own = policy_noise(env, bench.policy, horizon, None)
    orders = torch.stack([torch.randperm(bench.case.frames) for _ in range(epochs)])
    return Given(
        start,
        noise,
        tuple(to_jax(start[name]) for name in env.state_shapes),
        Draws(to_jax(-own.discrete), to_jax(own.continuous), to_jax(noise.movedim(1, 0))),
        to_jax(orders % horizon * batch + orders // horizon),  # time comes first in JAX
    )


def rolled_out(bench: Workbench, given: Given) -> TensorDictBase:
    """Roll the library's policy out."""
    torch.manual_seed(1)
    rollout = Rollout(bench.env, bench.policy, discount=DISCOUNT)
    return rollout(bench.case.horizon, tensordict=given.start, noise=given.noise)


def of_rollout(bench: Workbench, in_jax: JaxBench, given: Given) -> dict[str, float]:
    """Return the differences of a rollout's rewards and of the gradient of their mean."""
    batch = rolled_out(bench, given)
    batch["next", "reward"].mean().backward()

    def mean_reward(params: Params) -> tuple:
        _, steps = in_jax.program.rollout(params, given.state, given.draws)
        return steps.rewards.mean(), steps

    found, steps = jax.jit(jax.grad(mean_reward, has_aux=True))(in_jax.params)
    if not bool((to_jax(batch["action", "discrete"].mT) == steps.options).all()):
        raise RuntimeError(f"{bench.case}: JAX takes other discrete actions than the library.")
    gradients = [parameter.grad for parameter in bench.parameters()]
    return {
        FORWARD: difference([(steps.rewards, batch["next", "reward"].squeeze(-1).mT)]),
        BACKWARD: difference(zip(flat(found), gradients, strict=True)),
    }


def of_update(bench: Workbench, in_jax: JaxBench, given: Given) -> float:
    """Return the difference of what an update adds to the parameters."""
    own = bench.parameters()
    before = [parameter.detach().clone() for parameter in own]
    if bench.hand is not None:
        bench.copy_parameters()
        torch.manual_seed(1)
        bench.hand.iterate()
        own = list(bench.hand.nets.parameters())
    else:
        bench.hpo.anneal(0.0)
        bench.hpo.update(rolled_out(bench, given))
    learned = in_jax.learned._replace(state=given.state)
    learned, _ = jax.jit(in_jax.program.update)(learned, given.draws, given.orders)
    pairs = zip(flat(learned.params), flat(in_jax.params), own, before, strict=True)
    return difference((after - begin, new - old) for after, begin, new, old in pairs)


def flat(params: Params) -> list[jax.Array]:
    """Return parameters or gradients in the order and the shapes of PyTorch's."""
    parts = {
        "discrete": params["discrete"],
        "continuous": [*params["continuous"]["net"], (params["continuous"]["skip"],)],
        "value": params["value"],
    }
    return [entry.T for name in COMPONENTS for layer in parts[name] for entry in layer]


def difference(pairs: Iterable[tuple[Any, Tensor | None]]) -> float:
    """Return the largest difference, of each pair over its largest entry; ``None`` is zero."""
    found = []
    for mine, other in pairs:
        here = torch.tensor(jax.device_get(mine))
        there = torch.zeros_like(here) if other is None else other.detach()
        gap, size = (here - there).abs().max(), there.abs().max()
        found.append(gap if size == 0 else gap / size)
    return float(torch.stack(found).max())
