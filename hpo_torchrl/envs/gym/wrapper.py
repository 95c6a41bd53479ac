"""Environments of Gymnasium with hybrid actions, for TorchRL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Unbounded
from torchrl.envs import EnvBase

from hpo_torchrl.core.categorical import ACTION_MASK
from hpo_torchrl.core.checks import (
    check_bool,
    check_device,
    check_dtype,
    check_int,
    checked,
    first_line,
)
from hpo_torchrl.envs.gym.spaces import (
    HybridSpace,
    flat_observations,
    gymnasium,
    observation_size,
)
from hpo_torchrl.envs.shell import set_specs

_DISABLED, _SAME_STEP = "Disabled", "SameStep"


class GymHybridEnv(EnvBase):
    """Environments of Gymnasium whose actions are hybrid, stepped side by side.

    Actions are ``("action", "discrete")``, int64 ``(B,)``, and ``("action", "continuous")``,
    ``(B, n)``; :class:`HybridSpace` says how they are made of the parts of a ``Tuple`` or ``Dict``
    space. A policy of :meth:`HybridPolicy.for_env` gives a coordinate that its discrete action does
    not use no noise and no log-probability. Observations are flattened to ``"observation"``,
    ``(B, k)``, discrete parts one-hot. Where the environment puts an ``"action_mask"`` with an
    entry for each discrete action into its ``info``, policies read it.

    ``terminated`` and ``truncated`` stay apart, and the observation after the last step of an
    episode is its final one, from which a truncated episode is bootstrapped. No gradient passes an
    environment of Gymnasium: train by PPO (``algorithm=ppo``) or DDPG (``algorithm=da_ac``).

    Its state is not in the tensordict, so a resumed run goes on from new episodes.

    Args:
        id: name in Gymnasium's registry, ``"module:Name-v0"`` to import its package first; a
            function that makes an environment; or a ``gymnasium.vector.VectorEnv`` in any
            ``autoreset_mode``.
        num_envs: number B of environments; that of a vector environment is its own.
        coordinates: the coordinates that each discrete action uses, such as ``[[0], [1], []]``;
            ``None`` finds it in the form of the space, see :class:`HybridSpace`.
        arguments: further arguments of ``gymnasium.make``.
        asynchronous: step every environment in a process of its own, for slow ones. A script then
            begins by ``if __name__ == "__main__":``.
        device: where the tensors live; the environments themselves run on the CPU.
        dtype: floating-point type of observations, actions and rewards.
        seed: seed of the first episodes; ``None`` draws one from torch's generator.

    Attributes:
        envs: the vector environment.
        horizon: the time limit of an episode, if the registry knows one.

    Raises:
        TypeError: ``id`` is nothing of these.
        ValueError: the name is unknown, a space is of another kind, or the vector environment
            cannot reset some of its members.

    Examples:
        >>> import gymnasium
        >>> from gymnasium.spaces import Box, Discrete, Tuple
        >>> from hpo_torchrl.envs.gym import GymHybridEnv
        >>> class Guess(gymnasium.Env):
        ...     action_space = Tuple([Discrete(2), Box(0, 1, (1,)), Box(-1, 1, (1,))])
        ...     observation_space = Box(0, 1, (1,))
        ...     def reset(self, seed=None, options=None):
        ...         super().reset(seed=seed)
        ...         self.goal = self.np_random.random(1, dtype="float32")
        ...         return self.goal, {}
        ...     def step(self, action):
        ...         return self.goal, -abs(float(action[1][0] - self.goal[0])), True, False, {}
        >>> env = GymHybridEnv(Guess, num_envs=4, seed=0)
        >>> rollout = env.rollout(3, break_when_any_done=False)
        >>> rollout["observation"].shape, rollout["action", "continuous"].shape
        (torch.Size([4, 3, 1]), torch.Size([4, 3, 2]))
    """

    differentiable = False
    reports = "reward"
    rng: torch.Generator

    @checked
    def __init__(
        self,
        id: str | Callable[[], Any] | gymnasium.vector.VectorEnv,
        num_envs: int | None = None,
        *,
        coordinates: Any = None,
        arguments: Mapping[str, Any] | None = None,
        asynchronous: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int | None = None,
    ) -> None:
        given = {"id": id, "num_envs": num_envs, "coordinates": coordinates}
        given |= {"arguments": arguments, "asynchronous": asynchronous}
        self._given: dict[str, Any] = given | {"device": device, "dtype": dtype}
        self.envs = _made(
            id, num_envs, dict(arguments or {}), check_bool("asynchronous", asynchronous)
        )
        super().__init__(device=check_device(device), batch_size=[self.envs.num_envs])
        self.space = HybridSpace(self.envs.single_action_space, coordinates)
        self.num_discrete, self.continuous_dim = self.space.num_discrete, len(self.space.low)
        self.branch_bounds = self.space.branch_bounds
        self.float_dtype = check_dtype(dtype)
        self.action_scale = torch.as_tensor(self.space.unit, dtype=dtype, device=self.device)
        self.horizon = getattr(self.envs.spec, "max_episode_steps", None)
        self._mode = getattr(self.envs.metadata.get("autoreset_mode"), "value", None)
        _check_resets(self.envs, self._mode)
        self._size = observation_size(self.envs.single_observation_space)
        self.rng = torch.Generator()
        if seed is None:
            seed = int(torch.randint(2**31 - 1, ()).item())
        self.set_seed(check_int("seed", seed, minimum=0))
        self._over = np.zeros(self.envs.num_envs, dtype=bool)
        self._shown = self._first()
        self._set_specs()

    def _first(self) -> np.ndarray:
        """Look at first observations, and whether they come with masks."""
        observation, info = self.envs.reset(seed=self._next_seed)
        mask = info.get(ACTION_MASK)
        masks = (self.envs.num_envs, self.num_discrete)
        self.has_action_mask = isinstance(mask, np.ndarray) and mask.shape == masks
        self._mask = np.ones(masks, dtype=bool)
        return self._flat(observation)

    def _set_specs(self) -> None:
        real: dict[str, Any] = {"dtype": self.float_dtype}
        low, high = (torch.as_tensor(end, **real) for end in (self.space.low, self.space.high))
        continuous: Any = Unbounded(low.shape, **real)
        if bool((low.isfinite() | high.isfinite()).any()):
            most = torch.finfo(self.float_dtype).max
            continuous = Bounded(low.clamp_min(-most), high.clamp_max(most), low.shape, **real)
        set_specs(self, self._size, continuous)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get("action")
        discrete, continuous = (
            action.get(key).detach().cpu() for key in ("discrete", "continuous")
        )
        action = self.space.encode(discrete.numpy(), continuous.double().numpy())
        observation, reward, terminated, truncated, info = self.envs.step(action)
        self._over = np.logical_or(terminated, truncated)
        self._shown = self._flat(observation)
        self._see_mask(info)
        after = self._shown
        if self._mode == _SAME_STEP and self._over.any():
            after = after.copy()
            space = self.envs.single_observation_space
            for at in self._over.nonzero()[0]:
                after[at] = gymnasium.spaces.flatten(space, info["final_obs"][at])
        reward = torch.as_tensor(np.asarray(reward), dtype=self.float_dtype)
        return self._pack(after, terminated, truncated, reward=reward.unsqueeze(-1))

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        which = None if tensordict is None else tensordict.get("_reset", None)
        mask = np.ones_like(self._over)
        if which is not None:
            mask = which.reshape(self.batch_size[0], -1).any(-1).cpu().numpy()
        if self._mode == _SAME_STEP and which is not None:
            mask = mask & ~self._over  # those have begun their next episode
        info: Mapping[str, Any] = {}
        if mask.all():
            observation, info = self.envs.reset(seed=self._draw_seed())
            self._shown = self._flat(observation)
        elif mask.any():
            observation, info = self.envs.reset(options={"reset_mask": mask})
            self._shown = np.where(mask[:, None], self._flat(observation), self._shown)
        self._over = self._over & ~mask
        self._see_mask(info)
        never = np.zeros_like(mask)
        return self._pack(self._shown, never, never)

    def _flat(self, observation: Any) -> np.ndarray:
        return flat_observations(
            self.envs.single_observation_space, observation, self.envs.num_envs
        )

    def _see_mask(self, info: Mapping[str, Any]) -> None:
        if self.has_action_mask and ACTION_MASK in info:
            own = np.asarray(info.get(f"_{ACTION_MASK}", True)).reshape(-1, 1)
            self._mask = np.where(own, info[ACTION_MASK].astype(bool), self._mask)

    def _pack(
        self, shown: np.ndarray, terminated: np.ndarray, truncated: np.ndarray, **more: Tensor
    ) -> TensorDictBase:
        ends = {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
        masks = {ACTION_MASK: torch.tensor(self._mask)} if self.has_action_mask else {}
        return TensorDict(
            {
                "observation": torch.as_tensor(shown, dtype=self.float_dtype),
                **{key: torch.tensor(end).unsqueeze(-1) for key, end in ends.items()},
                **masks,
                **more,
            },
            batch_size=self.batch_size,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        self._next_seed = seed
        if seed is not None:
            self.rng.manual_seed(seed)

    def _draw_seed(self) -> int:
        """Return the seed of a reset of all: the one that was set, then others that follow it."""
        seed, self._next_seed = self._next_seed, None
        if seed is None:
            seed = int(torch.randint(2**31 - 1, (), generator=self.rng))
        return seed

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copies, here and in other processes, make the environments anew."""
        return _anew, (type(self), self._given)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environments."""
        self.envs.close()
        super().close(raise_if_closed=raise_if_closed)


def _anew(kind: type[GymHybridEnv], given: dict[str, Any]) -> GymHybridEnv:
    return kind(**given, seed=0)


def _made(id: Any, number: int | None, arguments: dict[str, Any], asynchronous: bool) -> Any:
    """Return a vector environment."""
    vector = gymnasium.vector
    if isinstance(id, vector.VectorEnv):
        if number is not None or arguments or asynchronous:
            raise ValueError(
                "A vector environment is taken as it is: leave num_envs, arguments and "
                "asynchronous out."
            )
        return id
    number = 1 if number is None else check_int("num_envs", number, minimum=1)
    how = {"autoreset_mode": vector.AutoresetMode(_DISABLED)}
    if not isinstance(id, str):
        make = [lambda: id(**arguments)] * number
        return (vector.AsyncVectorEnv if asynchronous else vector.SyncVectorEnv)(make, **how)
    mode = "async" if asynchronous else "sync"
    try:
        return gymnasium.make_vec(id, number, mode, vector_kwargs=how, **arguments)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ValueError(
            f"Gymnasium cannot make id={id!r}: {first_line(error)} Name the package that registers "
            "it, as in my_package:Name-v0, or see gymnasium.pprint_registry()."
        ) from error


def _check_resets(envs: Any, mode: str | None) -> None:
    """Raise a ``ValueError`` if members of a vector environment cannot be reset when they end."""
    ours = isinstance(
        envs.unwrapped, (gymnasium.vector.SyncVectorEnv, gymnasium.vector.AsyncVectorEnv)
    )
    if not ours and mode not in (_DISABLED, _SAME_STEP):
        raise ValueError(
            f"{envs} resets its members in the step after an episode, which is none to learn from, "
            f"or does not say when: its metadata['autoreset_mode'] is {mode!r}. Make it with "
            "AutoresetMode.SAME_STEP or DISABLED."
        )
