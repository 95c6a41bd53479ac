"""The spaces of an environment without its equations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchrl.envs import EnvBase

from hpo_torchrl.core.categorical import ACTION_MASK
from hpo_torchrl.core.pieces import BranchBounds
from hpo_torchrl.envs.differentiable import Action, DifferentiableEnv, State


class Spaces(DifferentiableEnv):
    """What a policy needs to know of an environment object that a run was trained on.

    A run on an environment that was built elsewhere cannot build it again. It keeps its spaces
    instead, from which its policy can be built: it then acts on observations, but nothing can be
    simulated.

    Args:
        original: name of the environment's class, for messages.
        masked: whether observations come with an ``"action_mask"``.
        action_scale: see :class:`DifferentiableEnv`, as a number or a list.
        branch_bounds: the fields of :class:`BranchBounds`, as lists.
        sizes: further arguments of :class:`DifferentiableEnv`.
    """

    def __init__(
        self,
        *,
        original: str = "",
        masked: bool = False,
        action_scale: Sequence[float] | float = 1.0,
        branch_bounds: Mapping[str, Any] | None = None,
        **sizes,
    ) -> None:
        self.original, self.masked = original, masked
        place = {"dtype": sizes.get("dtype", torch.float32), "device": sizes.get("device")}
        bounds = {key: value for key, value in (branch_bounds or {}).items() if key != "of_total"}
        super().__init__(
            state_shapes={},
            action_scale=action_scale,
            branch_bounds=BranchBounds(
                **{key: torch.tensor(value, **place) for key, value in bounds.items()},
                of_total=branch_bounds["of_total"],
            )
            if branch_bounds
            else None,
            **sizes,
        )

    @staticmethod
    def of(env: EnvBase) -> dict[str, Any]:
        """Return the arguments, as plain values, that describe an environment."""
        inner = getattr(env, "original", getattr(env, "base_env", env))
        observation = env.observation_spec["observation"]
        actions = env.full_action_spec
        discrete, continuous = actions["action", "discrete"], actions["action", "continuous"]
        heads = discrete.shape[len(continuous.shape) - 1 :]
        scale, bounds = (getattr(env, key, None) for key in ("action_scale", "branch_bounds"))
        ends = getattr(env, "continuous_bounds", None) or (None, None)
        return {
            "original": type(inner).__name__,
            "num_discrete": int(discrete.space.n),
            "num_heads": int(heads[0]) if heads else None,
            "continuous_dim": continuous.shape[-1],
            "continuous_bounds": [None if end is None else float(end) for end in ends],
            "branch_bounds": None
            if bounds is None
            else {key: _plain(value) for key, value in bounds._asdict().items()},
            "action_scale": 1.0 if scale is None else _plain(scale),
            "observation_dim": observation.shape[-1],
            "masked": ACTION_MASK in list(env.observation_spec.keys()),
        }

    @property
    def has_action_mask(self) -> bool:
        """Whether observations come with a mask."""
        return self.masked

    def missing(self) -> NotImplementedError:
        """Return the error that says what is missing."""
        return NotImplementedError(
            f"This run was trained on a {self.original} that was built in Python, so its folder "
            "holds no equations. Give the environment: load_run(folder, env=...), "
            "load_policy(folder, env=...) or train(env, folder=..., resume=True)."
        )

    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        """Raise a ``NotImplementedError``: there are no equations."""
        raise self.missing()

    def observe(self, state: State) -> Tensor:
        """Return zeros."""
        return (
            state["step"].new_zeros(self.observation_spec["observation"].shape).to(self.float_dtype)
        )

    def allowed(self, state: State) -> Tensor | None:
        """Allow everything."""
        if not self.masked:
            return None
        return state["step"].new_ones(self.observation_spec[ACTION_MASK].shape).bool()

    def initial_state(self) -> dict[str, Tensor]:
        """Return a state without entries."""
        return {}

    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Raise a ``NotImplementedError``: there are no equations."""
        raise self.missing()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
