"""Batteries that trade energy at a wandering price."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpo_torchrl.core.categorical import BranchBounds
from hpo_torchrl.core.checks import check_bool, check_float, check_floats, check_int, in_dtype
from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.envs.differentiable import Action, DifferentiableEnv, State
from hpo_torchrl.problems.storage.batteries import CHARGE, DISCHARGE, IDLE, Batteries
from hpo_torchrl.problems.storage.describe import describe_storage
from hpo_torchrl.problems.storage.prices import Prices, series, steps_of_day
from hpo_torchrl.problems.storage.rules import PlanPolicy, PriceThresholds


class StorageEnv(DifferentiableEnv):
    r"""N batteries behind one connection buy and sell energy at a price that wanders.

    Each battery idles, charges or discharges (its discrete action), at a power of its own (its
    continuous action, MW, within the rating). :class:`~hpo_torchrl.problems.storage.Batteries` has
    the equations of the content. With power :math:`p_i` taken from the grid (negative when given),
    :math:`P = \sum_i p_i`, a load :math:`l` behind the same meter and :math:`x = P + l`, a step of
    :math:`h` hours costs

    .. math::
        h \Big( (f_t + y) P + \tfrac{a}{N} P^2
        + \sum_i (w_i |p_i| + r\, 1[\text{mode}_i \ne \text{idle}])
        + b\, [x - \bar x]_+ + b\, [-x - \underline x]_+ \Big)
        + d\, [x - \hat x]_+

    and then :math:`y' = \kappa y + \sigma \epsilon` and :math:`\hat x' = \max(\hat x, x)`: a price
    per MWh that the batteries' own power moves (a), wear (w), a cost of running (r), a soft limit
    of the connection (b), and a fee on the highest import of the billing period (d), charged as the
    peak grows. The energy of the load itself is paid whatever the batteries do, and left out.

    The state is ``"content"`` ``(*B, N)`` in MWh, ``"deviation"`` y ``(*B, 1)``, ``"hour"``
    ``(*B, 1)``, the step of the price's cycle, and with a demand charge ``"peak"`` ``(*B, 1)`` in
    MW. The ``"observation"`` has, in this order and each of order 1: the content of each battery
    (-1 empty, 1 full); the price and, where it wanders, its deviation; the prices to be expected
    some hours ahead; sine and cosine of the hour of the day; the peak; the load; with a horizon the
    share of it that is over. The reward is the negated cost of all batteries; ``cost_units`` is N,
    so that reports are per battery and step.

    Gradients flow as :class:`DifferentiableEnv` says. Guard: where the content's limit cuts a
    power, no gradient reaches that power.

    Args:
        num_batteries: number N of batteries; with more than one, each is a head.
        shared_mode: whether all have one mode, as behind one converter: a single choice.
        price: f, prices per MWh step by step of a cycle that comes again (a day, or a record): a
            number, a sequence, or a CSV file with a column ``price``; ``None`` is a typical day.
        price_kept: :math:`\kappa`, share of the deviation left after a step.
        price_shock: :math:`\sigma`; 0 makes prices known beforehand.
        step_hours: h, the length of a step.
        forecast_hours: hours ahead of which the expected price is observed; ``[]`` is none.
        price_impact: a, rise of the price per MW that an average battery takes.
        running_cost: r, cost of an hour in which a battery does not idle.
        connection_limit: most import and export of the connection, MW: one number, or a pair;
            ``None`` is no limit.
        excess_cost: b, cost per MWh beyond that limit.
        load: l, power used on site step by step, MW: as ``price``, with a cycle of its own.
        demand_charge: d, fee per MW of the highest import in an episode; needs a horizon.
        initial_content: share of the capacity that is full at first; ``None`` draws it.
        horizon: steps of an episode or billing period, from the first step of the cycle on;
            ``None`` goes on for ever, from any.
        capacity: energy that each holds, MWh, one number or one per battery, as those below.
        charge_rating: most power taken from the grid, MW.
        discharge_rating: most power given to the grid, MW.
        charge_efficiency: share of the energy taken that is stored.
        discharge_efficiency: share of the energy drawn that reaches the grid.
        wear_cost: w, cost per MWh taken or given.
        self_discharge: share of the content lost in an hour.
        others: ``batch_size``, ``device``, ``dtype`` and ``seed`` of :class:`DifferentiableEnv`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is out of range, or a demand charge has no horizon.

    Examples:
        >>> from hpo_torchrl.problems import StorageEnv
        >>> env = StorageEnv(num_batteries=3, batch_size=4, seed=0)
        >>> rollout = env.rollout(5)
        >>> rollout["content"].shape, rollout["observation"].shape
        (torch.Size([4, 5, 3]), torch.Size([4, 5, 11]))
        >>> rollout["action", "discrete"].shape, rollout["action", "continuous"].shape
        (torch.Size([4, 5, 3]), torch.Size([4, 5, 3]))
    """

    def __init__(
        self,
        num_batteries: int = 1,
        *,
        shared_mode: bool = False,
        price: Any = None,
        price_kept: float = 0.9,
        price_shock: float = 8.0,
        step_hours: float = 1.0,
        forecast_hours: Sequence[float] = (1, 3, 6, 12),
        price_impact: float = 5.0,
        running_cost: float = 1.0,
        connection_limit: Any = None,
        excess_cost: float = 100.0,
        load: Any = 0.0,
        demand_charge: float = 0.0,
        capacity: Any = 4.0,
        charge_rating: Any = 1.0,
        discharge_rating: Any = 1.0,
        charge_efficiency: Any = 0.95,
        discharge_efficiency: Any = 0.95,
        wear_cost: Any = 1.0,
        self_discharge: Any = 0.0,
        initial_content: Any = None,
        horizon: int | None = None,
        **others: Any,
    ) -> None:
        N = check_int("num_batteries", num_batteries, minimum=1)
        self.step_hours = check_float("step_hours", step_hours, minimum=0.0, strict=True)
        prices = Prices.of(price, price_kept, price_shock, self.step_hours)
        ahead = check_floats("forecast_hours", forecast_hours, strict=True)
        self._ahead = [max(1, round(hours / self.step_hours)) for hours in ahead]
        site = series("load", load)
        charge = check_float("demand_charge", demand_charge, minimum=0.0)
        if charge and horizon is None:
            raise ValueError(
                f"demand_charge={charge:g} needs a horizon, the steps of a billing period, got "
                f"None: write env.horizon={30 * steps_of_day(self.step_hours)} for 30 days."
            )
        batteries = Batteries.of(
            N,
            capacity=capacity,
            charge_rating=charge_rating,
            discharge_rating=discharge_rating,
            charge_efficiency=charge_efficiency,
            discharge_efficiency=discharge_efficiency,
            wear_cost=wear_cost,
            self_discharge=self_discharge,
            initial_content=0.5 if initial_content is None else initial_content,
            dtype=others.get("dtype", torch.float32),
        )
        rating = torch.stack([batteries.charge_rating, batteries.discharge_rating], -1)
        top = torch.cat([torch.zeros(N, 1, dtype=rating.dtype), rating], -1).unsqueeze(-1)
        heads = None if N == 1 or check_bool("shared_mode", shared_mode) else N
        top = top if heads else top.squeeze(-1).mT
        bounds = BranchBounds(torch.zeros_like(top), top)
        most = rating.amax(-1)
        shown = [prices.shock > 0, charge > 0, bool(site.any()), horizon is not None]
        super().__init__(
            num_discrete=3,
            continuous_dim=N,
            num_heads=heads,
            branch_bounds=bounds,
            continuous_bounds=(0.0, most.tolist()),
            action_scale=most,
            state_shapes={
                "content": (N,),
                "deviation": (1,),
                "hour": (1,),
                **({"peak": (1,)} if charge else {}),
            },
            observation_dim=N + 3 + len(self._ahead) + sum(shown),
            noise_shape=(1,),
            horizon=horizon,
            horizon_terminates=True,
            **others,
        )
        self.num_batteries, self.cost_units = N, float(N)
        self.cycle_length = steps_of_day(self.step_hours)
        self.price_impact = check_float("price_impact", price_impact, minimum=0.0)
        self.running_cost = check_float("running_cost", running_cost, minimum=0.0)
        self.excess_cost = check_float("excess_cost", excess_cost, minimum=0.0)
        self.connection = _limits(connection_limit)
        self.demand_charge, self.prices, self.load = charge, prices, site
        self.random_content = initial_content is None
        place: dict[str, Any] = {"dtype": self.float_dtype, "device": self.device}
        self.batteries = Batteries(*(row.to(**place) for row in batteries))
        # Both cycles begin together again after their least common multiple.
        self.cycle = math.lcm(len(prices.profile), len(site))
        for name, numbers in {"price": prices.profile, "load": site}.items():
            table = torch.as_tensor(numbers).tile(self.cycle // len(numbers))
            setattr(self, f"{name}_by_step", in_dtype(name, table, **place))
        self._price_unit = max(math.hypot(prices.spread, prices.profile.std()), 1.0)
        self._power_unit = float(most.sum()) + float(abs(site).max())

    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        r"""Take one step; the equations stand in the class docstring.

        Args:
            state: ``"content"``, ``"deviation"``, ``"hour"`` and perhaps ``"peak"``.
            action: ``"discrete"`` ``(*B, N)``, or ``(*B,)`` of one mode for all;
                ``"continuous"`` ``(*B, N)``.
            noise: :math:`\epsilon`, ``(*B, 1)``.

        Returns:
            The next state and the reward ``(*B,)``.
        """
        hour, deviation, mode = state["hour"], state["deviation"], action["discrete"]
        mode = mode if self.num_heads else mode.unsqueeze(-1).expand_as(state["content"])
        flow = self.batteries.step(state["content"], mode, action["continuous"], self.step_hours)
        total = flow.power.sum(-1, keepdim=True)
        net = total + self.of_hour(self.load_by_step, hour)
        rate = (self.of_hour(self.price_by_step, hour) + deviation) * total + self.joint_cost(
            total, net
        )
        running = self.running_cost * (mode != IDLE).sum(-1, keepdim=True)
        cost = self.step_hours * (rate + running) + flow.wear.sum(-1, keepdim=True)
        later = {
            "content": flow.content,
            "deviation": self.prices.kept * deviation + self.prices.shock * noise,
            "hour": (hour + 1) % self.cycle,
        }
        if self.demand_charge:
            later["peak"] = torch.maximum(state["peak"], net)
            cost = cost + self.demand_charge * (later["peak"] - state["peak"])
        return later, -cost.squeeze(-1)

    def of_hour(self, table: Tensor, hour: Tensor) -> Tensor:
        """Return the entry of a table ``(T,)`` at each step of the cycle, which comes again."""
        return table[hour.long() % self.cycle]

    def joint_cost(self, total: Any, net: Any) -> Any:
        """Return what an hour costs for all batteries together, beside the energy.

        Args:
            total: power of the batteries, MW.
            net: power of the connection, MW.
        """
        cost = self.price_impact / self.num_batteries * total**2
        if self.connection is not None:
            most, least = self.connection
            beyond = (net - most).clip(min=0.0) + (-net - least).clip(min=0.0)
            cost = cost + self.excess_cost * beyond
        return cost

    def observe(self, state: State) -> Tensor:
        """Return contents, price, hour, peak, load and time, as the class docstring orders them."""
        hour, deviation, prices = state["hour"], state["deviation"], self.prices
        angle = 2 * math.pi * self.step_hours / 24 * hour
        parts = [2 * state["content"] / self.batteries.capacity - 1]
        parts += [self._expected_price(hour, deviation, 0)]
        if prices.shock:
            parts.append(deviation / prices.spread)
        parts += [self._expected_price(hour, deviation, steps) for steps in self._ahead]
        parts += [angle.sin(), angle.cos()]
        if self.demand_charge:
            parts.append(state["peak"] / self._power_unit)
        if self.load.any():
            parts.append(self.of_hour(self.load_by_step, hour) / self._power_unit)
        if self.horizon is not None:
            parts.append(state["step"].to(deviation.dtype) / self.horizon)
        return torch.cat(parts, -1)

    def _expected_price(self, hour: Tensor, deviation: Tensor, steps: int) -> Tensor:
        """Return the price to be expected so many steps ahead, in units of its spread."""
        price = self.of_hour(self.price_by_step, hour + steps)
        price = price + self.prices.kept**steps * deviation
        return (price - float(self.prices.profile.mean())) / self._price_unit

    def initial_state(self) -> dict[str, Tensor]:
        """Draw contents, a stationary deviation and, without a horizon, the hour."""
        return self.starts(self.batch_size, self.rng)

    def starts(self, batch: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        """Draw initial states of any batch from any generator."""
        how: Any = {"generator": generator, "dtype": self.float_dtype, "device": self.device}
        content = self.batteries.initial_content.expand(*batch, self.num_batteries)
        if self.random_content:
            content = torch.rand(content.shape, **how)
        hour = (self.cycle * torch.rand((*batch, 1), **how)).floor().clamp_max(self.cycle - 1)
        state = {
            "content": content * self.batteries.capacity,
            "deviation": self.prices.spread * torch.randn((*batch, 1), **how),
            "hour": hour if self.horizon is None else torch.zeros_like(hour),
        }
        return {**state, "peak": torch.zeros_like(hour)} if self.demand_charge else state

    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Return the shocks of the coming steps, ``(*B, T, 1)``."""
        return self._draw(torch.randn, (*self.batch_size, num_steps, 1))

    def opposite_noise(self, noise: Tensor) -> Tensor | None:
        """Return shocks of the other sign; none where prices are known."""
        return -noise if self.prices.shock else None

    def heuristic_choice(self, observation: Tensor) -> Tensor:
        """Charge where the price is low, and discharge where it is high, all batteries alike."""
        price = observation[..., self.num_batteries]
        mode = CHARGE * (price < -0.5) + DISCHARGE * (price > 0.5)
        return mode.unsqueeze(-1).expand(*mode.shape, self.num_heads) if self.num_heads else mode

    def rules(self) -> dict[str, Callable[[], nn.Module]]:
        """Return the best price thresholds and, where there is one, the plan of all as one."""
        return {
            "price_thresholds": partial(PriceThresholds.best, self),
            "plan": partial(PlanPolicy.best, self),
        }

    def reference(self, test: Test) -> Reference:
        """Return the optimum, or bounds on it, and what the rules cost."""
        from hpo_torchrl.problems.storage.reference import (  # scipy is slow to load
            storage_reference,
        )

        return storage_reference(self, test)

    def describe(
        self,
        policy: Any,
        tests: Mapping[str, Test],
        reference: Reference,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """Say how often each mode is taken, and draw three days: price, content and power."""
        return {**reference.details, **describe_storage(self, policy, folder)}


def _limits(limit: Any) -> tuple[float, float] | None:
    """Return the most import and export of a connection."""
    if limit is None:
        return None
    ends = list(limit) if isinstance(limit, (list, tuple)) else [limit, limit]
    if len(ends) != 2:
        raise ValueError(
            f"connection_limit must be one number of MW or a pair (import, export), got {limit!r}."
        )
    most, least = (check_float("connection_limit", end, minimum=0.0) for end in ends)
    return most, least
