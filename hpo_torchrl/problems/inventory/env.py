"""Inventory control: what to order, and when, under random demand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo_torchrl.core.checks import (
    check_bool,
    check_choice,
    check_dtype,
    check_float,
    check_int,
    check_range,
    check_sizes,
    per_item,
)
from hpo_torchrl.core.pieces import Breakpoint, Gap, Pieces
from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.envs.action_pieces import ActionPieces
from hpo_torchrl.envs.differentiable import Action, DifferentiableEnv, State
from hpo_torchrl.envs.jumps import refuse_jumps
from hpo_torchrl.problems.inventory.demand import Demand, make_demand
from hpo_torchrl.problems.inventory.demand_file import read_record
from hpo_torchrl.problems.inventory.features import (
    FEATURES,
    Feature,
    FixedCost,
    LostSales,
    MinimumOrder,
    Suppliers,
    breakpoints_of,
    cuts_items,
    make_features,
    that_override,
)
from hpo_torchrl.problems.inventory.picture import compare_on_record, describe_inventory
from hpo_torchrl.problems.inventory.record import Record
from hpo_torchrl.problems.inventory.reference import (
    inventory_reference,
    recorded_reference,
    variant_reference,
)
from hpo_torchrl.problems.inventory.rules import (
    R_S_rule,
    order_up_to_rule,
    recorded_policy,
    s_S_rule,
)

INITIAL_STATES = ("empty", "random", "stationary")
# Where holding is almost free the economic interval has no end; a start has to have one.
_LONGEST_INTERVAL = 100
# How far items stray from their common level at a random start, in periods of demand.
_SPREAD = 2.0


class InventoryEnv(DifferentiableEnv):
    r"""n items with lead time and random demand, ordered at costs that may jump in the quantity.

    With on-hand inventory :math:`x_0`, pipeline :math:`x_1, \dots, x_{L-1}`, demand :math:`D` and
    quantities :math:`q \ge 0`, one period is

    .. math::
        a &= \text{delivered}(q), \qquad y = x_0 - D \quad (y = x_0 + a - D \text{ if } L = 0) \\
        r &= \text{revenue} - \text{order cost}(a)
            - \textstyle\sum_i \left[ h_i y_i^+ + p_i y_i^- + v_i a_i \right] \\
        x' &= (\text{carried over}(y) + x_1,\ x_2,\ \dots,\ x_{L-1},\ a)

    so an order placed in period t can serve demand of period t + L. The features
    (:mod:`hpo_torchrl.problems.inventory.features`), in the order in which they are given, say what
    is delivered, what an order costs, what is sold and what is carried over. The default is joint
    replenishment: one feature, the joint fixed cost K = ``fixed_cost_per_item`` * n; unmet demand
    is backlogged.

    The discrete action d picks the piece between two jumps in which q lies, times the supplier if
    there is a choice; for a joint fixed cost 0 is no order and 1 an order, :math:`a = d\,q` and the
    cost K d (an order of nothing is charged too). Features of each item have a head for each item.
    See ``env.pieces``, and :func:`~hpo_torchrl.envs.certify` for the equality with ``original``,
    the same problem with the quantities as the whole action.

    The state is ``"inventory"``, shape ``(*B, n, max(L, 1))``: on hand, then what arrives in one
    period, in two, and so on; and the entries that the demand adds. The ``"observation"`` is the
    inventory, flat and in periods of mean demand, then what the demand shows. The reward,
    ``(*B, 1)``, is the cost of all items of one period, negated; ``cost_units`` is n, so that
    reports are per item and period.

    Gradients flow as :class:`DifferentiableEnv` says. Guards: a quantity outside its piece is moved
    to the end of it (a negative one counts as 0), and lost sales clip y at 0; where they act, no
    gradient passes.

    Args:
        num_items: number of items n; by default the demand's, else 1.
        lead_time: periods L between placing an order and being able to use it, 0 and up. With
            :class:`~hpo_torchrl.problems.inventory.features.Suppliers` it is the longest of theirs.
        demand: a :class:`~hpo_torchrl.problems.inventory.Demand`, such as ``Normal(10.0)`` or
            ``Record(array)``; a mapping with its name, such as ``{"name": "normal", "mean": 10.0}``;
            or the mean of Poisson demand, one number or one per item.
        holding_cost: h, cost per unit on hand at the end of a period, one number or one per item.
        shortage_cost: p, cost per unit short at the end of a period.
        procurement_cost: v, cost per unit ordered.
        fixed_cost_per_item: joint fixed cost per item; every order costs this times n. By default
            64, unless there are ``features``.
        lost_sales: whether unmet demand is lost instead of backlogged.
        features: what an order costs and does, instead of the joint fixed cost alone: features, or
            mappings such as ``{"name": "fixed_cost", "cost": 64.0}``.
        initial_state: ``"empty"``; ``"random"``: wide and uniform, for training; or
            ``"stationary"``: what ordering up to a fixed level every economic order interval
            leaves, at a random point of the cycle.
        horizon: periods in an episode; ``None`` runs on. Its end truncates: the system goes on.
        batch_size: number of env instances simulated at once; traces set it.
        device: where the tensors live.
        dtype: floating-point type.
        seed: seed of the environment's generator.
        hybrid: ``False`` makes the original form.

    Attributes:
        pieces: the pieces of the quantity; ``None`` in the original form.
        order_interval: economic order interval in periods; it decides where states start and how
            quantities are scaled.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is negative, NaN, unknown or of the wrong shape, or a feature of
            one's own jumps where it has no breakpoint.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> env = InventoryEnv(num_items=3, lead_time=2, batch_size=4, seed=0)
        >>> rollout = env.rollout(5)
        >>> rollout["next", "reward"].shape, rollout["inventory"].shape
        (torch.Size([4, 5, 1]), torch.Size([4, 5, 3, 2]))
        >>> from hpo_torchrl.problems.inventory.features import AllUnitsDiscount, FixedCost
        >>> print(InventoryEnv(features=[FixedCost(64.0), AllUnitsDiscount([50.0], [1, 0.9])]).pieces)
        action: {0} (0, 50) [50, inf)
    """

    def __init__(
        self,
        num_items: int | None = None,
        lead_time: int = 2,
        demand: Demand | Mapping[str, Any] | str | float | Sequence[float] = 10.0,
        holding_cost: float | Sequence[float] = 1.0,
        shortage_cost: float | Sequence[float] = 9.0,
        procurement_cost: float | Sequence[float] = 0.0,
        fixed_cost_per_item: float | None = None,
        lost_sales: bool = False,
        features: Sequence[Feature | Mapping[str, Any]] | None = None,
        *,
        initial_state: str = "empty",
        horizon: int | None = None,
        batch_size: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int | None = None,
        hybrid: bool = True,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        demand = make_demand(demand)
        n = (demand.num_items or 1) if num_items is None else num_items
        check_int("num_items", n, minimum=1)
        check_int("lead_time", lead_time, minimum=0)
        check_choice("initial_state", initial_state, INITIAL_STATES)
        check_bool("lost_sales", lost_sales)
        check_bool("hybrid", hybrid)
        if features is None:
            each = 64.0 if fixed_cost_per_item is None else fixed_cost_per_item
            features = [FixedCost(check_float("fixed_cost_per_item", each, minimum=0.0) * n)]
        elif fixed_cost_per_item is not None:
            raise ValueError(
                f"fixed_cost_per_item={fixed_cost_per_item} is the default's only feature, but "
                "features are given as well; leave one of them out (on the command line: "
                "env.fixed_cost_per_item=null), or add {name: fixed_cost, cost: ...} to features."
            )
        chosen = make_features(features, lost_sales)
        suppliers = next((f for f in chosen if isinstance(f, Suppliers)), None)
        if suppliers is not None:
            lead_time = max(suppliers.lead_times)
        place: dict[str, Any] = {
            "dtype": check_dtype(dtype),
            "device": torch.device(device) if device is not None else None,
        }
        if demand.batch_size is not None:
            sizes = [] if batch_size is None else check_sizes("batch_size", batch_size)
            if sizes not in ([], [demand.batch_size]):
                raise ValueError(
                    f"batch_size={batch_size} disagrees with demand of {demand.batch_size} env "
                    "instances; leave it out (on the command line: env.batch_size=null) or make "
                    "them equal."
                )
            batch_size = demand.batch_size
        horizon = demand.horizon if horizon is None else horizon
        demand = demand.bind(n, horizon, **place)
        mean = demand.mean
        holding = per_item("holding_cost", holding_cost, n, **place)
        shortage = per_item("shortage_cost", shortage_cost, n, **place)
        procurement = per_item("procurement_cost", procurement_cost, n, **place)
        fixed_cost = float(sum(feature.fixed_cost for feature in chosen))
        # Economic order interval: the whole number of periods that balances K against holding.
        interval = (2 * fixed_cost / float((holding * mean).sum().clamp_min(1e-9))) ** 0.5
        least = max((f.minimum for f in chosen if isinstance(f, MinimumOrder)), default=0.0)
        order_interval = max(
            1,
            round(min(interval, _LONGEST_INTERVAL)),
            math.ceil(least / float(mean.min())),  # smaller orders would not be accepted
        )
        pieces, choices = None, 1 if suppliers is None else len(suppliers.lead_times)
        # Where only the joint fixed cost jumps, d = 1{q > 0}: d q is all there is to project, and
        # policies need no ends of their own.
        simple = hybrid and suppliers is None
        simple = simple and all(type(f) is FixedCost or not f.breakpoints() for f in chosen)
        if hybrid:
            gaps = [gap for feature in chosen for gap in feature.gaps()]
            cut = Pieces.cut(breakpoints_of(chosen, n), low=0.0, gaps=gaps)
            cuts = [cut] * n if cuts_items(chosen, n) else cut
            pieces = ActionPieces(cuts, n, choices=choices, **place)
            simple = simple and pieces.num_discrete == 2
        slots = max(lead_time, 1)
        shapes = {"inventory": (n, slots), **demand.state_shapes(n)}
        super().__init__(
            num_discrete=choices * (1 if pieces is None else pieces.num_discrete),
            num_heads=None if pieces is None else pieces.num_heads,
            branch_bounds=None if pieces is None or simple else pieces.bounds,
            continuous_dim=n,
            continuous_bounds=(0.0, None),
            # Ordering every other period, as an untrained policy does, must outrun demand: orders
            # of two periods' demand at least, or a backlog builds up before anything is learned.
            action_scale=max(order_interval, 2) * mean,
            state_shapes=shapes,
            observation_dim=n * slots + demand.observation_dim(n),
            noise_shape=(n,),
            horizon=horizon,
            horizon_terminates=False,
            batch_size=() if batch_size is None else batch_size,
            device=device,
            dtype=dtype,
            seed=seed,
        )
        self.num_items, self.lead_time, self.demand, self.start = n, lead_time, demand, initial_state
        self._slot_mean = mean.repeat_interleave(slots)
        self.holding_cost, self.shortage_cost = holding, shortage
        self.procurement_cost, self.fixed_cost = procurement, fixed_cost
        self.features, self.suppliers, self.pieces = chosen, suppliers, pieces
        self.lost_sales = any(isinstance(f, LostSales) for f in chosen)
        self.order_interval, self.cost_units = order_interval, float(n)
        self._simple, self._arguments = simple, arguments
        # What the features do, each only where some feature does it.
        self._joint_cost = float(sum(f.cost for f in chosen if type(f) is FixedCost))
        others = [f for f in chosen if type(f) is not FixedCost]
        self._delivered = that_override(chosen, "delivered")
        self._order_cost = that_override(others, "order_cost")
        self._carried_over = that_override(chosen, "carried_over")
        self._sold, self._revenue = (that_override(chosen, name) for name in ("sold", "revenue"))
        if hybrid and not {type(f) for f in chosen} <= set(FEATURES.values()):
            refuse_jumps(self, "method breakpoints of the feature")

    @classmethod
    def heterogeneous(
        cls,
        num_items: int,
        *,
        instance_seed: int = 0,
        demand: str = "poisson",
        demand_range: Sequence[float] = (6.0, 14.0),
        holding_range: Sequence[float] = (0.7, 1.3),
        shortage_range: Sequence[float] = (6.3, 11.7),
        **others: Any,
    ) -> InventoryEnv:
        """Make an environment whose items differ: means and costs drawn uniformly, once.

        The first n items of a longer instance of the same seed are the instance of n items, so
        that sizes can be compared.

        Args:
            num_items: number of items n.
            instance_seed: seed of the draw.
            demand: name of the distribution of demand.
            demand_range: least and largest mean demand.
            holding_range: least and largest holding cost h.
            shortage_range: least and largest shortage cost p.
            others: further arguments, of the class.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range, or is drawn and given as well.

        Examples:
            >>> from hpo_torchrl.problems import InventoryEnv
            >>> few, many = (InventoryEnv.heterogeneous(n) for n in (3, 5))
            >>> (few.demand_mean == many.demand_mean[:3]).all().item()
            True
        """
        check_int("num_items", num_items, minimum=1)
        check_int("instance_seed", instance_seed, minimum=0)
        ranges = {
            "demand_mean": ("demand_range", demand_range),
            "holding_cost": ("holding_range", holding_range),
            "shortage_cost": ("shortage_range", shortage_range),
        }
        for stream, (name, (label, bounds)) in enumerate(ranges.items()):
            if others.get(name) is not None:
                raise ValueError(
                    f"{name} is drawn from {label} for heterogeneous items, got {others[name]!r} "
                    "as well; leave it out, or use the class (env=inventory) itself."
                )
            low, high = check_range(label, bounds)
            # A stream of its own for each: what one draws does not depend on how many there are.
            rng = np.random.default_rng([instance_seed, stream])
            others[name] = rng.uniform(low, high, num_items).tolist()
        drawn = {"name": demand, "mean": others.pop("demand_mean")}
        return cls(num_items, demand=drawn, **others)

    @classmethod
    def from_file(
        cls,
        path: str | Path | None = None,
        split: str = "train",
        fractions: Sequence[float] = (0.6, 0.2, 0.2),
        history: int = 14,
        start_period: str = "random",
        season: int | None = 7,
        lead_time: int = 2,
        holding_cost: float | Sequence[float] | None = None,
        shortage_cost: float | Sequence[float] | None = None,
        procurement_cost: float | Sequence[float] | None = None,
        lost_sales: bool = False,
        *,
        initial_state: str = "random",
        **others: Any,
    ) -> InventoryEnv:
        """Make an environment of the demand in a file; see :func:`read_demand` for its format.

        Costs that are not given are those of the file, else 1 (holding), 9 (shortage) and 0
        (procurement); see :meth:`DemandFile.costs` for what a price in the file means.

        Args:
            path: a ``.csv`` or ``.parquet`` file.
            split: which part is replayed: ``"train"``, ``"dev"`` or ``"test"``.
            fractions: shares of the periods, in their order, that are in these parts.
            history: recent demands of each item in the observation, 1 and up; see
                :class:`~hpo_torchrl.problems.inventory.record.Record`, like the next two.
            start_period: ``"random"``, for training, or ``"first"``, for tests.
            season: periods of a season, by whose multiples items are apart at random starts.
            lead_time: periods L between placing an order and being able to use it.
            holding_cost: one number, or one per item in the order of their first appearance.
            shortage_cost: the same.
            procurement_cost: the same.
            lost_sales: whether unmet demand is lost.
            initial_state: stocks at the start, see the class.
            others: further arguments, of the class.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError: an argument has the wrong type.
            ValueError: the file cannot be read as it stands (``DemandFileError``: the message lists
                the lines), an argument is out of range, or a part of the record is too short.
        """
        check_int("history", history, minimum=1)
        check_int("lead_time", lead_time, minimum=0)
        check_bool("lost_sales", lost_sales)
        # Beside its history, a part needs periods in which an order is placed and arrives.
        source, parts = read_record(path, split, fractions, history, lead_time + 2)
        demand = Record(
            source.demand,
            getattr(parts, split),
            parts.train,
            history=history,
            start_period=start_period,
            season=season,
            items=source.items,
            labels=source.periods,
        )
        features = make_features(others.get("features") or (), lost_sales)
        costs: dict[str, Any] = source.costs(
            any(isinstance(feature, LostSales) for feature in features),
            holding_cost=holding_cost,
            shortage_cost=shortage_cost,
            procurement_cost=procurement_cost,
        )
        return cls(
            demand.num_items,
            lead_time,
            demand,
            lost_sales=lost_sales,
            initial_state=initial_state,
            **costs,
            **others,
        )

    # -- the equations ---------------------------------------------------------------------------

    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        """Serve one period of demand; the equations stand in the class docstring.

        Args:
            state: ``"inventory"``, ``(*B, n, max(L, 1))``, and the demand's entries.
            action: ``"discrete"`` ``(*B,)``, or ``(*B, n)`` with a head for each item, and
                ``"continuous"`` ``(*B, n)``.
            noise: the demand of the period, ``(*B, n)``.

        Returns:
            The next state and the reward ``(*B,)``.
        """
        if self._simple:
            ordering = action["discrete"].to(noise.dtype)
            order = ordering.unsqueeze(-1) * action["continuous"].clamp_min(0.0)
            inventory, reward = self._serve(state, order, ordering, None, noise)
        else:
            executed = action if self.pieces is None else self.pieces.executed(action)
            order = executed["continuous"].clamp_min(0.0)
            ordering = (order.detach().sum(-1) > 0).to(noise.dtype)
            inventory, reward = self._serve(state, order, ordering, executed["discrete"], noise)
        return {"inventory": inventory, **self.demand.advance(state, noise)}, reward

    def _serve(
        self,
        state: State,
        order: Tensor,
        ordering: Tensor,
        supplier: Any,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Serve demand, given quantities ``(*B, n)`` and whether anything is ordered, ``(*B,)``."""
        for delivered in self._delivered:
            order = delivered(order)
        on_hand, *pipeline = state["inventory"].unbind(-1)
        level = on_hand - noise
        if self.lead_time == 0:
            level = level + order
        cost = (
            self.holding_cost * level.clamp_min(0.0)
            + self.shortage_cost * (-level).clamp_min(0.0)
            + self.procurement_cost * order
        ).sum(-1) + self._joint_cost * ordering
        for order_cost in self._order_cost:
            cost = cost + order_cost(order, supplier)
        reward = -cost
        if self._revenue:
            available, sold = on_hand + order if self.lead_time == 0 else on_hand, noise
            for sell in self._sold:
                sold = sell(available, noise, sold)
            reward = sum((revenue(sold) for revenue in self._revenue), reward)
        for carried_over in self._carried_over:
            level = carried_over(level)
        return self._move_on(pipeline, order, level, supplier), reward

    def _move_on(
        self, pipeline: Sequence[Tensor], order: Tensor, level: Tensor, supplier: Any
    ) -> Tensor:
        """Let the pipeline move on: the next inventory."""
        if self.suppliers is not None:
            arriving, *later = [*pipeline, torch.zeros_like(order)]
            after = torch.stack([level + arriving, *later], -1)
            slots = torch.tensor(self.suppliers.lead_times, device=order.device)[supplier] - 1
            arrival = F.one_hot(slots, self.lead_time).to(order.dtype).unsqueeze(-2)
            return after + order.unsqueeze(-1) * arrival
        if self.lead_time == 0:
            return level.unsqueeze(-1)
        if self.lead_time == 1:
            return (level + order).unsqueeze(-1)
        arriving, *later = pipeline
        return torch.stack([level + arriving, *later, order], -1)

    def observe(self, state: State) -> Tensor:
        """Return the inventory in periods of mean demand, then what the demand shows, flat."""
        inventory = state["inventory"].flatten(-2) / self._slot_mean
        shown = self.demand.observe(state)
        return inventory if shown is None else torch.cat([inventory, shown], -1)

    def initial_state(self) -> dict[str, Tensor]:
        """Draw the start of an episode: the demand's entries, and stocks as ``initial_state`` says."""
        entries = self.demand.start(self.batch_size, self.rng)
        shape = self.state_spec["inventory"].shape
        inventory = torch.zeros(shape, dtype=self.float_dtype, device=self.device)
        if self.start == "random":
            inventory = self._random_inventory(inventory)
        elif self.start == "stationary":
            inventory = self._stationary_inventory(inventory)
        return {"inventory": inventory, **entries}

    def sample_noise(self, num_steps: int, state: State | None = None) -> Tensor:
        """Draw the demand of a rollout, ``(*B, T, n)``.

        Args:
            num_steps: number of steps T.
            state: where the rollout starts; it matters to recorded demand. ``None`` is the start of
                an episode.

        Raises:
            ValueError: ``None``, where demand depends on the start and instances start anywhere.
        """
        state = self.demand.usual_start(self.batch_size) if state is None else state
        return super().sample_noise(num_steps, state)

    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Draw the demand of the coming periods, ``(*B, T, n)``."""
        return self.demand.draw(num_steps, state, self.batch_size, self.rng)

    # -- pieces ----------------------------------------------------------------------------------

    @cached_property
    def original(self) -> InventoryEnv:
        """The same problem in its original form: the quantities are the whole action."""
        arguments = self._arguments | {"device": self.device, "seed": 0, "hybrid": False}
        return type(self)(**arguments)

    @property
    def cut_per_item(self) -> bool:
        """Whether every item has breakpoints of its own."""
        return cuts_items(self.features, self.num_items)

    def breakpoints(self) -> list[Breakpoint]:
        """Return the breakpoints of all features, merged."""
        return breakpoints_of(self.features, self.num_items)

    def gaps(self) -> list[Gap]:
        """Return the quantities that do what another one does."""
        return [gap for feature in self.features for gap in feature.gaps()]

    def heuristic_action(self, observation: Tensor) -> dict[str, Tensor]:
        """Return the original's action: up to the rough S when the lead time is not covered.

        That is, when the items' mean position no longer covers the lead time and one period.
        """
        ordering, position = self._heuristic(observation)
        missing = (self.order_up_to - position * self.demand_mean).clamp_min(0.0)
        nothing = torch.zeros_like(ordering, dtype=torch.int64)
        return {"discrete": nothing, "continuous": missing * ordering.unsqueeze(-1)}

    def heuristic_choice(self, observation: Tensor) -> Tensor:
        """Return the discrete action of :meth:`heuristic_action`."""
        if self._simple or self.pieces is None:
            return self._heuristic(observation)[0].long() * self._simple
        return self.pieces.encoded(self.heuristic_action(observation))["discrete"]

    # -- what is known of the problem ------------------------------------------------------------

    @property
    def demand_mean(self) -> Tensor:
        """Mean demand per period, ``(n,)``."""
        return self.demand.mean

    @property
    def num_periods(self) -> int | None:
        """How many periods there are to be replayed; ``None`` where there is no end."""
        return self.demand.num_periods

    @property
    def order_up_to(self) -> Tensor:
        """Mean demand of lead time, review and one order interval, ``(n,)``: a rough S."""
        return (self.lead_time + 1 + self.order_interval) * self.demand_mean

    @property
    def only_fixed_cost(self) -> bool:
        """Whether an order costs nothing besides its units and the joint fixed cost."""
        return all(type(feature) in (FixedCost, LostSales) for feature in self.features)

    @property
    def solvable(self) -> bool:
        """Whether joint replenishment's optima apply: backlogged Poisson demand, h and p above 0."""
        return (
            self.demand.poisson
            and self.only_fixed_cost
            and not self.lost_sales
            and bool((self.holding_cost > 0).all())
            and bool((self.shortage_cost > 0).all())
        )

    @property
    def recorded(self) -> bool:
        """Whether demand is one record for all env instances, to which rules can be tuned."""
        return isinstance(self.demand, Record) and self.demand.batch_size is None

    def rules(self) -> dict[str, Callable[[], nn.Module]]:
        """Return (s, S) (by total demand for several items), (R, S) and order-up-to.

        Under recorded demand it is the (s, S) rule that was best in the training periods.
        """
        if not self._simple:
            return {}
        if self.recorded:
            return {"s_S": partial(recorded_policy, self)} if self.only_fixed_cost else {}
        known = {"s_S": s_S_rule, "R_S": R_S_rule, "order_up_to": order_up_to_rule}
        return {name: partial(rule, self) for name, rule in known.items()}

    def reference(self, test: Test) -> Reference:
        """Return the exact optimum, or bounds, or the cost of the best rule on a record."""
        if self.recorded:
            usable = self._simple and self.only_fixed_cost
            return recorded_reference(self, test) if usable else Reference()
        if self.only_fixed_cost and not self.lost_sales:
            return inventory_reference(self)
        return variant_reference(self)

    def describe(
        self,
        policy: Any,
        tests: Mapping[str, Test],
        reference: Reference,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """Read the learned (s, S) off the policy, and draw it; run a record's rule on all tests."""
        if not self._simple:
            return {}
        found = describe_inventory(self, policy, reference, folder)
        return found | compare_on_record(tests, reference) if self.recorded else found

    def to(self, device: torch.device | str | int) -> InventoryEnv:
        """Move the environment, with its demand and pieces."""
        self.demand.to(torch.device(device))
        if self.pieces is not None:
            self.pieces.to(torch.device(device))
            self.branch_bounds = None if self._simple else self.pieces.bounds
        self.__dict__.pop("original", None)
        super().to(device)
        return self

    # -- where it starts -------------------------------------------------------------------------

    def _heuristic(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Whether to order, ``(*B,)``, and the positions in periods of demand, ``(*B, n)``."""
        inventory = observation[..., : len(self._slot_mean)]
        position = inventory.unflatten(-1, (self.num_items, -1)).sum(-1)
        return position.mean(-1) <= self.lead_time + 1, position

    def _random_inventory(self, inventory: Tensor) -> Tensor:
        # Wide on purpose: rare states must be seen in training. On hand from one period of
        # backlog up to the rough S, and half the instances await an order anywhere in the pipeline.
        # Items are ordered together, so their levels rise and fall together, up to a spread of
        # their own: drawn one by one, a thousand items would never be short all at once.
        batch, slots, own = self.batch_size, inventory.shape[-1], self.num_items > 1
        level = self._draw(torch.rand, (*batch, 1))
        level = level * (self.order_up_to + self.demand_mean) - self.demand_mean
        spread = own * _SPREAD * (2 * self._draw(torch.rand, (*batch, self.num_items)) - 1)
        on_hand = level + spread * self.demand_mean
        inventory[..., 0] = on_hand.clamp_min(0.0) if self.lost_sales else on_hand
        if slots > 1:
            spread = 1 + own * 0.25 * (2 * self._draw(torch.rand, (*batch, self.num_items)) - 1)
            size = self._draw(torch.rand, (*batch, 1)) * spread * self.order_up_to
            waiting = self._draw(torch.rand, (*batch, 1)) < 0.5
            slot = 1 + (self._draw(torch.rand, (*batch, 1)) * (slots - 1)).long()
            slot = slot.unsqueeze(-1).expand(*batch, self.num_items, 1)
            inventory = inventory.scatter(-1, slot, (size * waiting).unsqueeze(-1))
        return inventory

    def _stationary_inventory(self, inventory: Tensor) -> Tensor:
        # Simulate order-up-to every interval for long enough to forget the start; each instance
        # begins at its own point of the cycle.
        inventory[..., 0] = self.order_up_to
        phase = (self._draw(torch.rand, self.batch_size) * self.order_interval).long()
        supplier = torch.zeros_like(phase)
        for period in range(self.lead_time + 2 * self.order_interval):
            ordering = ((period + phase) % self.order_interval == 0).to(self.float_dtype)
            quantity = (self.order_up_to - inventory.sum(-1)).clamp_min(0.0)
            order = ordering.unsqueeze(-1) * quantity
            demand = self.demand.draw_any(self.batch_size, self.rng)
            inventory, _ = self._serve({"inventory": inventory}, order, ordering, supplier, demand)
        return inventory

    def _draw(self, sampler: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        return sampler(shape, generator=self.rng, dtype=self.float_dtype, device=self.device)
