"""Environments that TorchRL has wrapped: the one inside, and whether it is several."""

from __future__ import annotations

from typing import Any

import torch
from torchrl.envs import EnvBase, TransformedEnv
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
    """Return the spec of an entry of the observation.

    Raises:
        ValueError: there is none of the key that the argument ``name`` gave.
    """
    found = env.observation_spec.get(key, None)
    if found is None:
        known = ", ".join(map(repr, env.observation_spec.keys()))
        raise ValueError(f"{name} must be an entry of the observation ({known}), got {key!r}.")
    return found


def plain(env: Any) -> Any:
    """Return an environment that has its own attributes: of one made of several, a single one.

    A ``SerialEnv`` or ``ParallelEnv`` passes attributes on as lists or calls, and not at all before
    it has started; its members are alike but for their random numbers. Transforms are left out.
    """
    if (several := batched(env)) is None:
        return env
    with torch.random.fork_rng(devices=[]):  # an environment may draw its seed
        return several.create_env_fn[0](**several.create_env_kwargs[0])
