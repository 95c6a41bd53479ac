"""Environments that TorchRL has wrapped: the one inside, its members, what transforms remember."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, Transform, TransformedEnv
from torchrl.envs.batched_envs import BatchedEnvBase


def batched(env: EnvBase) -> EnvBase | None:
    """Return the ``SerialEnv`` or ``ParallelEnv`` within an environment, if there is one."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env if isinstance(env, BatchedEnvBase) else None


def differentiable(env: Any) -> bool:
    """Whether gradients pass an environment, as far as it says, its state being in the tensordict.

    One that steps something outside torch has the attribute ``differentiable = False``.
    """
    return getattr(plain(env), "differentiable", True) is not False


def spec_of(env: EnvBase, name: str, key: Any) -> Any:
    """Return the spec of a flat entry of the observation, ``(*B, k)``.

    Raises:
        ValueError: there is none of the key that the argument ``name`` gave, or it is not flat.
    """
    found = env.observation_spec.get(key, None)
    if found is None:
        known = ", ".join(map(repr, env.observation_spec.keys()))
        raise ValueError(f"{name} must be an entry of the observation ({known}), got {key!r}.")
    if len(found.shape) != len(env.batch_size) + 1:
        raise ValueError(
            f"{name} must be a flat entry, a vector for each of the instances "
            f"{tuple(env.batch_size)}, got {key!r} of shape {tuple(found.shape)}. Add the "
            "transform FlattenObservation, or give a policy a memory that makes a vector of it."
        )
    return found


def check_action_kept(env: EnvBase) -> None:
    """Raise a ``ValueError`` if a transform changes the continuous action that attributes describe.

    Specs are cut where a range has no end, so that a policy takes bounds and unit from attributes.
    """
    base, key = plain(env), ("action", "continuous")
    while isinstance(base, TransformedEnv):
        base = base.base_env
    if getattr(base, "continuous_bounds", None) is None:  # the spec says it all
        return
    now, was = (one.full_action_spec[key].space for one in (env, base))
    size = was.low.shape[-1]
    if all(
        torch.equal(end.reshape(-1, size)[0], own.reshape(-1, size)[0])
        for end, own in ((now.low, was.low), (now.high, was.high))
    ):
        return
    parts = transforms_of(env)
    names = sorted({type(part).__name__ for part in parts if key in (part.in_keys_inv or ())})
    raise ValueError(
        f"{' and '.join(names) or 'A transform'} changes {key}, so that continuous_bounds and "
        f"action_scale of {type(base).__name__} no longer hold: leave it out, for a policy knows "
        "bounds and units by itself; or build the HybridNetwork for the new action yourself."
    )


def check_outcome(env: EnvBase) -> None:
    """Raise a ``ValueError`` if rewards and ends of episodes have not the names and kinds of ours.

    ``"reward"`` is real, ``(*B, 1)``; ``"done"`` and ``"terminated"`` say how an episode ends.
    """
    spec = env.full_reward_spec.get("reward", None)
    shape = (*env.batch_size, 1)
    if spec is None or tuple(spec.shape) != shape or not spec.dtype.is_floating_point:
        pairs = _leaves(env.full_reward_spec)
        found = [f"{key!r} ({one.dtype}, {tuple(one.shape)})" for key, one in pairs]
        raise ValueError(
            f"The environment must have one real 'reward' of shape {shape}, got "
            f"{', '.join(found)}. Give it that name by RenameTransform, or make it real by "
            "DTypeCastTransform."
        )
    ends = [key for key, _ in _leaves(env.full_done_spec)]
    if missing := [key for key in ("done", "terminated") if key not in ends]:
        raise ValueError(
            f"The environment must say {' and '.join(map(repr, missing))} of episodes, got "
            f"{', '.join(map(repr, ends))}; leave out the transform that renames them."
        )


def _leaves(spec: Any) -> list[tuple[Any, Any]]:
    return list(spec.items(include_nested=True, leaves_only=True))


def plain(env: Any) -> Any:
    """Return an environment that has its own attributes: of one made of several, a single one.

    A ``SerialEnv`` or ``ParallelEnv`` passes attributes on as lists or calls, and not at all before
    it has started; its members are alike but for their random numbers. Transforms are left out.
    """
    if (several := batched(env)) is None:
        return env
    with torch.random.fork_rng(devices=[]):  # an environment may draw its seed
        return several.create_env_fn[0](**several.create_env_kwargs[0])


def transforms_of(env: EnvBase) -> list[Transform]:
    """Return all transforms of an environment and of those within it."""
    return [part for part in env.modules() if isinstance(part, Transform)]


def remembered(parts: Iterable[Transform]) -> Iterator[tuple[dict[str, Any], str, list[Tensor]]]:
    """Yield where transforms keep real numbers from step to step: the dict, the name, the tensors.

    They are buffers (``CatFrames``) or attributes (the statistics of ``VecNormV2``). What is a leaf
    that requires a gradient is a parameter.
    """
    for part in parts:
        for place in (part._buffers, vars(part)):
            for name, value in place.items():
                if isinstance(value, Tensor) and not torch.nn.parameter.is_lazy(value):
                    tensors = [value]
                elif isinstance(value, TensorDictBase):
                    tensors = list(value.values(True, True))
                else:
                    continue
                if any(_is_state(tensor) for tensor in tensors):
                    yield place, name, tensors


def _is_state(value: Tensor) -> bool:
    return value.is_floating_point() and (value.grad_fn is not None or not value.requires_grad)


def renew(
    parts: Iterable[Transform], change: Callable[[Tensor], Tensor], attached: bool = False
) -> None:
    """Put changed copies in the place of what transforms remember.

    Transforms write to it in place. A copy for each step leaves those of the steps before as the
    graph has saved them.

    Args:
        parts: the transforms.
        change: makes the new tensor of an old one.
        attached: leave out what has no graph, which other processes may share.
    """
    for place, name, tensors in list(remembered(parts)):
        if attached and all(tensor.grad_fn is None for tensor in tensors):
            continue
        value = place[name]
        if isinstance(value, TensorDictBase):
            place[name] = value.apply(lambda tensor: change(tensor).clone())
        else:
            place[name] = change(value).clone()
