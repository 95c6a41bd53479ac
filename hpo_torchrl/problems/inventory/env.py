"""Inventory control: what to order, and when, under random demand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpo_torchrl.core.checks import (
    check_bool,
    check_choice,
    check_device,
    check_dtype,
    check_int,
    entries_of,
    in_dtype,
    per_item,
    shown,
)
from hpo_torchrl.envs.certificate import refuse_jumps
from hpo_torchrl.envs.differentiable import Action, DifferentiableEnv, State
from hpo_torchrl.problems.inventory.demand import Demand, make_demand
from hpo_torchrl.problems.inventory.features import Feature, built_in
from hpo_torchrl.problems.inventory.instances import STARTS, from_file, heterogeneous
from hpo_torchrl.problems.inventory.ordering import Ordering, make_features
from hpo_torchrl.problems.inventory.record import Record
from hpo_torchrl.problems.inventory.reference import describe_inventory, inventory_reference
from hpo_torchrl.problems.inventory.rules import (
    OrderUpToPolicy,
    PeriodicPolicy,
    TotalDemandPolicy,
)

# Where holding is almost free the economic interval has no end; a start has to have one.
_LONGEST_INTERVAL = 100


class InventoryEnv(DifferentiableEnv):
    r"""n items with lead time and random demand, ordered at costs that may jump in the quantity.

    With on-hand inventory :math:`x_0`, pipeline :math:`x_1, \dots, x_{L-1}`, demand :math:`D` and
    quantities :math:`q \ge 0`, one period is

    .. math::
        a &= \text{delivered}(q), \qquad y = x_0 - D \quad (y = x_0 + a - D \text{ if } L = 0) \\
        r &= \text{revenue} - \text{order cost}(a)
            - \textstyle\sum_i \left[ h_i y_i^+ + p_i y_i^- + v_i a_i \right] \\
        x' &= (\text{carried over}(y) + x_1,\ x_2,\ \dots,\ x_{L-1},\ a)

    so an order placed in period t can serve demand of period t + L. Items may have lead times of
    their own: an order of item i then enters :math:`x_{L_i - 1}`. The features
    (:mod:`hpo_torchrl.problems.inventory.features`) say, in turn, what is delivered, what an order
    costs, what is sold and what is carried over. The default is joint replenishment with backlog:
    one feature, the joint fixed cost K = ``fixed_cost_per_item`` * n.

    The discrete action d picks the piece between two jumps in which q lies, times the supplier if
    there is a choice; for a joint fixed cost 0 is no order and 1 an order, :math:`a = d\,q` and the
    cost K d (an order of nothing is charged too). Features of each item have a head for each item.
    See ``env.pieces``, and :func:`~hpo_torchrl.envs.certify` for the equality with ``original``,
    the same problem with the quantities as the whole action.

    The state is ``"inventory"``, ``(*B, n, max(L, 1))`` with the longest L: on hand, then what
    arrives in one period, in two, and so on; and the entries that the demand adds. The
    ``"observation"`` is the inventory, flat and in periods of mean demand, then what the demand
    shows. The reward, ``(*B, 1)``, is the cost of all items of one period, negated; ``cost_units``
    is n, so that reports are per item and period.

    Gradients flow as :class:`DifferentiableEnv` says. Guards: a quantity outside its piece is moved
    to the end of it (a negative one counts as 0), and lost sales clip y at 0; where they act, no
    gradient passes.

    Args:
        num_items: number of items n; by default the demand's, else 1.
        lead_time: periods L between placing an order and being able to use it, 0 and up, one number
            or one per item. With features that choose it (``Suppliers``, ``LeadTimes``) it is their
            longest.
        demand: a :class:`~hpo_torchrl.problems.inventory.Demand`, such as ``Normal(10.0)`` or
            ``Record(array)``; a mapping with its name, such as ``{"name": "normal", "mean": 10}``;
            or the mean of Poisson demand, one number or one per item.
        holding_cost: h, cost per unit on hand at the end of a period, one number or one per item.
        shortage_cost: p, cost per unit short at the end of a period.
        procurement_cost: v, cost per unit ordered.
        fixed_cost_per_item: joint fixed cost per item; every order costs this times n. By default
            64, unless there are ``features``.
        lost_sales: whether unmet demand is lost instead of backlogged.
        features: what an order costs and does, instead of the joint fixed cost alone: features, or
            mappings such as ``{"name": "fixed_cost", "cost": 64.0}``.
        items: names of the items; or the file of a table with a row for each, whose columns say
            more of them: see :func:`~hpo_torchrl.problems.inventory.item_file.with_items`.
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
        breakpoints, gaps, cut_per_item: what :func:`~hpo_torchrl.envs.hybridize` asks of it; see
            :class:`~hpo_torchrl.problems.inventory.ordering.Ordering`.
        lead_time: the longest lead time; ``lead_times`` those of the items, int64 ``(n,)``.
        order_interval: economic order interval in periods; states start and quantities are scaled
            by it, and it is the ``cycle_length``.
        recorded: whether demand is one record for all env instances, to which rules can be tuned.
        demand_fit: the models that training demand is drawn from, where they are fitted to a file.
        units: what was derived from recorded demand, by the argument that would give it: a run pins
            it, so that its policy keeps its units on other data.

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
        >>> from hpo_torchrl.problems.inventory.order_costs import AllUnitsDiscount, FixedCost
        >>> features = [FixedCost(64.0), AllUnitsDiscount([50.0], [1.0, 0.9])]
        >>> print(InventoryEnv(features=features).pieces)
        action: {0} (0, 50) [50, inf)
    """

    def __init__(
        self,
        num_items: int | None = None,
        lead_time: int | Sequence[int] = 2,
        demand: Demand | Mapping[str, Any] | str | float | Sequence[float] = 10.0,
        holding_cost: float | Sequence[float] = 1.0,
        shortage_cost: float | Sequence[float] = 9.0,
        procurement_cost: float | Sequence[float] = 0.0,
        fixed_cost_per_item: float | None = None,
        lost_sales: bool = False,
        features: Sequence[Feature | Mapping[str, Any]] | None = None,
        *,
        items: str | Path | Sequence[str] | None = None,
        initial_state: str = "empty",
        horizon: int | None = None,
        batch_size: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int | None = None,
        hybrid: bool = True,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if isinstance(items, (str, Path)):
            # Reading takes pandas, whose import takes a second.
            from hpo_torchrl.problems.inventory.item_file import with_items

            InventoryEnv.__init__(self, **with_items(items, arguments))
            return
        demand = make_demand(demand)
        n = (demand.num_items or 1) if num_items is None else num_items
        check_int("num_items", n, minimum=1)
        lead_times = _lead_times(lead_time, n)
        check_choice("initial_state", initial_state, STARTS)
        check_bool("lost_sales", lost_sales)
        check_bool("hybrid", hybrid)
        known = {"procurement_cost": procurement_cost}
        chosen = make_features(features, fixed_cost_per_item, n, lost_sales, known)
        place: dict[str, Any] = {
            "dtype": check_dtype(dtype),
            "device": check_device(device),
        }
        if fixed_cost_per_item is not None:
            in_dtype("fixed_cost_per_item", fixed_cost_per_item, dtype)
        demand = demand.bind(n, horizon, batch_size, **place)
        mean = demand.mean
        holding = per_item("holding_cost", holding_cost, n, **place)
        shortage = per_item("shortage_cost", shortage_cost, n, **place)
        procurement = per_item("procurement_cost", procurement_cost, n, **place)
        orders = Ordering(chosen, n, hybrid=hybrid, **place)
        if orders.delays is not None:
            if len({*lead_times}) > 1:
                raise ValueError(
                    f"{type(orders.delays).__name__} decides the lead time of an order, but "
                    f"lead_time={lead_times} differs by item; leave one of them out."
                )
            lead_times = [max(orders.delays.lead_times)] * n
        longest = max(lead_times)
        # Economic order interval: the whole number of periods that balances K against holding.
        interval = (2 * orders.fixed_cost / float((holding * mean).sum().clamp_min(1e-9))) ** 0.5
        order_interval = max(
            1,
            round(min(interval, _LONGEST_INTERVAL)),
            # Smaller orders are not accepted.
            math.ceil(float((orders.least / mean.double().cpu()).max())),
        )
        slots, pieces = max(longest, 1), orders.pieces
        super().__init__(
            num_discrete=orders.num_discrete,
            num_heads=None if pieces is None else pieces.num_heads,
            branch_bounds=None if pieces is None or orders.simple else pieces.bounds,
            continuous_dim=n,
            continuous_bounds=(0.0, None),
            # Ordering every other period, as an untrained policy does, must outrun demand: orders
            # of two periods' demand at least, or a backlog builds up before anything is learned.
            action_scale=max(order_interval, 2) * mean,
            state_shapes={"inventory": (n, slots), **demand.state_shapes(n)},
            observation_dim=n * slots + demand.observation_dim(n),
            noise_shape=(n + orders.draws,),
            horizon=demand.horizon,
            horizon_terminates=False,
            batch_size=() if demand.batch_size is None else demand.batch_size,
            seed=seed,
            **place,
        )
        self.num_items, self.lead_time = n, longest
        self.lead_times = torch.tensor(lead_times, device=self.device)
        self._names = None if items is None else _item_names(items, n)
        self.order_interval = self.cycle_length = order_interval
        self.demand, self.demand_mean, self.num_periods = demand, mean, demand.num_periods
        self.recorded = isinstance(demand, Record) and demand.record.ndim == 2
        if isinstance(demand, Record):
            self.record, self.train_periods = demand.record, demand.train_periods
            self.derived_units = {"demand.mean": demand.given_mean}
        self.ordering, self.pieces, self.features = orders, pieces, orders.features
        self.breakpoints, self.gaps = orders.breakpoints, orders.gaps
        self.cut_per_item = orders.cut_per_item
        self.holding_cost, self.shortage_cost = holding, shortage
        self.procurement_cost, self.fixed_cost = procurement, orders.fixed_cost
        self.lost_sales, self.cost_units, self.start = orders.lost_sales, float(n), initial_state
        self._slot_mean, self._arguments = mean.repeat_interleave(slots), arguments
        self._set_arrivals()
        if hybrid and not all(map(built_in, chosen)):
            refuse_jumps(self, "method breakpoints of the feature")

    demand_fit: Any = None
    item_numbers: tuple[str, ...] = ()  # state entries by which a table of stock gives the items

    heterogeneous = classmethod(heterogeneous)
    from_file = classmethod(from_file)

    # -- the equations ---------------------------------------------------------------------------

    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        """Serve one period of demand, the noise ``(*B, n)``; see the class for the equations.

        With random lead times the noise has the draws of these too, after the demand.
        """
        stock, demand = state["inventory"], noise[..., : self.num_items]
        placed = self.ordering.placed(action, stock)
        if self.ordering.draws:
            placed = (*placed[:2], noise[..., self.num_items :])
        inventory, reward = self.serve(stock, placed, demand)
        return {"inventory": inventory, **self.demand.advance(state, demand)}, reward

    def serve(
        self,
        inventory: Tensor,
        placed: tuple[Tensor, Tensor, Tensor],
        noise: Tensor,
        costs: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Serve one period of demand, given what :meth:`Ordering.placed` says of the action.

        Costs h, p and v, ``(*B, n)``, are those of the environment unless they are given.
        """
        own = (self.holding_cost, self.shortage_cost, self.procurement_cost)
        holding, shortage, procurement = own if costs is None else costs
        order, _, supplier = placed
        on_hand, *pipeline = inventory.unbind(-1)
        level = on_hand - noise
        if self._at_once is not None:
            at_once = order * self._at_once
            on_hand, level = on_hand + at_once, level + at_once
        cost = (
            holding * level.clamp_min(0.0)
            + shortage * (-level).clamp_min(0.0)
            + procurement * order
        ).sum(-1)
        reward = self.ordering.reward(cost, placed, on_hand, noise)
        for feature in self.features:
            level = feature.carried_over(level)
        later = pipeline
        if self.lead_time > 0:
            alike = self.ordering.delays is None and self._entry is None
            last = order if alike else torch.zeros_like(order)
            arriving, *later = [*pipeline, last]
            level = level + arriving
        after = torch.stack([level, *later], -1)
        if self.ordering.delays is not None:
            after = after + self.ordering.delays.arriving(order, supplier)
        elif self._entry is not None:
            after = after + order.unsqueeze(-1) * self._entry
        return after, reward

    def _set_arrivals(self) -> None:
        """Set which items arrive at once, ``(n,)``, and where the orders of others enter."""
        slots = self.state_shapes["inventory"][-1]
        now = (self.lead_times == 0).to(self.float_dtype)
        self._at_once = now if bool(now.any()) else None
        alike = bool((self.lead_times == self.lead_time).all())
        places = torch.arange(slots, device=self.device) == self.lead_times.unsqueeze(-1) - 1
        self._entry = None if alike else places.to(self.float_dtype)

    def observe(self, state: State) -> Tensor:
        """Return the inventory in periods of mean demand, then what the demand shows, flat."""
        inventory = state["inventory"].flatten(-2) / self._slot_mean
        shown = self.demand.observe(state)
        return inventory if shown is None else torch.cat([inventory, shown], -1)

    def initial_state(self) -> dict[str, Tensor]:
        """Draw stocks as ``initial_state`` says, and what the demand adds."""
        entries = self.demand.start(self)
        return {"inventory": STARTS[self.start](self), **entries}

    def sample_noise(self, num_steps: int, state: State | None = None) -> Tensor:
        """Draw the demand of a rollout, ``(*B, T, n)``; recorded demand needs its ``state``."""
        state = self.demand.usual_start(self) if state is None else state
        return super().sample_noise(num_steps, state)

    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Draw the demand of the coming periods, ``(*B, T, n)``, then draws for lead times."""
        demand = self.demand.draw(num_steps, state, self)
        if not self.ordering.draws:
            return demand
        draws = self._draw(torch.rand, (*demand.shape[:-1], self.ordering.draws))
        return torch.cat([demand, draws], -1)

    def orders(self, state: State, action: Action) -> Tensor:
        """Return what an action orders in a state, in units, ``(*B, n)``."""
        return self.ordering.placed(action, state["inventory"])[0]

    # -- pieces ----------------------------------------------------------------------------------

    @cached_property
    def original(self) -> InventoryEnv:
        """The same problem in its original form: the quantities are the whole action."""
        arguments = self._arguments | {"device": self.device, "seed": 0, "hybrid": False}
        return type(self)(**arguments)

    def heuristic_action(self, observation: Tensor) -> dict[str, Tensor]:
        """Return the original's action: up to the rough S when the lead time is not covered.

        That is, when the items' mean position no longer covers the lead time and one period.
        """
        inventory = observation[..., : len(self._slot_mean)]
        position = inventory.unflatten(-1, (self.num_items, -1)).sum(-1)
        covered = (self.lead_times + 1).to(position.dtype).mean()
        ordering = (position.mean(-1) <= covered).to(position.dtype)
        missing = (self.order_up_to - position * self.demand_mean).clamp_min(0.0)
        order = missing * ordering.unsqueeze(-1)
        return {"discrete": torch.zeros_like(ordering, dtype=torch.int64), "continuous": order}

    def heuristic_choice(self, observation: Tensor) -> Tensor:
        """Return the discrete action of :meth:`heuristic_action`."""
        action = self.heuristic_action(observation)
        if self.ordering.simple:  # without asking whether the quantity is offered: no waiting
            return (action["continuous"].sum(-1) > 0).long()
        return (action if self.pieces is None else self.pieces.encoded(action))["discrete"]

    # -- what is known of the problem ------------------------------------------------------------

    @property
    def item_names(self) -> list[str]:
        """The names of the items, given or those in the record; else their numbers from 1."""
        own = self._names or getattr(self.demand, "items", None)
        return [str(number + 1) for number in range(self.num_items)] if own is None else own

    @property
    def order_up_to(self) -> Tensor:
        """Mean demand of lead time, review and one order interval, ``(n,)``: a rough S."""
        return (self.lead_times + 1 + self.order_interval) * self.demand_mean

    @property
    def solvable(self) -> bool:
        """Whether joint replenishment's optima apply: backlog, Poisson demand, h and p above 0."""
        return (
            self.demand.poisson
            and self.ordering.only_fixed_cost
            and not self.lost_sales
            and self._entry is None
            and bool((self.holding_cost > 0).all())
            and bool((self.shortage_cost > 0).all())
        )

    def rules(self) -> dict[str, Callable[[], nn.Module]]:
        """Return (s, S) (by total demand for several items), (R, S) and order-up-to.

        Under recorded demand it is the (s, S) rule that was best in the training periods.
        """
        kinds: dict[str, type[OrderUpToPolicy]] = {"s_S": TotalDemandPolicy}
        if self.recorded:
            served = self.ordering.delays is None
            return {"s_S": partial(TotalDemandPolicy.best, self)} if served else {}
        if not self.ordering.simple or self._entry is not None:
            return {}
        kinds |= {"R_S": PeriodicPolicy, "order_up_to": OrderUpToPolicy}
        return {name: partial(kind.best, self) for name, kind in kinds.items()}

    def decide(self, policy: Any, stock: Any) -> Any:
        """Return what to order with a stock, a table; see :func:`decide_orders`."""
        from hpo_torchrl.problems.inventory.decision import decide_orders  # pandas is slow to load

        return decide_orders(self, policy, stock)

    def details(self, test: Any, policies: Mapping[str, Any], folder: Any = None) -> Any:
        """Return service, stock and costs by item; see :func:`compare_details`."""
        from hpo_torchrl.problems.inventory.details import compare_details  # pandas is slow to load

        return compare_details(test, policies, folder)

    reference = inventory_reference
    describe = describe_inventory

    def to(self, device: torch.device | str | int) -> InventoryEnv:
        """Move the environment, with its demand and pieces."""
        self.demand.to(torch.device(device))
        if self.pieces is not None:
            self.pieces.to(torch.device(device))
            self.branch_bounds = None if self.ordering.simple else self.pieces.bounds
        self.__dict__.pop("original", None)
        super().to(device)
        self.lead_times = self.lead_times.to(device)
        self._set_arrivals()
        return self


def _lead_times(lead_time: int | Sequence[int], num_items: int) -> list[int]:
    """Return the lead time of each item.

    Raises:
        TypeError: one is no whole number.
        ValueError: one is below 0, or there are not as many as items.
    """
    if isinstance(lead_time, str) or not isinstance(lead_time, Sequence):
        return [check_int("lead_time", lead_time, minimum=0)] * num_items
    if len(lead_time) != num_items:
        raise ValueError(
            f"lead_time must be a whole number or hold one entry per item: expected "
            f"num_items={num_items} entries, got {len(lead_time)}: {[*lead_time]}."
        )
    return [check_int(f"lead_time[{i}]", each, minimum=0) for i, each in enumerate(lead_time)]


def _item_names(items: Sequence[str], num_items: int) -> list[str]:
    """Return names of items, each once."""
    names = [str(item) for item in entries_of("items", items)]
    if len({*names}) != num_items or len(names) != num_items:
        raise ValueError(
            f"items must hold {num_items} different names, one per item, or be the path of a "
            f"file, got {len(names)}: {shown(names)}."
        )
    return names
