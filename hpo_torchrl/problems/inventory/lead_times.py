"""When an order arrives: lead times by its size, drawn, or of the supplier that is chosen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_floats, check_int, entries_of
from hpo_torchrl.envs.pieces import Breakpoint
from hpo_torchrl.problems.inventory.features import ALONE, Feature, Schedule


class LeadTimes(Schedule, name="lead_times"):
    r"""A lead time by the size of the order: :math:`L_j` for :math:`b_j \le q < b_{j+1}`.

    Args:
        breaks: quantities :math:`b_1 < b_2 < \dots` of :math:`q = \sum_i q_i`.
        lead_times: periods until an order below the first break can be used, from the first on,
            and so on; 1 and up.
    """

    def __init__(self, breaks: Sequence[float], lead_times: Sequence[int]) -> None:
        for at, periods in enumerate(entries_of("LeadTimes.lead_times", lead_times)):
            check_int(f"LeadTimes.lead_times[{at}]", periods, minimum=1)
        super().__init__(breaks, lead_times, "lead_times")
        if not self.joint:
            raise ValueError(f"LeadTimes.breaks are of the total quantity, got {list(breaks)}.")
        self.lead_times = [*map(int, lead_times)]

    def lead_time(self, order: Tensor, supplier: Tensor) -> Tensor:
        """The lead time of the step that the quantity is on."""
        return self._value_at(self._amounts(order)).squeeze(-1).long()


class RandomLeadTimes(Feature, name="random_lead_times"):
    r"""Lead times that are drawn anew for every order, from those that were observed.

    Each observed one is equally likely: give it as often as it was seen. A later order may arrive
    before an earlier one.

    Args:
        periods: observed periods until an order can be used, 1 and up, which all items of an order
            have in common; or a list of them for each item, whose lead times are drawn apart.
    """

    def __init__(self, periods: Sequence[int] | Sequence[Sequence[int]]) -> None:
        rows = entries_of("RandomLeadTimes.periods", periods)
        apart = any(not isinstance(row, int) for row in rows)
        seen = [entries_of("RandomLeadTimes.periods", row) for row in rows] if apart else [rows]
        if not seen or not all(seen):
            raise ValueError("RandomLeadTimes.periods must hold one observed lead time at least.")
        for L in itertools.chain.from_iterable(seen):
            check_int("RandomLeadTimes.periods", L, minimum=1)
        self.lead_times = sorted(set(itertools.chain.from_iterable(seen)))
        self.counts, self.draws = [len(row) for row in seen], len(seen)
        # All of one length: a draw in [0, 1) picks one of an item's own.
        self.periods = [row + [row[-1]] * (max(self.counts) - len(row)) for row in seen]
        self.by_item = ("periods",) if apart else ()

    def arriving(self, order: Tensor, supplier: Tensor) -> Tensor:
        """Return what arrives in one period, in two, and so on: ``(*B, n, L)``.

        Args:
            order: ``(*B, n)``.
            supplier: draws from [0, 1), ``(*B, 1)``, or ``(*B, n)`` for items apart.
        """
        place: dict[str, Any] = {"device": order.device}
        seen, counts = torch.tensor(self.periods, **place), torch.tensor(self.counts, **place)
        picked = torch.minimum((supplier * counts).long(), counts - 1)
        slots = seen[torch.arange(len(counts), **place), picked] - 1
        arrival = torch.nn.functional.one_hot(slots, max(self.lead_times))
        return order.unsqueeze(-1) * arrival.to(order.dtype)


class Suppliers(Feature, name="suppliers"):
    r"""A choice of supplier s, a discrete action of its own: price :math:`v_s\,q`, lead time L_s.

    Args:
        lead_times: periods until an order of each supplier can be used, 1 and up.
        prices: price per unit of each supplier.
        fixed_costs: cost of an order with each supplier.
    """

    def __init__(
        self,
        lead_times: Sequence[int],
        prices: Sequence[float],
        fixed_costs: Sequence[float] | None = None,
    ) -> None:
        self.lead_times = [
            check_int("Suppliers.lead_times", L, minimum=1)
            for L in entries_of("Suppliers.lead_times", lead_times)
        ]
        self.prices = check_floats("Suppliers.prices", prices)
        none = [0.0] * len(self.lead_times)
        self.fixed_costs = check_floats("Suppliers.fixed_costs", fixed_costs or none)
        if not 0 < len(self.lead_times) == len(self.prices) == len(self.fixed_costs):
            raise ValueError(
                "Suppliers needs as many lead_times as prices and fixed_costs, got "
                f"{len(self.lead_times)}, {len(self.prices)} and {len(self.fixed_costs)}."
            )
        self.fixed_cost = min(self.fixed_costs)

    def breakpoints(self) -> list[Breakpoint]:
        """No order stands alone where one costs something."""
        return [ALONE] if any(self.fixed_costs) else []

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """Price and fixed cost of the supplier."""
        total = quantity.sum(-1)
        price, fixed = torch.tensor([self.prices, self.fixed_costs]).to(total)[:, supplier]
        return price * total + fixed * (total > 0).to(total.dtype)

    def lead_time(self, order: Tensor, supplier: Tensor) -> Tensor:
        """The lead time of the supplier."""
        return torch.tensor(self.lead_times, device=order.device)[supplier]
