"""Our environments for users of Gymnasium: single, and as a vector environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from hpo_torchrl.core.categorical import ACTION_MASK
from hpo_torchrl.core.checks import check_choice, check_float, shown
from hpo_torchrl.envs.differentiable import DifferentiableEnv
from hpo_torchrl.envs.gym.spaces import gymnasium

spaces = gymnasium.spaces
FLAT = ("argmax", "bin")


def as_gymnasium(env: DifferentiableEnv, *, flatten: str | None = None, reach: float = 2.0) -> Any:
    """Return an environment of this package as a ``gymnasium.Env``.

    Observations are ``Box``, actions ``Tuple(Discrete(M), Box(n))`` (of H heads
    ``Tuple(MultiDiscrete([M] * H), Box(n))``), or flattened for libraries that know a ``Box``
    alone, such as Stable-Baselines3. What is beyond the ends of the chosen discrete action
    (``branch_bounds``) is moved to them, as policies of this package keep to them. A mask of
    discrete actions is in ``info["action_mask"]``, int8 of shape ``(M,)`` or ``(H, M)``.

    **Flattened**, all entries of an action are in [-1, 1]. ``"argmax"``: M entries, of each head,
    come first, and the discrete action is the place of the largest (among those that are allowed);
    ``"bin"``: one entry comes first, of each head, whose range is cut into M equal bins. The n
    coordinates follow, from -1 at the lower end to 1 at the upper one. An end that is not there is
    taken to be ``reach`` action scales from the other one, or from 0 where there is none.

    Args:
        env: the environment, of one instance (``batch_size=()`` or 1); it is used, not copied.
        flatten: ``"argmax"`` or ``"bin"``; ``None`` keeps the parts of an action.
        reach: see above.

    Raises:
        TypeError: ``env`` is no :class:`DifferentiableEnv`.
        ValueError: it has several instances, or an argument is out of range; and by ``step``, an
            action is none of the space.

    Examples:
        >>> from hpo_torchrl.envs.gym import as_gymnasium
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> env = as_gymnasium(InventoryEnv(num_items=2, horizon=20), flatten="bin")
        >>> env.action_space
        Box(-1.0, 1.0, (3,), float32)
        >>> observation, info = env.reset(seed=0)
    """
    return _GymEnv(_Simulation(env, flatten, reach))


def as_vector_env(env: DifferentiableEnv, *, flatten: str | None = None, reach: float = 2.0) -> Any:
    """Return the instances of an environment as one ``gymnasium.vector.VectorEnv``.

    An instance whose episode has ended begins the next one in the step after
    (``AutoresetMode.NEXT_STEP``, Gymnasium's default): that step ignores the action and has reward
    0. ``reset(options={"reset_mask": mask})`` resets some of them.

    Args:
        env: the environment, of batch size ``(B,)``; it is used, not copied.
        flatten: see :func:`as_gymnasium`.
        reach: likewise.

    Raises:
        TypeError: ``env`` is no :class:`DifferentiableEnv`.
        ValueError: its batch has another number of dimensions, or an argument is out of range.

    Examples:
        >>> from hpo_torchrl.envs.gym import as_vector_env
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> envs = as_vector_env(InventoryEnv(batch_size=4, horizon=20))
        >>> observation, info = envs.reset(seed=0)
        >>> observation.shape, envs.step(envs.action_space.sample())[1].shape
        ((4, 2), (4,))
    """
    return _GymVectorEnv(_Simulation(env, flatten, reach))


class _Simulation:
    """Instances of an environment in the middle of an episode, with NumPy outside."""

    def __init__(self, env: DifferentiableEnv, flatten: str | None, reach: float) -> None:
        if not isinstance(env, DifferentiableEnv):
            raise TypeError(f"env must be a DifferentiableEnv, got {shown(env)}.")
        if flatten is not None:
            check_choice("flatten", flatten, FLAT)
        self.env, self.flatten = env, flatten
        self.instances, self.heads = env.batch_size.numel(), env.num_heads or 1
        choices = () if env.num_heads is None else (env.num_heads,)
        self.choices: tuple[int, ...] = choices
        far = check_float("reach", reach, minimum=0.0, strict=True) * env.action_scale
        self.low, self.high = _finite_ends(env, far)
        self.state: dict[str, Tensor] = {}

    def action_space(self) -> Any:
        env = self.env
        if self.flatten is not None:
            size = self.heads * (env.num_discrete if self.flatten == "argmax" else 1)
            return spaces.Box(-1.0, 1.0, (size + env.continuous_dim,), dtype=np.float32)
        low, high = (end.cpu().numpy() for end in _ends(env))
        choice = spaces.Discrete(env.num_discrete)
        if env.num_heads is not None:
            choice = spaces.MultiDiscrete([env.num_discrete] * env.num_heads)
        return spaces.Tuple([choice, spaces.Box(low, high, dtype=low.dtype.type)])

    def observation_space(self) -> Any:
        kind = np.float64 if self.env.float_dtype == torch.float64 else np.float32
        return spaces.Box(-np.inf, np.inf, (self.env.observation_dim,), dtype=kind)

    @torch.no_grad()
    def reset(self, which: np.ndarray | None = None, seed: int | None = None) -> None:
        """Begin episodes, of all instances or of some."""
        if seed is not None:
            self.env.set_seed(seed)
        fresh = self.env.fresh_state()
        if which is not None:
            mask = torch.as_tensor(which, device=self.env.device)

            def chosen(key: str, value: Tensor) -> Tensor:
                own = mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))
                return torch.where(own, value, self.state[key])

            fresh = {key: chosen(key, value) for key, value in fresh.items()}
        self.state = fresh

    @torch.no_grad()
    def step(self, action: Any) -> tuple[np.ndarray, np.ndarray]:
        """Advance all instances; return rewards and whether the episode is over, each ``(*B,)``."""
        env, noise = self.env, self.env.sample_noise(1, self.state)
        parts = self._parts(action)
        noise = noise.squeeze(len(env.batch_size))
        self.state, reward, over = env.advance(self.state, parts, noise)
        if over is None:
            over = torch.zeros_like(reward, dtype=torch.bool)
        return reward.squeeze(-1).double().cpu().numpy(), over.squeeze(-1).cpu().numpy()

    @torch.no_grad()
    def shown(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the observation, and the mask if there is one."""
        entries = {key: value.cpu().numpy() for key, value in self.env.show(self.state).items()}
        observation = entries.pop("observation").copy()
        return observation, {key: mask.astype(np.int8) for key, mask in entries.items()}

    def ends(self, over: Any) -> tuple[Any, Any]:
        """Return ``terminated`` and ``truncated``."""
        never = np.zeros_like(over)
        return (over, never) if self.env.horizon_terminates else (never, over)

    def _parts(self, action: Any) -> dict[str, Tensor]:
        """Return discrete and continuous action, the latter within the ends of the former."""
        env = self.env
        batch, place = tuple(env.batch_size), {"device": env.device}
        if self.flatten is None:
            discrete = torch.as_tensor(np.asarray(action[0]), dtype=torch.int64, **place)
            value = torch.as_tensor(np.asarray(action[1]), dtype=env.float_dtype, **place)
        else:
            given = torch.as_tensor(np.asarray(action), dtype=env.float_dtype, **place)
            first, share = given.split(
                [given.shape[-1] - env.continuous_dim, env.continuous_dim], -1
            )
            discrete = self._choice(first.reshape(*batch, self.heads, -1))
            value = self.low + (self.high - self.low) * (share.clamp(-1.0, 1.0) + 1.0) / 2.0
        parts = {
            "discrete": discrete.reshape((*batch, *self.choices)),
            "continuous": value.reshape((*batch, env.continuous_dim)),
        }
        env.check_action(TensorDict(parts, batch, device=env.device))
        return {**parts, "continuous": _within(env, *parts.values())}

    def _choice(self, entries: Tensor) -> Tensor:
        """Return the discrete action that flat entries ``(*B, H, ...)`` stand for, ``(*B, H)``."""
        number = self.env.num_discrete
        if self.flatten == "bin":
            share = (entries.squeeze(-1).clamp(-1.0, 1.0) + 1.0) / 2.0
            return (share * number).long().clamp_max(number - 1)
        mask = self.env.show(self.state).get(ACTION_MASK)
        if mask is not None:
            entries = entries.masked_fill(~mask.reshape(entries.shape), -torch.inf)
        return entries.argmax(-1)


class _GymEnv(gymnasium.Env):
    """A single environment; see :func:`as_gymnasium`."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, simulation: _Simulation) -> None:
        if simulation.instances != 1:
            raise ValueError(
                f"env must have one instance, got batch_size={tuple(simulation.env.batch_size)}; "
                "use as_vector_env for several."
            )
        self.simulation = simulation
        self.action_space = simulation.action_space()
        self.observation_space = simulation.observation_space()

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.simulation.reset(seed=seed)
        return self._shown()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, over = self.simulation.step(action)
        terminated, truncated = self.simulation.ends(bool(over.item()))
        observation, info = self._shown()
        return observation, float(reward.item()), bool(terminated), bool(truncated), info

    def _shown(self) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.simulation.shown()
        shape = (*self.simulation.choices, -1)  # without a batch of one
        return observation.reshape(-1), {key: mask.reshape(shape) for key, mask in info.items()}


class _GymVectorEnv(gymnasium.vector.VectorEnv):
    """The instances of an environment; see :func:`as_vector_env`."""

    def __init__(self, simulation: _Simulation) -> None:
        if len(simulation.env.batch_size) != 1:
            raise ValueError(
                f"env must have a batch size (B,), got {tuple(simulation.env.batch_size)}; give it "
                "batch_size=B."
            )
        self.simulation, self.num_envs = simulation, simulation.instances
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
        self.single_action_space = simulation.action_space()
        self.single_observation_space = simulation.observation_space()
        batched = gymnasium.vector.utils.batch_space
        self.action_space = batched(self.single_action_space, self.num_envs)
        self.observation_space = batched(self.single_observation_space, self.num_envs)
        self._over = np.zeros(self.num_envs, dtype=bool)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        which = None if options is None else options.get("reset_mask")
        self.simulation.reset(which, seed)
        self._over = np.zeros_like(self._over) if which is None else self._over & ~which
        return self._shown()

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        reward, over = self.simulation.step(actions)
        if self._over.any():
            self.simulation.reset(self._over)
            reward, over = np.where(self._over, 0.0, reward), over & ~self._over
        self._over = over
        terminated, truncated = self.simulation.ends(over)
        observation, info = self._shown()
        return observation, reward, terminated.copy(), truncated.copy(), info

    def _shown(self) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.simulation.shown()
        there = {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in info}
        return observation, {**info, **there}


def _ends(env: DifferentiableEnv) -> list[Tensor]:
    """Return the ends of each coordinate, ``(n,)``, infinite where there is none."""
    return [
        torch.as_tensor(none if end is None else end)
        .to(env.action_scale)
        .expand(env.continuous_dim)
        for end, none in zip(env.continuous_bounds, (-torch.inf, torch.inf), strict=True)
    ]


def _finite_ends(env: DifferentiableEnv, far: Tensor) -> tuple[Tensor, Tensor]:
    low, high = _ends(env)
    lower = torch.where(low.isfinite(), low, high.nan_to_num(posinf=0.0) - far)
    upper = torch.where(high.isfinite(), high, low.nan_to_num(neginf=0.0) + far)
    return lower, upper


def _within(env: DifferentiableEnv, discrete: Tensor, value: Tensor) -> Tensor:
    """Move a continuous action to the ends beside its discrete one, ``(*B, n)``."""
    bounds = env.branch_bounds
    if bounds is None:
        return value
    low, high = (torch.as_tensor(end).to(value) for end in bounds[:2])
    if bounds.of_total:
        total = value.sum(-1, keepdim=True)
        aim = total.clamp(low[discrete].unsqueeze(-1), high[discrete].unsqueeze(-1))
        spread = env.action_scale / env.action_scale.sum()
        return torch.where(total > 0.0, value * (aim / total), aim * spread)
    if env.num_heads is None:
        return value.clamp(low[discrete], high[discrete])
    rows = torch.arange(env.num_heads, device=value.device)
    ends = (end[rows, discrete].reshape(value.shape) for end in (low, high))
    return value.clamp(*ends)
