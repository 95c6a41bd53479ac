"""Batteries: their numbers, and what one step does to them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_float, check_int, per_item

IDLE, CHARGE, DISCHARGE = range(3)  # the modes of a battery


class Flow(NamedTuple):
    """What a step does, each of shape ``(*B, N)``.

    Attributes:
        content: energy in the batteries after the step, MWh.
        power: mean power taken from the grid during the step, MW; negative is given to it.
        wear: cost of the energy that passed through.
    """

    content: Tensor
    power: Tensor
    wear: Tensor


class Batteries(NamedTuple):
    r"""N batteries, each entry a tensor of shape ``(N,)``.

    With content :math:`c`, power :math:`p \ge 0`, a step of :math:`h` hours and self-discharge
    :math:`\delta` per hour, :math:`k = (1 - \delta)^h` of the content is kept, and

    .. math::
        c' = \operatorname{clip}(k c + h \eta_c\, p\, 1[\text{charge}]
             - h p / \eta_d\, 1[\text{discharge}],\; 0,\; \bar c)

    The power that the grid sees is what this takes: :math:`(c' - kc) / (h \eta_c)` when charging,
    :math:`(c' - kc)\, \eta_d / h` when discharging. A power beyond what the content allows is thus
    cut at that, and every action is feasible.

    Attributes:
        capacity: :math:`\bar c`, the most energy in a battery, MWh.
        charge_rating: the most power taken from the grid, MW.
        discharge_rating: the most power given to the grid, MW.
        charge_efficiency: :math:`\eta_c`, share of the energy taken that is stored.
        discharge_efficiency: :math:`\eta_d`, share of the energy drawn that reaches the grid.
        wear_cost: cost per MWh taken from the grid or given to it.
        self_discharge: :math:`\delta`, share of the content lost in an hour.
        initial_content: share of the capacity that is full at first.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.problems.storage.batteries import CHARGE, DISCHARGE, Batteries
        >>> two = Batteries.of(2, capacity=4.0, charge_efficiency=0.8, wear_cost=1.0)
        >>> mode = torch.tensor([CHARGE, DISCHARGE])
        >>> flow = two.step(torch.tensor([0.0, 0.5]), mode, torch.tensor([1.0, 1.0]), hours=0.5)
        >>> [[round(x, 4) for x in row.tolist()] for row in flow]
        [[0.4, 0.0], [1.0, -0.95], [0.5, 0.475]]
    """

    capacity: Tensor
    charge_rating: Tensor
    discharge_rating: Tensor
    charge_efficiency: Tensor
    discharge_efficiency: Tensor
    wear_cost: Tensor
    self_discharge: Tensor
    initial_content: Tensor

    @classmethod
    def of(
        cls,
        number: int,
        *,
        capacity: Any = 4.0,
        charge_rating: Any = 1.0,
        discharge_rating: Any = 1.0,
        charge_efficiency: Any = 0.95,
        discharge_efficiency: Any = 0.95,
        wear_cost: Any = 0.0,
        self_discharge: Any = 0.0,
        initial_content: Any = 0.5,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Batteries:
        """Check the numbers, each one for all batteries or a sequence with one per battery.

        Raises:
            TypeError: an entry is not a number.
            ValueError: a number is out of range, or a sequence has another length.
        """
        check_int("num_batteries", number, minimum=1)
        positive = {
            "capacity": capacity,
            "charge_rating": charge_rating,
            "discharge_rating": discharge_rating,
            "charge_efficiency": charge_efficiency,
            "discharge_efficiency": discharge_efficiency,
        }
        others = {
            "wear_cost": wear_cost,
            "self_discharge": self_discharge,
            "initial_content": initial_content,
        }
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        rows = {
            name: per_item(name, value, number, strict=name in positive, **place)
            for name, value in (positive | others).items()
        }
        for name, row in rows.items():
            if name.endswith(("efficiency", "discharge", "content")):
                check_float(name, float(row.max()), maximum=1.0)
        return cls(**rows)

    def step(self, content: Tensor, mode: Tensor, power: Tensor, hours: float) -> Flow:
        """Run the batteries for one step: a pure function.

        Gradients flow from all that is returned to content and power. Where the content's limit
        cuts a power, what is returned no longer depends on that power, and its gradient is 0.

        Args:
            content: energy in the batteries, ``(*B, N)``, MWh.
            mode: 0 idle, 1 charge, 2 discharge, ``(*B, N)``.
            power: at the grid, not negative and within the rating, ``(*B, N)``, MW.
            hours: length of the step.
        """
        kept = content * (1 - self.self_discharge) ** hours
        stored = torch.where(mode == CHARGE, power * self.charge_efficiency, 0.0)
        drawn = torch.where(mode == DISCHARGE, power / self.discharge_efficiency, 0.0)
        after = torch.minimum((kept + hours * (stored - drawn)).clamp_min(0.0), self.capacity)
        moved = (after - kept) / hours
        taken = torch.where(mode == CHARGE, moved / self.charge_efficiency, 0.0)
        given = torch.where(mode == DISCHARGE, -moved * self.discharge_efficiency, 0.0)
        return Flow(after, taken - given, hours * self.wear_cost * (taken + given))
