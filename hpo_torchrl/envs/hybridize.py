"""Problems that jump in their continuous action, as hybrid ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Bounded, Categorical, Composite, TensorSpec
from torchrl.envs import EnvBase, Transform, TransformedEnv

from hpo_torchrl.core.checks import check_float, checked
from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.envs.certificate import refuse_jumps
from hpo_torchrl.envs.differentiable import Action, DifferentiableEnv, State
from hpo_torchrl.envs.pieces import ActionPieces, Breakpoint, Gap, Pieces
from hpo_torchrl.envs.wrapped import WrappedEnv


@checked
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
    original's own units) moves inside it. The step is the original's own, so that reward and next
    state are the original's, and so is the gradient inside every piece. A continuous action outside
    the piece that was picked is moved to that piece's end.

    Args:
        env: the original. A :class:`DifferentiableEnv` stays one (its own discrete action, if it
            has several, is combined with the piece: discrete = own * pieces + piece); any other
            :class:`~torchrl.envs.EnvBase` gets a :class:`PiecewiseAction` transform.
        breakpoints: where it jumps; see :class:`~hpo_torchrl.envs.Breakpoint` for the
            side that a point belongs to (bare numbers: the right). ``None`` asks the
            environment (``env.breakpoints()`` and ``env.gaps()``).
        intervals: the pieces themselves instead: numbers, and pairs ``(low, high)``; see
            :meth:`~hpo_torchrl.envs.Pieces.listed`.
        gaps: intervals that need no discrete action.
        per_item: cut every coordinate by itself, one discrete head each, instead of their sum;
            ``None`` is as the environment says (``env.cut_per_item``), else their sum.
        check: look for jumps *inside* the pieces (:func:`~hpo_torchrl.envs.find_jumps`).

    Raises:
        TypeError: the environment's action is no continuous one.
        ValueError: breakpoints are outside the action's range, intervals are empty or overlap,
            reward or next state jump inside a piece, or the environment has pieces.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.envs import Breakpoint, hybridize
        >>> from hpo_torchrl.problems.inventory.order_costs import FixedCost
        >>> plain = InventoryEnv(features=[FixedCost(64.0)], hybrid=False, batch_size=4)
        >>> print(hybridize(plain).pieces)
        action: {0} (0, inf)
        >>> print(hybridize(plain, [Breakpoint(0.0, "alone"), 50.0]).pieces)
        action: {0} (0, 50) [50, inf)
    """
    if getattr(env, "pieces", None) is not None:
        raise ValueError(
            f"{type(env).__name__} is hybrid already, with the pieces {env.pieces}; hybridize its "
            "original form instead (env.original)."
        )
    if breakpoints is not None and intervals is not None:
        raise ValueError("hybridize takes breakpoints or intervals, got both; leave one out.")
    if breakpoints is None and intervals is None:
        if not hasattr(env, "breakpoints"):
            raise ValueError(
                f"hybridize needs breakpoints=[...] or intervals=[...]: {type(env).__name__} does "
                "not declare its own (a method breakpoints())."
            )
        breakpoints, gaps = env.breakpoints(), [*env.gaps(), *gaps]
    if isinstance(env, DifferentiableEnv):
        bounds: Sequence[Any] = env.continuous_bounds
        n, dtype = env.continuous_dim, env.float_dtype
    else:
        bounds, n, dtype = _box(env)
    per_item = getattr(env, "cut_per_item", False) if per_item is None else per_item
    cut: Pieces | list[Pieces]
    if intervals is not None:
        cut = Pieces.listed(intervals).without(gaps)
    else:
        cut = _cut(breakpoints or (), list(gaps), bounds, n, per_item)
    pieces = ActionPieces(
        cut,
        n,
        per_item=per_item,
        choices=getattr(env, "num_discrete", 1),
        dtype=dtype,
        device=env.device,
    )
    if not isinstance(env, DifferentiableEnv):
        return TransformedEnv(env, PiecewiseAction(pieces))
    hybrid = HybridizedEnv(env, pieces)
    if check:
        refuse_jumps(hybrid, "check=False skips this test")
    return hybrid


