"""The parts of a run that belong to one seed, and the choice of the policy it ends with."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hpo_torchrl.algorithms import Algorithm
from hpo_torchrl.core.checks import check_choice
from hpo_torchrl.training.checkpoint import Checkpoint
from hpo_torchrl.training.run_folder import RunFolder
from hpo_torchrl.training.run_logger import RunLogger


class Selection:
    """Remember the policy of the evaluation that cost least.

    Where all data there are have been split into parts, training fits one of them ever better
    while another gets worse; the policy to keep is that of the least cost on a part that is
    neither trained nor reported on. With simulated demand there is nothing to overfit, and the last
    policy is the honest one.

    Args:
        select: ``"last"`` remembers nothing; ``"best"`` does.

    Attributes:
        update: the update whose policy is remembered; -1 before any is.

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
        self.select = check_choice("select", select, ("last", "best"))
        self.cost, self.update = math.inf, -1
        self.weights: dict[str, Any] = {}

    def offer(self, policy: nn.Module, update: int, cost: float) -> None:
        """Remember the policy if it costs less than all before it, and its cost is finite."""
        if self.select == "best" and -math.inf < cost < self.cost:
            self.cost, self.update = cost, update
            self.weights = copy.deepcopy(policy.state_dict())

    def apply(self, policy: nn.Module) -> None:
        """Give the policy the weights that are remembered, if any are."""
        if self.weights:
            policy.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        return {"cost": self.cost, "update": self.update, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.cost, self.update = float(state["cost"]), int(state["update"])
        self.weights = dict(state["weights"])


class SeedRun:
    """The parts of a run that belong to one seed: policy, folder, checkpoints, log, best policy.

    Args:
        algorithm: the algorithm.
        folder: folder of the run.
        config: the configuration that checkpoints are bound to.
        index: which of the algorithm's seeds it is; ``None`` for an algorithm of one seed.
        select: see :class:`Selection`.
        logger: further arguments of :class:`RunLogger`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        folder: str | Path,
        config: Mapping[str, Any],
        *,
        index: int | None = None,
        select: str = "last",
        logger: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.index = RunFolder(folder), index
        self.policy = algorithm.policy if index is None else algorithm.policy.members[index]
        self.selection = Selection(select)
        components = dict(algorithm.components(index))
        if algorithm.learns and select == "best":
            components["selection"] = self.selection
        self.checkpoint = Checkpoint(folder, components, config=config)
        told = {"config": config, "of_seeds": index is not None, **(logger or {})}
        self.logger = RunLogger(folder, **told)

    def select(self) -> None:
        """Give the policy the weights that the run ends with."""
        self.selection.apply(self.policy)
