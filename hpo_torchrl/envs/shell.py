"""The side of an environment that TorchRL sees: specs, steps, resets and a generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from hpo_torchrl.core.categorical import ACTION_MASK
from hpo_torchrl.core.checks import check_finite, shown
from hpo_torchrl.core.moving import moved_to
from hpo_torchrl.envs.contract import check_entries

# Random actions are drawn from the spec: a half-open range is cut this many action scales away.
_HALF_OPEN_SPAN = 100.0


def set_specs(
    env: Any,
    observation_dim: int,
    continuous: Any,
    heads: tuple[int, ...] = (),
    state: Mapping[str, Any] | None = None,
) -> None:
    """Set the specs of an environment with hybrid actions, for its batch and device.

    Args:
        env: the environment, which has ``num_discrete``, ``has_action_mask`` and ``float_dtype``.
        observation_dim: length of the observation.
        continuous: spec of the continuous action of an instance.
        heads: ``(H,)``, or ``()`` for a single choice.
        state: specs of the state of an instance, which is observed too; ``None`` where it is the
            environment's own.
    """
    real: dict[str, Any] = {"dtype": env.float_dtype}
    observation = {**(state or {}), "observation": Unbounded((observation_dim,), **real)}
    if env.has_action_mask:
        observation[ACTION_MASK] = Binary(shape=(*heads, env.num_discrete), dtype=torch.bool)
    discrete = Categorical(env.num_discrete, shape=heads, dtype=torch.int64)
    end = Categorical(2, shape=(1,), dtype=torch.bool)
    specs: dict[str, Mapping[str, Any]] = {
        "observation": observation,
        "action": {"action": Composite({"discrete": discrete, "continuous": continuous})},
        "reward": {"reward": Unbounded((1,), **real)},
        "done": {key: end.clone() for key in ("done", "terminated", "truncated")},
    }
    if state is not None:
        specs = {"state": state, **specs}
    for name, entries in specs.items():
        spec = Composite(entries).expand(env.batch_size)
        setattr(env, f"full_{name}_spec", spec.to(env.device) if env.device else spec)


class Shell(EnvBase):
    """The TorchRL side of a :class:`DifferentiableEnv`, which has the functions that it calls."""

    _supports_set_state = True
    rng: torch.Generator
    _checked = False  # whether the equations have been looked at

    def _set_specs(self) -> None:
        """Set the specs from sizes, bounds, device and dtype."""
        real = {"dtype": self.float_dtype}
        heads = () if self.num_heads is None else (self.num_heads,)
        state = {key: Unbounded(tuple(shape), **real) for key, shape in self.state_shapes.items()}
        state["step"] = Unbounded((1,), dtype=torch.int64)
        batch = tuple(self.batch_size)
        self._shapes = {"discrete": batch + heads, "continuous": (*batch, self.continuous_dim)}
        set_specs(self, self.observation_dim, self._continuous_spec(), heads, state)

    def _continuous_spec(self) -> Any:
        span = _HALF_OPEN_SPAN * self.action_scale.cpu()
        if self.continuous_bounds == (None, None):
            return Unbounded(span.shape, dtype=span.dtype)
        ends = zip(self.continuous_bounds, (-torch.inf, torch.inf), strict=True)
        low, high = (torch.as_tensor(none if end is None else end).to(span) for end, none in ends)
        low, high = low.expand_as(span), high.expand_as(span)
        lower = torch.where(low.isfinite(), low, high.nan_to_num(posinf=0.0) - span)
        upper = torch.where(high.isfinite(), high, low.nan_to_num(neginf=0.0) + span)
        return Bounded(lower, upper, shape=span.shape, dtype=span.dtype)

    def load_noise(self, noise: Tensor | None) -> None:
        """Let the coming calls of :meth:`step` consume ``noise``; ``None`` forgets what is left.

        Raises:
            ValueError: the noise has another shape than ``sample_noise`` gives it.
        """
        time = len(self.batch_size)
        if noise is not None:
            shape = getattr(noise, "shape", ())
            self.check_noise(noise, shape[time] if len(shape) > time else "T")
            check_finite("noise", noise)
        self._loaded_noise = [] if noise is None else list(noise.unbind(time))[::-1]

    def check_noise(self, noise: Tensor, num_steps: Any) -> Tensor:
        """Return the noise of a rollout if it has the right shape.

        Raises:
            ValueError: it has another one; the message says how to draw it.
        """
        expected = (*self.batch_size, num_steps, *self.noise_shape)
        found = tuple(getattr(noise, "shape", ()))
        if found != expected:
            raise ValueError(
                f"{type(self).__name__}: noise must have shape (*B, T, *noise_shape) = {expected}, "
                f"got {found or shown(noise)}; draw it with sample_noise(T), let draw_noise return "
                "it, or declare another noise_shape in super().__init__."
            )
        return noise

    def check_action(self, action: Any) -> Any:
        """Return an action that :meth:`step` was given, if it is one.

        Masks are not looked at: TorchRL draws random actions of the spec without them. Finite
        values beyond the bounds, as samples of a normal distribution may be, are moved to the end.

        Raises:
            ValueError: a part is missing, of another shape or dtype, no discrete action that there
                is, NaN or infinite.
        """
        parts = []
        for name, shape in self._shapes.items():
            value = action.get(name, None) if isinstance(action, TensorDictBase) else None
            whole, dtype = name == "discrete", getattr(value, "dtype", None)
            if value is None or value.shape != shape or whole != (dtype == torch.int64):
                raise ValueError(
                    f"{type(self).__name__}.step: ('action', {name!r}) must be "
                    f"{torch.int64 if whole else self.float_dtype} of shape {tuple(shape)}, got "
                    + ("none." if value is None else f"{dtype} of shape {tuple(value.shape)}.")
                )
            parts.append(value)
        discrete, continuous = parts
        chosen, finite = discrete.clamp(0, self.num_discrete - 1), continuous.isfinite()
        if not (torch.equal(chosen, discrete) and bool(finite.all())):
            lost = [*discrete[chosen != discrete].tolist(), *continuous[~finite].tolist()]
            raise ValueError(
                f"{type(self).__name__}.step: ('action', 'discrete') must be one of 0, ..., "
                f"{self.num_discrete - 1} and ('action', 'continuous') finite, got {lost[0]}."
            )
        return action

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        state = {key: tensordict.get(key, None) for key in self.state_names}
        if missing := [key for key, value in state.items() if value is None]:
            raise KeyError(
                f"{type(self).__name__}.step needs {', '.join(map(repr, missing))} of the state, "
                "which travels in the tensordict: leave out the transform that takes it out "
                "(ExcludeTransform, SelectTransform, RenameTransform), or pass on what reset and "
                "step_mdp return."
            )
        if self._loaded_noise:
            noise = self._loaded_noise.pop()
        else:
            noise = self.sample_noise(1, state).squeeze(len(self.batch_size))
        action = self.check_action(tensordict.get("action"))
        next_state, reward, over = self.advance(state, action, noise)
        if over is None:
            over = torch.zeros_like(reward, dtype=torch.bool)
        return self._pack({**next_state, "reward": reward}, over)

    def _reset(
        self, tensordict: TensorDictBase | None = None, *, set_state: bool = False, **kwargs
    ) -> TensorDictBase:
        given = {} if tensordict is None else dict(tensordict.items())
        state = self._checked_state(given) if set_state else self.fresh_state(given.get("_reset"))
        return self._pack(state, torch.zeros_like(state["step"], dtype=torch.bool))

    def _checked_state(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.check_contract()
        name, known = "reset(set_state=True)", self.state_names
        state = {"step": self._step_zero(), **{key: given[key] for key in known if key in given}}
        check_entries(name, state, self.full_state_spec.zero(), "Or reset without set_state.")
        for key, value in state.items():
            check_finite(f"{name}: {key!r}", value)
        return state

    def _step_zero(self) -> Tensor:
        return torch.zeros((*self.batch_size, 1), dtype=torch.int64, device=self.device)

    def _pack(self, entries: Mapping[str, Tensor], over: Tensor) -> TensorDictBase:
        never = torch.zeros_like(over)
        terminated, truncated = (over, never) if self.horizon_terminates else (never, over)
        ends = {"done": over, "terminated": terminated, "truncated": truncated}
        return TensorDict(
            {**entries, **self.show(entries), **ends},
            batch_size=self.batch_size,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self.rng.manual_seed(seed)
        self.load_noise(None)

    def to(self, device: torch.device | str | int) -> Any:
        """Move the environment; its generator goes on from a seed drawn from the old one."""
        device = torch.device(device)
        if device == self.device:
            return self
        for name, value in list(vars(self).items()):
            if (moved := moved_to(device, value)) is not value:
                setattr(self, name, moved)
        seed = torch.randint(2**62, (), generator=self.rng, device=self.rng.device)
        super().to(device)
        self.rng = torch.Generator(device=device)
        self.set_seed(int(seed))
        self._checked = False  # a tensor may have stayed behind
        return self
