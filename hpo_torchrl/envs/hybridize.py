"""Problems that jump in their continuous action, as hybrid ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, TensorSpec
from torchrl.envs import EnvBase, Transform, TransformedEnv

from hpo_torchrl.core.pieces import Breakpoint, Gap, Pieces
from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.envs.action_pieces import ActionPieces
from hpo_torchrl.envs.differentiable import Action, DifferentiableEnv, State
from hpo_torchrl.envs.jumps import find_jumps
from hpo_torchrl.envs.specs import set_hybrid_specs


def hybridize(
    env: EnvBase,
    breakpoints: Iterable[Breakpoint | float] | None = None,
    *,
    intervals: Sequence[Any] | None = None,
    gaps: Iterable[Gap] = (),
    per_item: bool | None = None,
    check: bool = True,
) -> HybridizedEnv | TransformedEnv:
    """Make a hybrid problem of one that jumps at known values of its continuous action.

    The discrete action picks the piece between two breakpoints, the continuous action (in the
    original's own units) moves inside it. Executed is the original's own step, so that reward and
    next state are the original's, and so is the gradient inside every piece. A continuous action
    outside the piece of its option is moved to that piece's end.

    Args:
        env: the original. A :class:`DifferentiableEnv` stays one (an option of its own, if it has
            several, is combined with the piece: option = own * pieces + piece); any other
            :class:`~torchrl.envs.EnvBase` gets a :class:`PiecewiseAction` transform.
        breakpoints: where it jumps, ascending; see :class:`~hpo_torchrl.envs.Breakpoint` for
            the side that a point belongs to (bare numbers: the right). ``None`` asks the
            environment (``env.breakpoints()`` and ``env.gaps()``).
        intervals: the options themselves instead: numbers, and pairs ``(low, high)``; see
            :meth:`~hpo_torchrl.envs.Pieces.listed`.
        gaps: intervals not worth an option.
        per_item: cut every coordinate by itself, one discrete head each, instead of their sum;
            ``None`` is as the environment says (``env.cut_per_item``), else their sum.
        check: look for jumps *inside* the pieces (:func:`~hpo_torchrl.envs.find_jumps`).

    Raises:
        TypeError: the environment's action is no continuous one.
        ValueError: breakpoints are out of order or outside the action's range, intervals are empty
            or overlap, or reward or next state jump inside a piece.

    Examples:
        >>> from hpo_torchrl.problems import ContinuousInventoryEnv
        >>> from hpo_torchrl.envs import hybridize
        >>> from hpo_torchrl.problems.inventory.features import AllUnitsDiscount, FixedCost
        >>> plain = ContinuousInventoryEnv(features=[FixedCost(64.0)], batch_size=4)
        >>> print(hybridize(plain).pieces)
        action: {0} (0, inf)
        >>> sales = [FixedCost(64.0), AllUnitsDiscount([50.0], [1.0, 0.9])]
        >>> print(hybridize(ContinuousInventoryEnv(features=sales, batch_size=4)).pieces)
        action: {0} (0, 50) [50, inf)
    """
    differentiable = isinstance(env, DifferentiableEnv)
    if breakpoints is None and intervals is None:
        if not hasattr(env, "breakpoints"):
            raise ValueError(
                f"hybridize needs breakpoints=[...] or intervals=[...]: {type(env).__name__} does "
                "not declare its own (a method breakpoints())."
            )
        breakpoints, gaps = env.breakpoints(), [*env.gaps(), *gaps]
    if breakpoints is not None and intervals is not None:
        raise ValueError("hybridize takes breakpoints or intervals, got both; leave one out.")
    if differentiable:
        low, high = env.continuous_bounds
        n, dtype = env.continuous_dim, env.float_dtype
    else:
        low, high, n, dtype = _box(env)
    if per_item is None:
        per_item = getattr(env, "cut_per_item", False)
    if intervals is not None:
        cut = Pieces.listed(intervals).without(gaps)
    else:
        cut = Pieces.cut(breakpoints or (), low=low, high=high, gaps=gaps)
    pieces = ActionPieces([cut] * n if per_item else cut, n, dtype=dtype, device=env.device)
    if not differentiable:
        return TransformedEnv(env, PiecewiseAction(pieces))
    hybrid = HybridizedEnv(env, pieces)
    if check:
        jumps = find_jumps(hybrid)
        if jumps:
            raise ValueError(
                f"{type(env).__name__} still jumps inside a piece of {pieces}: {jumps[0]}. Add "
                "that value to the breakpoints (check=False skips this test)."
            )
    return hybrid


class HybridizedEnv(DifferentiableEnv):
    """A :class:`DifferentiableEnv` with the pieces of its continuous action as options.

    Made by :func:`hybridize`. States, observations, noise and seeds are the original's.

    Args:
        original: the environment to wrap; it is used, not copied.
        pieces: the options of its continuous action.

    Attributes:
        original: the wrapped environment.
        pieces: the options.
    """

    def __init__(self, original: DifferentiableEnv, pieces: ActionPieces) -> None:
        if original.num_heads is not None or (pieces.per_item and original.num_discrete > 1):
            raise ValueError(
                "Pieces per item cannot be combined with options that the environment has already "
                f"({original.num_discrete}); cut the total (per_item=False)."
            )
        batch = len(original.batch_size)
        shapes = {
            name: original.state_spec[name].shape[batch:]
            for name in original.state_names
            if name != "step"
        }
        observation_dim = original.observation_spec["observation"].shape[-1]
        super().__init__(
            num_discrete=original.num_discrete * pieces.num_discrete,
            num_heads=pieces.continuous_dim if pieces.per_item else None,
            continuous_dim=original.continuous_dim,
            continuous_bounds=original.continuous_bounds,
            branch_bounds=pieces.repeated(original.num_discrete),
            action_scale=original.action_scale,
            state_shapes=shapes,
            observation_dim=observation_dim,
            noise_shape=original.noise_shape,
            horizon=original.horizon,
            horizon_terminates=original.horizon_terminates,
            batch_size=original.batch_size,
            device=original.device,
            dtype=original.float_dtype,
            seed=0,
        )
        self.original, self.pieces = original, pieces
        self.cost_units, self.rng = original.cost_units, original.rng
        if self.has_action_mask:
            set_hybrid_specs(self, shapes, observation_dim)

    @property
    def has_action_mask(self) -> bool:
        """Whether the original's options depend on the state."""
        original = getattr(self, "original", None)
        return original is not None and original.has_action_mask

    def allowed(self, state: State) -> Tensor | None:
        """Return the original's mask, of its option with every piece."""
        mask = self.original.allowed(state)
        return None if mask is None else mask.repeat_interleave(self.pieces.num_discrete, -1)

    def executed(self, action: Action) -> dict[str, Tensor]:
        """Return the original's action: its own option, and the continuous action in its piece."""
        option = action["discrete"]
        if self.original.num_discrete == 1:
            own, piece = torch.zeros(self.batch_size, dtype=torch.int64, device=self.device), option
        else:
            own, piece = option // self.pieces.num_discrete, option % self.pieces.num_discrete
        return {"discrete": own, "continuous": self.pieces.project(piece, action["continuous"])}

    def encode(self, action: Action) -> dict[str, Tensor]:
        """Return the hybrid action that does what an action of the original does.

        Args:
            action: ``"continuous"`` ``(*B, n)`` and, if the original has options, ``"discrete"``.

        Raises:
            ValueError: a value is not offered.
        """
        piece, continuous = self.pieces.encode(action["continuous"])
        if self.original.num_discrete > 1:
            piece = action["discrete"] * self.pieces.num_discrete + piece
        return {"discrete": piece, "continuous": continuous}

    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        """Take the original's step with the executed action."""
        return self.original.dynamics(state, self.executed(action), noise)

    def observe(self, state: State) -> Tensor:
        """Return the original's observation."""
        return self.original.observe(state)

    def initial_state(self) -> dict[str, Tensor]:
        """Draw the original's initial states."""
        return self.original.initial_state()

    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Draw the original's noise."""
        return self.original.draw_noise(num_steps, state)

    def reference(self, test: Test) -> Reference:
        """Return the original's: its optimum is that of the same problem."""
        return self.original.reference(test)

    def heuristic_choice(self, observation: Tensor) -> Tensor:
        """Return the option that holds the original's rough action."""
        if not hasattr(self.original, "rough_action"):
            raise NotImplementedError(f"{type(self.original).__name__} has no rule of thumb.")
        return self.encode(self.original.rough_action(observation))["discrete"]

    def to(self, device: torch.device | str | int) -> HybridizedEnv:
        """Move both environments, with one generator."""
        self.original.to(device)
        self.pieces.to(torch.device(device))
        if self.branch_bounds is not None:
            self.branch_bounds = self.pieces.repeated(self.original.num_discrete)
        super().to(device)
        self.original.rng = self.rng
        return self


class PiecewiseAction(Transform):
    """Let a TorchRL environment with one continuous action be driven by a hybrid one.

    The inverse transform: ``("action", "discrete")`` picks a piece, ``("action", "continuous")`` a
    value in it, and the environment gets that value under its own key ``"action"``. Gradients pass
    inside the pieces, if the environment keeps them.

    Args:
        pieces: the options.

    Examples:
        >>> from torchrl.envs import GymEnv, TransformedEnv  # doctest: +SKIP
        >>> env = hybridize(GymEnv("Pendulum-v1"), [0.0])  # doctest: +SKIP
    """

    def __init__(self, pieces: ActionPieces) -> None:
        super().__init__(in_keys_inv=["action"], out_keys_inv=["action"])
        self.pieces = pieces

    @property
    def branch_bounds(self) -> Any:
        """Ends of the continuous action by option."""
        return self.pieces.bounds

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        option = tensordict.get(("action", "discrete"))
        value = self.pieces.project(option, tensordict.get(("action", "continuous")))
        return tensordict.set("action", value)

    def transform_input_spec(self, input_spec: TensorSpec) -> TensorSpec:
        """Replace the continuous action by the hybrid one."""
        actions = input_spec["full_action_spec"]
        continuous = actions["action"]
        batch = continuous.shape[:-1]
        heads = (self.pieces.continuous_dim,) if self.pieces.per_item else ()
        discrete = Categorical(
            self.pieces.num_discrete,
            shape=(*batch, *heads),
            dtype=torch.int64,
            device=continuous.device,
        )
        actions["action"] = Composite(
            discrete=discrete, continuous=continuous.clone(), shape=batch, device=continuous.device
        )
        return input_spec


def _box(env: EnvBase) -> tuple[float | None, float | None, int, torch.dtype]:
    """Bounds, dimension and dtype of an environment's only, continuous action."""
    spec = env.full_action_spec.get("action", None)
    if spec is None or isinstance(spec, Composite) or not spec.dtype.is_floating_point:
        raise TypeError(
            "hybridize needs an environment whose only action is a continuous one under 'action', "
            f"got {env.full_action_spec}."
        )
    low = high = None
    if isinstance(spec, Bounded):
        low, high = float(spec.space.low.min()), float(spec.space.high.max())
        if bool((spec.space.low != low).any()) or bool((spec.space.high != high).any()):
            raise ValueError(
                "hybridize needs the same bounds for every coordinate of the action; rescale it."
            )
    return low, high, spec.shape[-1], spec.dtype
