"""A structured policy: what a net of units makes of the priority list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.envs import EnvBase

from hpo_torchrl.core.categorical import all_fixed
from hpo_torchrl.core.checks import check_bool
from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.modules import HybridNetwork, HybridPolicy, SetNet
from hpo_torchrl.problems.unit_commitment.env import UnitCommitmentEnv
from hpo_torchrl.problems.unit_commitment.rules import PriorityList
from hpo_torchrl.problems.unit_commitment.views import UnitViews

# Log-odds of the rule's own choice at the start.
_RULE = 4.0


class LearnedList(nn.Module):
    """Outputs for each discrete action of each unit from one net for all units.

    The net sees each unit's numbers and hours, and what is missing to the need of this hour and
    each later one when the priority list comes to it: what tells identical units apart. It says the
    logit, or the raw power, of a unit that is on; that of one that is off is 0. Batteries have a
    net of their own, which says one output for each of their three actions.

    Args:
        views: of the environment.
        hidden: width of each hidden layer of the nets.
        activation: see :class:`HybridNetwork`.
        patience: of the list whose choice the net corrects; ``None`` corrects none.
    """

    def __init__(
        self,
        views: UnitViews,
        hidden: int | Sequence[int] = (64, 64),
        activation: str = "relu",
        patience: int | None = None,
    ) -> None:
        super().__init__()
        self.views, self.patience = views, patience
        self.net = SetNet(views.length, 1, hidden, activation)
        self.stores: nn.Module | None = None
        if views.num_batteries:
            self.stores = SetNet(views.store_length, 3, hidden, activation)

    def forward(self, observation: Tensor) -> Tensor:
        """Return the outputs of all heads in a row, ``(*B, H M)``."""
        missing = self.views.missing(observation)
        said = self.net(self.views(observation, missing)).squeeze(-1)
        if self.patience is not None:
            listed = self.views.listed(self.views.hours(observation), missing, self.patience)
            said = said + _RULE * (2 * listed.to(said) - 1)
        none = torch.zeros_like(said)
        if self.stores is None:
            return torch.stack([none, said], -1).flatten(-2)
        others = self.stores(self.views.stores(observation))
        return torch.cat([torch.stack([none, said, none], -1), others], -2).flatten(-2)

    @classmethod
    def for_env(
        cls,
        env: EnvBase,
        *,
        from_rule: bool = True,
        hidden: int | Sequence[int] = (64, 64),
        activation: str = "relu",
        **arguments: Any,
    ) -> HybridPolicy:
        """Build the policy of a unit commitment.

        Args:
            env: a :class:`UnitCommitmentEnv`.
            from_rule: whether it begins as the best priority list, which the net corrects.
            hidden: width of each hidden layer.
            activation: see :class:`HybridNetwork`.
            arguments: further ones of :meth:`HybridPolicy.for_env`.

        Raises:
            ValueError: it is another environment.

        Examples:
            >>> from hpo_torchrl.problems import UnitCommitmentEnv
            >>> from hpo_torchrl.problems.unit_commitment.learned_list import LearnedList
            >>> env = UnitCommitmentEnv(batch_size=2)
            >>> policy = LearnedList.for_env(env)
            >>> env.rollout(3, policy)["action", "discrete"].shape
            torch.Size([2, 3, 10])
        """
        inner: Any = plain(env)
        if not isinstance(inner, UnitCommitmentEnv):
            raise ValueError(
                "policy=priority_list needs a UnitCommitmentEnv, got "
                f"{type(inner).__name__}; choose policy=mlp."
            )
        rule = PriorityList.best(inner).patience if check_bool("from_rule", from_rule) else None
        place: dict[str, Any] = {"device": inner.device, "dtype": inner.float_dtype}
        own: dict[str, Any] = {"hidden": hidden, "activation": activation}
        choice = cls(inner.views(), **own, patience=rule).to(**place)
        control: Any = []
        if not all_fixed(inner.branch_bounds):
            control = cls(inner.views(), **own).to(**place)
        parts = {"choice": choice, "control": control, "find_scales": False}
        return HybridPolicy.for_env(env, network=HybridNetwork, **own | arguments | parts)
