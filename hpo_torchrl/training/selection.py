"""Which update's policy a run ends with."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import nn

from hpo_torchrl.core.checks import check_choice

SELECTIONS = ("last", "best")


class Selection:
    """Remember the policy of the evaluation that cost least.

    Where all data there are have been split into parts, training fits one of them ever better
    while another gets worse; the policy to keep is that of the least cost on a part that is
    neither trained nor reported on. With simulated demand there is nothing to overfit, and the last
    policy is the honest one.

    Args:
        select: ``"last"`` remembers nothing; ``"best"`` does.

    Raises:
        ValueError: ``select`` is neither.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.training import Selection
        >>> net, selection = torch.nn.Linear(1, 1), Selection("best")
        >>> for update, cost in enumerate([3.0, 2.0, 4.0]):
        ...     _ = torch.nn.init.constant_(net.weight, cost)
        ...     selection.offer(net, update, cost)
        >>> selection.apply(net)
        >>> float(net.weight.detach()), selection.update
        (2.0, 1)
    """

    def __init__(self, select: str = "last") -> None:
        self.select = check_choice("select", select, SELECTIONS)
        self.cost, self.update = math.inf, -1
        self._weights: dict[str, Any] = {}

    def offer(self, policy: nn.Module, update: int, cost: float) -> None:
        """Remember the policy if it costs less than all before it."""
        if self.select == "best" and cost < self.cost:
            self.cost, self.update = cost, update
            self._weights = copy.deepcopy(policy.state_dict())

    def apply(self, policy: nn.Module) -> None:
        """Give the policy the weights that are remembered, if any are."""
        if self._weights:
            policy.load_state_dict(self._weights)

    @property
    def counters(self) -> dict[str, int]:
        """What a summary says of it: ``selected_update``, if one was selected."""
        return {"selected_update": self.update} if self.update > 0 else {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        return {"cost": self.cost, "update": self.update, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.cost, self.update = float(state["cost"]), int(state["update"])
        self._weights = dict(state["weights"])
