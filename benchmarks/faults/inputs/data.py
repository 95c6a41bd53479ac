"""Batches that no loss can use, and environments that break the graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.envs import (
    ActionScaling,
    BinarizeReward,
    ExcludeTransform,
    ParallelEnv,
    RenameTransform,
    Transform,
    TransformedEnv,
)

from benchmarks.faults.inputs.made import (
    INF,
    NAN,
    Bad,
    batch,
    inventory,
    loss,
    parts,
)
from hpo_torchrl.collectors import (
    DifferentiableCollector,
    Rollout,
    differentiable_rollout,
)
from hpo_torchrl.modules import (
    HybridPolicy,
)

# -- batches ---------------------------------------------------------------------------------------


def changed(key: Any, change: Callable[[Any], Any], **settings: Any) -> Any:
    """Return a batch of which one entry is changed."""
    made = batch(**settings).copy()
    return made.set(key, change(made.get(key)))


def spoiled(value: float) -> Callable[[Any], Any]:
    """Return what puts a value into one place of an entry."""

    def spoil(entry: Any) -> Any:
        place = torch.zeros(entry.shape, dtype=torch.bool)
        place.view(-1)[5] = True
        return torch.where(place, torch.as_tensor(value, dtype=entry.dtype), entry)

    return spoil


def batches() -> Iterator[Bad]:
    """Batches that a loss cannot use."""
    keys = {"reward": ("next", "reward"), "observation": "observation"}
    keys["next observation"] = ("next", "observation")
    for name, key in keys.items():
        for value in (NAN, INF):
            for critic in (True, False):
                if name == "next observation" and not critic:
                    continue  # nothing reads it
                call = functools.partial(
                    lambda critic, k, v: loss(critic)(changed(k, spoiled(v))), critic, key, value
                )
                words = (name.split()[-1], str(value))
                yield Bad(f"HPOLoss: {name} {value}, critic={critic}", call, words)
    yield Bad(
        "HPOLoss: time first",
        lambda: loss()(batch().transpose(0, 1).contiguous()),
        ("time", "(6, 4)"),
    )
    yield Bad(
        "HPOLoss: time first, without names", lambda: loss()(_time_first()), ("time", "(6, 4)")
    )
    yield Bad("HPOLoss: a single step", lambda: loss()(batch()[0, 0]), ("()",))
    for nothing in (batch().to_dict(), None, 3):
        call = functools.partial(lambda v: loss()(v), nothing)
        words = (("reward", "()"),)
        yield Bad(f"HPOLoss: a {type(nothing).__name__}", call, words, (KeyError, ValueError))
    squeezed = {
        "reward": ("next", "reward"),
        "done": ("next", "done"),
        "terminated": ("next", "terminated"),
    }
    for name, key in squeezed.items():
        for change, shape in {
            "squeezed": (lambda e: e.squeeze(-1), "(4, 6)"),
            "doubled": (lambda e: torch.cat([e, e], -1), "(4, 6, 2)"),
        }.values():
            call = functools.partial(lambda k, c: loss()(changed(k, c)), key, change)
            yield Bad(f"HPOLoss: {name} of shape {shape}", call, (name, shape))
        call = functools.partial(lambda k: loss()(batch().exclude(k)), key)
        yield Bad(f"HPOLoss: no {name}", call, (name,), (KeyError,))
    for name, key in {"done": ("next", "done"), "terminated": ("next", "terminated")}.items():
        call = functools.partial(lambda k: loss()(changed(k, lambda e: e.float())), key)
        yield Bad(f"HPOLoss: {name} of float32", call, (name, "float32"))
    action = ("action", "discrete")
    for what, change, words in (
        ("one too many", lambda e: 0 * e + 7, ("discrete", "7")),
        ("-1", lambda e: e - 9, ("discrete", "-9")),
        ("of floats", lambda e: e.float(), ("discrete", "float32")),
        ("with a last axis", lambda e: e.unsqueeze(-1), ("discrete", "(4, 6, 1)")),
    ):
        call = functools.partial(lambda c: loss()(changed(action, c)), change)
        yield Bad(f"HPOLoss: discrete {what}", call, words)
    for key in (action, "observation"):
        call = functools.partial(lambda k: loss()(batch().exclude(k)), key)
        yield Bad(f"HPOLoss: no {key}", call, (str(key),), (KeyError,))
    yield Bad(
        "HPOLoss: observation one short",
        lambda: loss()(changed("observation", lambda e: e[..., :-1])),
        ("observation", "(4, 6, 1)"),
    )
    yield Bad(
        "HPOLoss: advantage squeezed",
        lambda: loss(False)(batch().set("advantage", torch.zeros(4, 6))),
        ("advantage", "(4, 6)"),
    )
    yield Bad(
        "HPOLoss: action_value of one action",
        lambda: loss()(batch().set("action_value", torch.zeros(4, 6, 3))),
        ("action_value", "(4, 6, 3)"),
    )
    yield Bad(
        "HPOLoss: without a graph",
        lambda: loss()(batch(graph=False)),
        ("reward", "gradient"),
        (RuntimeError,),
    )
    yield Bad("HPOLoss: a second epoch", _second_epoch, ("once", "pathwise=False"), (RuntimeError,))
    env, policy, _ = parts()
    starts = {
        "one entry short": (lambda s: s.exclude("inventory"), ("inventory",)),
        "of another batch": (lambda s: s[:2], ("(2,)", "(4,)")),
        "None within": (lambda s: TensorDict({}, [4]), ("inventory",)),
    }
    for route in ("functional", "general"):
        for what, (change, words) in starts.items():
            call = functools.partial(
                lambda c, r: differentiable_rollout(
                    env, policy, 3, tensordict=c(env.reset()), route=r
                ),
                change,
                route,
            )
            documented = (ValueError, TypeError, KeyError)
            yield Bad(f"{route} rollout: start {what}", call, words, documented)


def _time_first() -> Any:
    made = batch()
    return torch.stack([made[:, step].copy() for step in range(6)])


def _second_epoch() -> Any:
    made, rollout = loss(), batch(discount=0.99)
    for _ in range(2):
        terms = made(rollout)
        sum(value for key, value in terms.items() if key.startswith("loss_")).backward()


# -- TorchRL's wrappers ----------------------------------------------------------------------------


def wrapped() -> Iterator[Bad]:
    """Environments whose graph is cut, and transforms that write into it."""

    def several() -> Any:
        return ParallelEnv(2, lambda: inventory(), serial_for_single=False)

    _, policy, _ = parts()
    yield Bad(
        "DifferentiableCollector of a ParallelEnv",
        lambda: DifferentiableCollector(several(), policy, frames_per_batch=16),
        ("ParallelEnv", "process"),
    )
    yield Bad(
        "Rollout in a transformed ParallelEnv",
        lambda: Rollout(TransformedEnv(several()), policy)(3),
        ("ParallelEnv", "process"),
    )
    u = [("action", "continuous")]
    for transform, words in (
        (RenameTransform(["reward"], ["r"]), ("'reward'", "'r'")),
        (RenameTransform(["done"], ["over"]), ("'done'", "'over'")),
        (RenameTransform([], [], [("action", "discrete")], ["k"]), ("'discrete'", "'k'")),
        (BinarizeReward(), ("'reward'", "int8")),
        (ActionScaling(loc=0.0, scale=2.0, in_keys_inv=u), ("ActionScaling",)),
        (ExcludeTransform("inventory"), ("'inventory'", "ExcludeTransform")),
    ):
        call = functools.partial(_rolled, transform)
        yield Bad(f"a rollout with {type(transform).__name__}, {words[0]}", call, words)


def _rolled(transform: Transform) -> None:
    env = TransformedEnv(inventory(), transform)
    Rollout(env, HybridPolicy.for_env(env, hidden=(4,)))(3)
