"""What every inventory system shares: items, demand, the pipeline and where it starts."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
from hpo_torchrl.envs.differentiable import DifferentiableEnv, State
from hpo_torchrl.problems.inventory.rules import (
    OrderUpToPolicy,
    PeriodicPolicy,
    TotalDemandPolicy,
)

DEMANDS = ("poisson", "normal")
# Where holding is almost free the economic interval has no end; a start has to have one.
_LONGEST_INTERVAL = 100
# How far items stray from their common level at a random start, in periods of demand.
_SPREAD = 2.0
INITIAL_STATES = ("empty", "random", "stationary")


class StockEnv(DifferentiableEnv):
    r"""n items with lead time and random demand: the base class of inventory environments.

    The state is ``"inventory"``, shape ``(*B, n, max(L, 1))``: on hand, then what arrives in one
    period, in two, and so on; the ``"observation"`` is the same, flat and in periods of mean
    demand. The reward, ``(*B, 1)``, is the cost of all items of one period, negated;
    ``cost_units`` is n, so that reports are per item and period.

    A subclass adds what an order costs and does: :meth:`dynamics` and :meth:`order_action`.

    Args:
        num_discrete: number of discrete options.
        fixed_cost: what an order of everything costs at once; it decides the order interval by
            which states are started and quantities scaled.
        num_items: number of items n.
        lead_time: periods L between placing an order and being able to use it, 0 and up.
        demand_mean: mean demand per period, one number or one per item. With ``demand_traces``
            it defaults to the traces' mean, else to 10.
        holding_cost: h, cost per unit on hand at the end of a period.
        shortage_cost: p, cost per unit short at the end of a period.
        procurement_cost: v, cost per unit ordered.
        lost_sales: whether unmet demand is lost instead of backlogged.
        demand: ``"poisson"``, or ``"normal"``: clipped at 0, with variance equal to the mean.
        demand_traces: demand to replay instead, shape ``(B, T, n)``. Sets the horizon to T.
        initial_state: ``"empty"``; ``"random"``: wide and uniform, for training; or
            ``"stationary"``: what ordering up to a fixed level every economic order interval
            leaves, at a random point of the cycle.
        horizon: periods in an episode; ``None`` runs on. Its end truncates: the system goes on.
        batch_size: number of systems simulated at once; with traces it defaults to theirs.
        device: where the tensors live.
        dtype: floating-point type.
        seed: seed of the environment's generator.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is negative, NaN, unknown or of the wrong shape.
    """

    def __init__(
        self,
        num_discrete: int,
        fixed_cost: float,
        /,
        num_items: int = 1,
        lead_time: int = 2,
        demand_mean: float | Sequence[float] | None = None,
        holding_cost: float | Sequence[float] = 1.0,
        shortage_cost: float | Sequence[float] = 9.0,
        procurement_cost: float | Sequence[float] = 0.0,
        lost_sales: bool = False,
        *,
        demand: str = "poisson",
        demand_traces: Tensor | None = None,
        initial_state: str = "empty",
        horizon: int | None = None,
        batch_size: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int | None = None,
    ) -> None:
        check_int("num_items", num_items, minimum=1)
        check_int("lead_time", lead_time, minimum=0)
        check_choice("demand", demand, DEMANDS)
        check_choice("initial_state", initial_state, INITIAL_STATES)
        check_bool("lost_sales", lost_sales)
        if demand_traces is not None:
            demand_traces = _check_traces(demand_traces, num_items, batch_size, horizon)
            batch_size = demand_traces.shape[:1] if batch_size is None else batch_size
            horizon = demand_traces.shape[1] if horizon is None else horizon
            if demand_mean is None:
                demand_mean = demand_traces.double().mean((0, 1)).clamp_min(1e-6).tolist()
        place: dict[str, Any] = {
            "dtype": check_dtype(dtype),
            "device": torch.device(device) if device is not None else None,
        }
        demand_mean = 10.0 if demand_mean is None else demand_mean
        mean = per_item("demand_mean", demand_mean, num_items, strict=True, **place)
        holding = per_item("holding_cost", holding_cost, num_items, **place)
        shortage = per_item("shortage_cost", shortage_cost, num_items, **place)
        procurement = per_item("procurement_cost", procurement_cost, num_items, **place)
        check_float("fixed_cost", fixed_cost, minimum=0.0)
        slots = max(lead_time, 1)
        # Economic order interval: the whole number of periods that balances K against holding.
        interval = (2 * fixed_cost / float((holding * mean).sum().clamp_min(1e-9))) ** 0.5
        order_interval = max(1, round(min(interval, _LONGEST_INTERVAL)))
        super().__init__(
            num_discrete=num_discrete,
            continuous_dim=num_items,
            continuous_bounds=(0.0, None),
            # Ordering every other period, as an untrained policy does, must outrun demand: orders
            # of two periods' demand at least, or a backlog builds up before anything is learned.
            action_scale=max(order_interval, 2) * mean,
            state_shapes={"inventory": (num_items, slots)},
            observation_dim=num_items * slots,
            noise_shape=(num_items,),
            horizon=horizon,
            horizon_terminates=False,
            batch_size=() if batch_size is None else batch_size,
            device=device,
            dtype=dtype,
            seed=seed,
        )
        self.num_items, self.lead_time, self.lost_sales = num_items, lead_time, lost_sales
        self.demand, self.start = demand, initial_state
        self.demand_mean, self.fixed_cost = mean, float(fixed_cost)
        self._slot_mean = mean.repeat_interleave(slots)
        self.holding_cost, self.shortage_cost = holding, shortage
        self.procurement_cost = procurement
        self.demand_traces = (
            None if demand_traces is None else demand_traces.to(dtype=dtype, device=self.device)
        )
        self.cost_units = float(num_items)
        self.order_interval = order_interval

    @classmethod
    def heterogeneous(
        cls,
        num_items: int,
        *,
        instance_seed: int = 0,
        demand_range: Sequence[float] = (6.0, 14.0),
        holding_range: Sequence[float] = (0.7, 1.3),
        shortage_range: Sequence[float] = (6.3, 11.7),
        **others,
    ) -> StockEnv:
        """Make an environment whose items differ: means and costs drawn uniformly, once.

        The first n items of a longer instance of the same seed are the instance of n items, so
        that sizes can be compared.

        Args:
            num_items: number of items n.
            instance_seed: seed of the draw.
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
        make: Any = cls  # of a subclass, whose arguments begin with the items
        return make(num_items, **others)

    def rules(self) -> dict[str, Callable[[], nn.Module]]:
        """Return (s, S) (by total demand for several items), (R, S) and order-up-to."""
        return {
            "s_S": partial(TotalDemandPolicy.best, self),
            "R_S": partial(PeriodicPolicy.best, self),
            "order_up_to": partial(OrderUpToPolicy.best, self),
        }

    def observe(self, state: State) -> Tensor:
        """Return the inventory in periods of mean demand, flat: ``(*B, n * max(L, 1))``."""
        return state["inventory"].flatten(-2) / self._slot_mean

    @abc.abstractmethod
    def order_action(self, ordering: Tensor, quantity: Tensor) -> dict[str, Tensor]:
        """Return the action that orders ``quantity`` ``(*B, n)`` where ``ordering`` ``(*B,)``."""

    def after_period(
        self, pipeline: Sequence[Tensor], order: Tensor, level: Tensor
    ) -> dict[str, Tensor]:
        """Let the pipeline move on: the next state.

        Args:
            pipeline: what was to arrive in one period, in two, and so on, each ``(*B, n)``.
            order: what was ordered in this period, ``(*B, n)``.
            level: on hand at its end (without the order, unless L = 0), ``(*B, n)``.
        """
        if self.lead_time == 0:
            slots = [level]
        elif self.lead_time == 1:
            slots = [level + order]
        else:
            arriving, *later = pipeline
            slots = [level + arriving, *later, order]
        return {"inventory": torch.stack(slots, -1)}

    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Return the demand of the coming periods, ``(*B, T, n)``.

        Traces are read from each system's own step, and again from the start after their end.
        """
        if self.demand_traces is not None:
            length = self.demand_traces.shape[1]
            steps = torch.arange(num_steps, device=self.device)
            at = (state["step"] + steps) % min(length, self.horizon or length)
            return self.demand_traces.gather(1, at.unsqueeze(-1).expand(-1, -1, self.num_items))
        return self._demand(self.demand_mean.expand(*self.batch_size, num_steps, self.num_items))

    def initial_state(self) -> dict[str, Tensor]:
        """Draw the start of an episode as ``initial_state`` says."""
        shape = self.state_spec["inventory"].shape
        inventory = torch.zeros(shape, dtype=self.float_dtype, device=self.device)
        if self.start == "random":
            inventory = self._random_inventory(inventory)
        elif self.start == "stationary":
            inventory = self._stationary_inventory(inventory)
        return {"inventory": inventory}

    @property
    def solvable(self) -> bool:
        """Whether the oracles' assumptions hold: backlogged Poisson demand, h and p above 0."""
        return (
            self.demand == "poisson"
            and self.demand_traces is None
            and not self.lost_sales
            and bool((self.holding_cost > 0).all())
            and bool((self.shortage_cost > 0).all())
        )

    @property
    def order_up_to(self) -> Tensor:
        """Mean demand of lead time, review and one order interval, ``(n,)``: a rough S."""
        return (self.lead_time + 1 + self.order_interval) * self.demand_mean

    def _random_inventory(self, inventory: Tensor) -> Tensor:
        # Wide on purpose: rare states must be seen in training. On hand from one period of
        # backlog up to the rough S, and half the systems await an order anywhere in the pipeline.
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
        # Simulate order-up-to every interval for long enough to forget the start; each system
        # begins at its own point of the cycle.
        inventory[..., 0] = self.order_up_to
        phase = (self._draw(torch.rand, self.batch_size) * self.order_interval).long()
        mean = self.demand_mean.expand(*self.batch_size, self.num_items)
        for period in range(self.lead_time + 2 * self.order_interval):
            ordering = (period + phase) % self.order_interval == 0
            quantity = (self.order_up_to - inventory.sum(-1)).clamp_min(0.0)
            action = self.order_action(ordering, quantity)
            demand = self._demand(mean)
            inventory = self.dynamics({"inventory": inventory}, action, demand)[0]["inventory"]
        return inventory

    def _demand(self, mean: Tensor) -> Tensor:
        if self.demand == "poisson":
            return torch.poisson(mean, generator=self.rng)
        return (mean + mean.sqrt() * self._draw(torch.randn, mean.shape)).clamp_min(0.0)

    def _draw(self, sampler, shape) -> Tensor:
        return sampler(shape, generator=self.rng, dtype=self.float_dtype, device=self.device)


def _check_traces(
    traces: Tensor, num_items: int, batch_size: int | Sequence[int] | None, horizon: int | None
) -> Tensor:
    traces = torch.as_tensor(traces)
    if traces.ndim != 3 or traces.shape[-1] != num_items or 0 in traces.shape:
        raise ValueError(
            "demand_traces must have shape (B, T, n) = (systems, periods, items) with "
            f"n = num_items = {num_items}, got {tuple(traces.shape)}."
        )
    if not bool(torch.isfinite(traces).all()) or bool((traces < 0).any()):
        raise ValueError("demand_traces must be finite and >= 0; they hold NaN, inf or negatives.")
    if batch_size is not None and check_sizes("batch_size", batch_size) != [traces.shape[0]]:
        raise ValueError(
            f"batch_size={batch_size} disagrees with demand_traces of {traces.shape[0]} systems; "
            "leave it out (on the command line: env.batch_size=null) or make them equal."
        )
    if horizon is not None and isinstance(horizon, int) and horizon > traces.shape[1]:
        raise ValueError(
            f"horizon={horizon} is longer than demand_traces, which hold {traces.shape[1]} "
            "periods; shorten the horizon or give longer traces."
        )
    return traces
