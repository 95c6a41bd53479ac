"""Inventory control under recorded demand: a person's own sales, replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpo_torchrl.core.checks import check_bool, check_choice, check_int
from hpo_torchrl.envs.differentiable import Action, State
from hpo_torchrl.envs.specs import set_hybrid_specs
from hpo_torchrl.problems.inventory.demand_file import DemandFile, Split, read_once
from hpo_torchrl.problems.inventory.env import InventoryEnv
from hpo_torchrl.problems.inventory.record import check_periods, check_record, draw_places, wrap
from hpo_torchrl.problems.inventory.rules import TotalDemandPolicy

START_PERIODS = ("random", "first")


class RecordedInventoryEnv(InventoryEnv):
    """n items ordered together, as in :class:`InventoryEnv`, under demand that is replayed.

    Every item of a system has a place in the record and meets the demand that stands there, period
    by period; after the last of ``periods`` come the first ones again. The state is
    ``"inventory"``, ``(*B, n, max(L, 1))``; ``"recent"``, ``(*B, n, k)``: the last k demands met,
    oldest first; and ``"period"``, ``(*B, n)``: the places of the demand to come, as floats. The
    ``"observation"`` is inventory, then recent demand, flat and in periods of mean demand: not the
    place, which means nothing in other periods. Demand is the environment's noise, which depends
    on the state: :meth:`sample_noise` needs the state that a rollout starts in.

    A start has k periods of history, which may precede ``periods``. Stocks at the start are those
    of :class:`InventoryEnv`; ``"stationary"`` ones have met periods of ``train_periods``, drawn
    independently.

    A record is short, and a policy learns to know its periods by their recent demand. With
    ``season`` the items of a system start at places of their own, multiples of a season apart:
    each still meets its own record, in combinations too many to know. What items have in common
    besides the season is lost.

    Args:
        record: demand of all periods there are, ``(T, n)``.
        periods: which of them are replayed: ``(first, end)``, without ``end``; all by default.
        train_periods: which of them are known when decisions are learned: their mean is the unit
            of observations and actions, and rules are tuned to them. By default ``periods``.
        history: number k of recent demands in the observation, 1 and up.
        start_period: ``"random"``: anywhere in ``periods``, for training; ``"first"``: all items
            at the first of them that has k periods before it, for tests.
        season: periods of a season, by whose multiples items are apart at random starts (1: by any
            number); ``None`` keeps them together. It is kept too where the record begins again, as
            the first periods of an incomplete season are then left out.
        lead_time: periods L between placing an order and being able to use it, 0 and up.
        holding_cost: h, cost per unit on hand at the end of a period.
        shortage_cost: p, cost per unit short at the end of a period.
        procurement_cost: v, cost per unit ordered.
        fixed_cost_per_item: joint fixed cost per item; every order costs this times n.
        lost_sales: whether unmet demand is lost instead of backlogged.
        initial_state: ``"empty"``, ``"random"`` or ``"stationary"``, see :class:`InventoryEnv`.
        batch_size: number of systems simulated at once.
        device: where the tensors live.
        dtype: floating-point type.
        seed: seed of the environment's generator.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is negative, NaN, unknown, of the wrong shape or out of range, or an
            item has no demand in ``train_periods``.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.problems import RecordedInventoryEnv
        >>> record = torch.arange(12.0).unsqueeze(-1)  # one item, twelve periods
        >>> env = RecordedInventoryEnv(record, (8, 12), (0, 8), history=3, start_period="first")
        >>> start = env.reset()
        >>> start["recent"].tolist(), start["period"].tolist()
        ([[5.0, 6.0, 7.0]], [8.0])
        >>> env.sample_noise(6, start).squeeze(-1).tolist()
        [8.0, 9.0, 10.0, 11.0, 8.0, 9.0]
    """

    def __init__(
        self,
        record: Any,
        periods: Sequence[int] | None = None,
        train_periods: Sequence[int] | None = None,
        *,
        history: int = 14,
        start_period: str = "random",
        season: int | None = None,
        lead_time: int = 2,
        holding_cost: float | Sequence[float] = 1.0,
        shortage_cost: float | Sequence[float] = 9.0,
        procurement_cost: float | Sequence[float] = 0.0,
        fixed_cost_per_item: float = 64.0,
        lost_sales: bool = False,
        initial_state: str = "empty",
        batch_size: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int | None = None,
    ) -> None:
        check_int("history", history, minimum=1)
        check_choice("start_period", start_period, START_PERIODS)
        if season is not None:
            check_int("season", season, minimum=1)
        record = check_record(record)
        self.periods = check_periods("periods", periods or (0, len(record)), len(record), history)
        self.train_periods = check_periods(
            "train_periods", train_periods or self.periods, len(record), 0
        )
        known = record[slice(*self.train_periods)]
        for i in torch.nonzero(known.sum(0) == 0).flatten().tolist():
            raise ValueError(
                f"Item {i} has no demand in train_periods={self.train_periods}: nothing can be "
                "learned of it. Leave it out of the record, or give a longer one."
            )
        super().__init__(
            record.shape[-1],
            lead_time,
            known.mean(0).tolist(),
            holding_cost,
            shortage_cost,
            procurement_cost,
            fixed_cost_per_item,
            lost_sales,
            initial_state=initial_state,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            seed=seed,
        )
        self.demand, self.history, self.start_period = "recorded", history, start_period
        self.season = season
        self.record = record.to(dtype=dtype, device=self.device)
        self.source: DemandFile | None = None
        n, slots = self.num_items, max(lead_time, 1)
        shapes = {"inventory": (n, slots), "recent": (n, history), "period": (n,)}
        self.state_names = (*shapes, "step")
        set_hybrid_specs(self, shapes, n * (slots + history))

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
        fixed_cost_per_item: float = 64.0,
        lost_sales: bool = False,
        *,
        initial_state: str = "random",
        batch_size: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int | None = None,
    ) -> RecordedInventoryEnv:
        """Make an environment of the demand in a file; see :func:`read_demand` for its format.

        Costs that are not given are those of the file, else 1 (holding), 9 (shortage) and 0
        (procurement); see :meth:`DemandFile.costs` for what a price in the file means.

        Args:
            path: a ``.csv`` or ``.parquet`` file.
            split: which part is replayed: ``"train"``, ``"dev"`` or ``"test"``.
            fractions: shares of the periods, in their order, that are in these parts.
            history: see the class, like the arguments that follow.
            start_period: see there.
            season: see there.
            lead_time: see there.
            holding_cost: one number, or one per item in the order of their first appearance.
            shortage_cost: the same.
            procurement_cost: the same.
            fixed_cost_per_item: see the class.
            lost_sales: see there.
            initial_state: see there.
            batch_size: see there.
            device: see there.
            dtype: see there.
            seed: see there.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError: an argument has the wrong type.
            ValueError: the file cannot be read as it stands (``DemandFileError``: the message lists
                the lines), an argument is out of range, or a part of the record is too short.
        """
        if path is None:
            raise ValueError(
                "path must name a .csv or .parquet file of demand, got None; on the command line "
                "env.path=FILE (a sample is examples/data/generated_demand.csv)."
            )
        check_choice("split", split, Split._fields)
        check_int("history", history, minimum=1)
        check_int("lead_time", lead_time, minimum=0)
        check_bool("lost_sales", lost_sales)
        source = read_once(path)
        # Beside its history, a part needs periods in which an order is placed and arrives.
        parts = source.split(fractions, least=lead_time + 2)
        if parts.train[1] < history + lead_time + 2:
            raise ValueError(
                f"history={history} needs as many periods before the first decision and "
                f"{lead_time + 2} more, but the training part of {source.path.name} has "
                f"{parts.train[1]}; take a shorter history or a longer record."
            )
        silent = source.demand[slice(*parts.train)].sum(0) == 0
        if silent.any():
            names = [item for item, none in zip(source.items, silent, strict=True) if none]
            raise ValueError(
                f"No demand in the training part of {source.path.name} for {', '.join(names)}: "
                "nothing can be learned of it. Leave such items out, or choose other fractions."
            )
        costs: dict[str, Any] = source.costs(
            lost_sales,
            holding_cost=holding_cost,
            shortage_cost=shortage_cost,
            procurement_cost=procurement_cost,
        )
        env = cls(
            source.demand,
            getattr(parts, split),
            parts.train,
            history=history,
            start_period=start_period,
            season=season,
            lead_time=lead_time,
            fixed_cost_per_item=fixed_cost_per_item,
            lost_sales=lost_sales,
            initial_state=initial_state,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            seed=seed,
            **costs,
        )
        env.source = source
        return env

    @property
    def first_period(self) -> int:
        """The earliest period in which a system may start: it has ``history`` before it."""
        return max(self.periods[0], self.history)

    @property
    def num_periods(self) -> int:
        """How many periods there are from the first start to the end of ``periods``."""
        return self.periods[1] - self.first_period

    @property
    def items(self) -> list[str]:
        """The items' names; numbers where there is no file."""
        if self.source is None:
            return [str(i) for i in range(self.num_items)]
        return list(self.source.items)

    def span(self, first: int, end: int) -> str:
        """Return the first and the last of some periods, counted from the start, by their names."""
        names = range(len(self.record)) if self.source is None else self.source.periods
        first, end = (min(self.first_period + at, self.periods[1]) for at in (first, end))
        return f"{names[first]} to {names[end - 1]}"

    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        """Serve one period as :class:`InventoryEnv` does, remember its demand and move on."""
        after, reward = super().dynamics(state, action, noise)
        if "period" in state:  # stocks that are warmed up have no place in the record yet
            after["period"] = wrap(state["period"] + 1, self.periods, self.season)
            after["recent"] = torch.cat([state["recent"][..., 1:], noise.unsqueeze(-1)], -1)
        return after, reward

    def observe(self, state: State) -> Tensor:
        """Return inventory, then recent demand, in periods of mean demand, flat."""
        recent = state["recent"] / self.demand_mean.unsqueeze(-1)
        return torch.cat([super().observe(state), recent.flatten(-2)], -1)

    def rules(self) -> dict[str, Callable[[], nn.Module]]:
        """Return the (s, S) rule that was best in the training periods."""
        return {"s_S": lambda: TotalDemandPolicy.best(self)}

    def heuristic_choice(self, observation: Tensor) -> Tensor:
        """Order when the items' mean position no longer covers the lead time and one period."""
        return super().heuristic_choice(observation[..., : -self.num_items * self.history])

    def initial_state(self) -> dict[str, Tensor]:
        """Draw stocks as ``initial_state`` says and a place as ``start_period`` does."""
        period = self._first()
        if self.start_period == "random":
            starts = (self.first_period, self.periods[1])
            period = draw_places(period.shape, starts, self.season, self.rng)
        before = torch.arange(-self.history, 0, device=self.device).unsqueeze(-1)
        recent = self._read(period.unsqueeze(-2) + before).transpose(-1, -2)
        place = {"recent": recent, "period": period.to(self.float_dtype)}
        return {**super().initial_state(), **place}

    def sample_noise(self, num_steps: int, state: State | None = None) -> Tensor:
        """Return the recorded demand of a rollout, ``(*B, T, n)``.

        Args:
            num_steps: number of steps T.
            state: where the rollout starts, with its ``"period"``. ``None`` is the first period.

        Raises:
            ValueError: ``None``, where systems start anywhere.
        """
        if state is None:
            if self.start_period != "first":
                raise ValueError(
                    "Recorded demand depends on where a rollout starts: give that too, "
                    "env.sample_noise(T, env.reset()), or make the environment with "
                    "start_period='first'."
                )
            state = {"period": self._first()}
        return super().sample_noise(num_steps, state)

    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Read the demand of the coming periods from each system's place: ``(*B, T, n)``."""
        steps = torch.arange(num_steps, device=self.device).unsqueeze(-1)
        place = state["period"].long().unsqueeze(-2) + steps
        return self._read(wrap(place, self.periods, self.season))

    def _first(self) -> Tensor:
        shape = (*self.batch_size, self.num_items)
        return torch.full(shape, self.first_period, device=self.device)

    def _read(self, place: Tensor) -> Tensor:
        """Return the demand of each item at a place of its own: ``(..., n)`` of ``(..., n)``."""
        return self.record[place, torch.arange(self.num_items, device=self.device)]

    def _demand(self, mean: Tensor) -> Tensor:
        # Of stocks that are warmed up: whole periods, so that items keep what they have in common.
        first, end = self.train_periods
        place = torch.randint(
            first, end, mean.shape[:-1], generator=self.rng, device=self.rng.device
        )
        return self.record[place]
