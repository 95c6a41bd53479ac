"""A bad input, and the small objects that bad inputs are handed to."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from hpo_torchrl.collectors import (
    DifferentiableCollector,
    differentiable_rollout,
)
from hpo_torchrl.envs import (
    DifferentiableEnv,
)
from hpo_torchrl.modules import (
    HybridPolicy,
    make_value_network,
)
from hpo_torchrl.objectives import HPOLoss
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv

NAN, INF = math.nan, math.inf
# Values that are no size, no number >= 0, and no flag.
SIZE = ("3", None, True, 1.5, NAN, INF, 0, -1, 1j, [2])
REAL = ("3", None, True, NAN, INF, -1.0, 1j, [1.0, 2.0])
FLAG = ("yes", None, 1, 0.0)


class Bad(NamedTuple):
    """A bad input.

    Attributes:
        what: the input in words.
        call: what is done with it.
        words: what the error's message must hold; of a tuple, one.
        documented: classes of errors that are documented for it.
    """

    what: str
    call: Callable[[], Any]
    words: tuple[str | tuple[str, ...], ...]
    documented: tuple[type[Exception], ...] = (ValueError, TypeError)


def inventory(**arguments: Any) -> InventoryEnv:
    """Make a small environment."""
    return InventoryEnv(**{"batch_size": 4, "initial_state": "random", "seed": 0} | arguments)


def lqr(**arguments: Any) -> SwitchedLQREnv:
    """Make a small environment."""
    return SwitchedLQREnv.from_recipe(
        2, 2, **{"batch_size": 4, "seed": 0, "horizon": 5} | arguments
    )


@functools.cache
def parts() -> tuple[Any, Any, Any]:
    """Return an environment, a policy and a critic, which the table leaves as they are."""
    env = inventory()
    return env, HybridPolicy.for_env(env, hidden=(4,), scale=0.1), make_value_network(env, hidden=4)


def batch(graph: bool = True, **settings: Any) -> Any:
    """Make a batch, its graph whole."""
    env, policy, _ = parts()
    with torch.set_grad_enabled(graph):
        return differentiable_rollout(env, policy, 6, **settings)


def loss(critic: bool = True, **arguments: Any) -> HPOLoss:
    """Make a loss."""
    _, policy, value = parts()
    return HPOLoss(policy, value if critic else None, **arguments)


class Bare(DifferentiableEnv):
    """A small environment whose sizes are given."""

    def __init__(self, **arguments: Any) -> None:
        sizes: dict[str, Any] = {"num_discrete": 2, "continuous_dim": 1, "observation_dim": 1}
        sizes |= {"state_shapes": {"x": (1,)}, "noise_shape": (1,), "batch_size": 4, "seed": 0}
        super().__init__(**sizes | arguments)

    def dynamics(self, state: Any, action: Any, noise: Any) -> tuple[dict, Any]:
        """Add the action."""
        return {"x": state["x"] + action["continuous"] + noise}, -state["x"].square().sum(-1)

    def observe(self, state: Any) -> Any:
        """Show the state."""
        return state["x"]

    def initial_state(self) -> dict[str, Any]:
        """Begin at 0."""
        return {"x": torch.zeros(*self.batch_size, 1)}

    def draw_noise(self, num_steps: int, state: Any) -> Any:
        """Draw none."""
        return torch.zeros(*self.batch_size, num_steps, 1)


def bare(**arguments: Any) -> Bare:
    """Make one."""
    return Bare(**arguments)


def collector(**arguments: Any) -> DifferentiableCollector:
    """Make a collector."""
    env, policy, _ = parts()
    return DifferentiableCollector(env, policy, **{"frames_per_batch": 24} | arguments)


def in_words(value: Any) -> tuple[str, ...]:
    """Return how a message may show a value: by itself, by an entry or its shape, or its type."""
    if torch.is_tensor(value):
        shape = str(tuple(value.shape))
        return (
            ("nan", shape)
            if bool(value.isnan().any())
            else (shape, *map(str, value.flatten().tolist()))
        )
    found = [" ".join(repr(value).split())[:40], str(value)]
    if isinstance(value, (list, tuple, dict)):
        found += [f"{len(value)}", *(word for entry in value for word in in_words(entry))]
    kind = type(value).__name__
    return (*found, f"type {kind}", f"got {kind}")


def each(name: str, call: Callable[[Any], Any], values: Sequence[Any]) -> Iterator[Bad]:
    """Hand each of the values to a call."""
    for value in values:
        words = (name.split(".")[-1], in_words(value))
        yield Bad(f"{name}={in_words(value)[0]}", functools.partial(call, value), words)


def given(name: str, make: Callable[..., Any], values: Sequence[Any]) -> Iterator[Bad]:
    """Give each of the values to an argument."""
    short = name.split(".")[-1]
    return each(name, lambda value: make(**{short: value}), values)