class HybridizedEnv(WrappedEnv):
    """A :class:`DifferentiableEnv` whose discrete action picks a piece of its continuous action.

    Made by :func:`hybridize`. States, observations, noise and seeds are the original's.

    Args:
        original: the environment to wrap; it is used, not copied.
        pieces: the pieces of its continuous action.

    Attributes:
        original: the wrapped environment.
        pieces: the pieces.
    """

    def __init__(self, original: DifferentiableEnv, pieces: ActionPieces) -> None:
        if original.num_heads is not None:
            raise ValueError(
                f"An environment with {original.num_heads} discrete choices in a step cannot be "
                "hybridized; cut an environment with a single choice."
            )
        super().__init__(
            original,
            num_discrete=original.num_discrete * pieces.num_discrete,
            num_heads=pieces.num_heads,
            branch_bounds=pieces.bounds,
        )
        self.pieces, self.rng = pieces, original.rng

    def executed(self, action: Action) -> Action:
        """Return the original's choice, and its continuous action moved into the piece."""
        return self.pieces.executed(action)

    def allowed(self, state: State) -> Tensor | None:
        """Return the original's mask, of its discrete action with every piece."""
        mask = self.original.allowed(state)
        return None if mask is None else mask.repeat_interleave(self.pieces.num_discrete, -1)

    def sample_noise(self, num_steps: int, state: State | None = None) -> Tensor:
        """Draw the original's noise of a whole rollout."""
        return self.original.sample_noise(num_steps, state)

    def reference(self, test: Test) -> Reference:
        """Return the original's: its optimum is that of the same problem."""
        return self.original.reference(test)

    def rules(self) -> dict[str, Callable[[], nn.Module]]:
        """Return the original's rules, in hybrid actions."""

        def encoded(discrete: Tensor, continuous: Tensor) -> tuple[Tensor, ...]:
            action = {"discrete": discrete, "continuous": continuous}
            return tuple(self.pieces.encoded(action).values())

        def hybrid(rule: Callable[[], nn.Module]) -> nn.Module:
            keys = [("action", "discrete"), ("action", "continuous")]
            return TensorDictSequential(rule(), TensorDictModule(encoded, keys, keys))

        return {name: partial(hybrid, rule) for name, rule in self.original.rules().items()}

    def describe(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Let the original describe the policy, whose actions are hybrid."""
        return self.original.describe(*args, **kwargs)

    def heuristic_choice(self, observation: Tensor) -> Tensor:
        """Return the discrete action of what the original's ``heuristic_action`` does.

        That is an optional method of the original, from an observation to its own action.
        """
        if not hasattr(self.original, "heuristic_action"):
            raise NotImplementedError(
                f"{type(self.original).__name__} has no method heuristic_action(observation)."
            )
        return self.pieces.encoded(self.original.heuristic_action(observation))["discrete"]

    def to(self, device: torch.device | str | int) -> HybridizedEnv:
        """Move both environments, with one generator."""
        super().to(device)
        self.branch_bounds = self.pieces.to(torch.device(device)).bounds
        self.original.rng = self.rng
        return self


class PiecewiseAction(Transform):
    """Let a TorchRL environment with one continuous action be driven by a hybrid one.

    ``("action", "discrete")`` picks a piece, ``("action", "continuous")`` a
    value in it, and the environment gets that value under its own key ``"action"``. Gradients pass
    inside the pieces, if the environment keeps them.

    Args:
        pieces: the pieces.

    Examples:
        >>> from torchrl.envs import GymEnv, TransformedEnv  # doctest: +SKIP
        >>> env = hybridize(GymEnv("Pendulum-v1"), [0.0])  # doctest: +SKIP
    """

    def __init__(self, pieces: ActionPieces) -> None:
        super().__init__(in_keys_inv=["action"], out_keys_inv=["action"])
        self.pieces = pieces

    @property
    def branch_bounds(self) -> Any:
        """Ends of the continuous action by discrete action."""
        return self.pieces.bounds

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = self.pieces.executed(tensordict.get("action"))
        return tensordict.set("action", action["continuous"])

    def transform_input_spec(self, input_spec: TensorSpec) -> TensorSpec:
        """Replace the continuous action by the hybrid one."""
        actions = input_spec["full_action_spec"]
        continuous, heads = actions["action"], self.pieces.num_heads
        batch, place = continuous.shape[:-1], {"device": continuous.device}
        shape = batch if heads is None else (*batch, heads)
        actions["action"] = Composite(
            discrete=Categorical(self.pieces.num_discrete, shape, dtype=torch.int64, **place),
            continuous=continuous.clone(),
            shape=batch,
            **place,
        )
        return input_spec


def _cut(
    breakpoints: Iterable[Any], gaps: Sequence[Gap], bounds: Sequence[Any], n: int, per_item: bool
) -> Pieces | list[Pieces]:
    """Cut a range at breakpoints, or that of each coordinate at those within it.

    Raises:
        ValueError: the sum over coordinates is to be cut, whose ends differ; or a breakpoint is
            within none.
    """
    exact: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    each = [
        [None] * n if end is None else torch.as_tensor(end, **exact).expand(n).tolist()
        for end in bounds
    ]
    ranges = list(zip(*each, strict=True))
    if len({*ranges}) == 1:
        low, high = ranges[0]
        return Pieces.cut(breakpoints, low=low, high=high).without(gaps)
    if not per_item:
        raise ValueError(
            "hybridize cuts the sum over coordinates, which needs the same bounds for all of them, "
            f"got {ranges}; cut each coordinate by itself (per_item=True), or rescale the action."
        )
    points = []
    for entry in breakpoints:
        point = Breakpoint(*entry) if isinstance(entry, (tuple, list)) else Breakpoint(entry)
        points.append(point._replace(at=check_float("a breakpoint", point.at)))
    cuts, used = [], set()
    for low, high in ranges:

        def within(at: float, low: Any = low, high: Any = high) -> bool:
            return (low is None or low <= at) and (high is None or at <= high)

        own = [point for point in points if within(point.at)]
        used |= {*own}
        between = [gap for gap in gaps if within(gap[0]) and within(gap[1])]
        cuts.append(Pieces.cut(own, low=low, high=high).without(between))
    if lost := [point.at for point in points if point not in used]:
        raise ValueError(f"Each breakpoint must be within some of {ranges}, got {lost}.")
    return cuts


def _box(env: EnvBase) -> tuple[Sequence[Any], int, torch.dtype]:
    """Bounds, dimension and dtype of an environment's only, continuous action."""
    spec = env.full_action_spec.get("action", None)
    if spec is None or isinstance(spec, Composite) or not spec.dtype.is_floating_point:
        raise TypeError(
            "hybridize needs an environment whose only action is a continuous one under 'action', "
            f"got {env.full_action_spec}."
        )
    size = spec.shape[-1]
    if not isinstance(spec, Bounded):
        return (None, None), size, spec.dtype
    low, high = (end.reshape(-1, size) for end in (spec.space.low, spec.space.high))
    if bool(((low != low[:1]) | (high != high[:1])).any()):
        raise ValueError(
            "hybridize needs the same bounds for every instance of the batch; rescale the action."
        )
    return (low[0], high[0]), size, spec.dtype
