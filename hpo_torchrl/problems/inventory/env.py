"""Inventory control with a joint fixed ordering cost (joint replenishment)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.envs.differentiable import Action, State
from hpo_torchrl.problems.inventory.picture import describe_inventory
from hpo_torchrl.problems.inventory.reference import inventory_reference
from hpo_torchrl.problems.inventory.stock import StockEnv


class InventoryEnv(StockEnv):
    r"""n items with lead time, ordered together at a joint fixed cost.

    With on-hand inventory :math:`x_0`, pipeline :math:`x_1, \dots, x_{L-1}`, demand :math:`D`,
    discrete action :math:`d` (0: no order, 1: order) and quantities :math:`q \ge 0`, one period is

    .. math::
        a &= d\,q, \qquad y = x_0 - D \quad (y = x_0 + a - D \text{ if } L = 0) \\
        c &= \textstyle\sum_i \left[ h_i y_i^+ + p_i y_i^- + v_i a_i \right] + K d \\
        x' &= (y + x_1,\ x_2,\ \dots,\ x_{L-1},\ a), \qquad r = -c

    so an order placed in period t can serve demand of period t + L. Unmet demand is backlogged;
    with ``lost_sales`` y is clipped at 0 once it has been charged. K = ``fixed_cost_per_item`` * n.

    The state is ``"inventory"``, shape ``(*B, n, max(L, 1))``; the ``"observation"`` is the same,
    flat and in periods of mean demand. The reward, ``(*B, 1)``, is the cost of all items of one
    period, negated; ``cost_units`` is n, so that reports are per item and period.

    Gradients flow as :class:`DifferentiableEnv` says. Guards: a negative quantity counts as 0 and
    lost sales clip y at 0; where they act, no gradient passes.

    Args:
        num_items: number of items n.
        lead_time: periods L between placing an order and being able to use it, 0 and up.
        demand_mean: mean demand per period, one number or one per item. With ``demand_traces``
            it defaults to the traces' mean, else to 10.
        holding_cost: h, cost per unit on hand at the end of a period.
        shortage_cost: p, cost per unit short at the end of a period.
        procurement_cost: v, cost per unit ordered.
        fixed_cost_per_item: joint fixed cost per item; every order costs this times n.
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

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> env = InventoryEnv(num_items=3, lead_time=2, batch_size=4, seed=0)
        >>> rollout = env.rollout(5)
        >>> rollout["next", "reward"].shape
        torch.Size([4, 5, 1])
        >>> rollout["inventory"].shape
        torch.Size([4, 5, 3, 2])
    """

    def __init__(
        self,
        num_items: int = 1,
        lead_time: int = 2,
        demand_mean: float | Sequence[float] | None = None,
        holding_cost: float | Sequence[float] = 1.0,
        shortage_cost: float | Sequence[float] = 9.0,
        procurement_cost: float | Sequence[float] = 0.0,
        fixed_cost_per_item: float = 64.0,
        lost_sales: bool = False,
        **stock,
    ) -> None:
        check_int("num_items", num_items, minimum=1)
        check_float("fixed_cost_per_item", fixed_cost_per_item, minimum=0.0)
        super().__init__(
            2,
            fixed_cost_per_item * num_items,
            num_items,
            lead_time,
            demand_mean,
            holding_cost,
            shortage_cost,
            procurement_cost,
            lost_sales,
            **stock,
        )

    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        """Serve one period of demand; the equations stand in the class docstring.

        Args:
            state: ``"inventory"``, ``(*B, n, max(L, 1))``.
            action: ``"discrete"`` ``(*B,)`` and ``"continuous"`` ``(*B, n)``.
            noise: the demand of the period, ``(*B, n)``.

        Returns:
            The next state and the reward ``(*B,)``.
        """
        on_hand, *pipeline = state["inventory"].unbind(-1)
        ordering = action["discrete"].to(on_hand.dtype)
        order = ordering.unsqueeze(-1) * action["continuous"].clamp_min(0.0)
        on_hand = on_hand - noise
        if self.lead_time == 0:
            on_hand = on_hand + order
        cost = (
            self.holding_cost * on_hand.clamp_min(0.0)
            + self.shortage_cost * (-on_hand).clamp_min(0.0)
            + self.procurement_cost * order
        ).sum(-1) + self.fixed_cost * ordering
        if self.lost_sales:
            on_hand = on_hand.clamp_min(0.0)
        return self.after_period(pipeline, order, on_hand), -cost

    def reference(self, test: Test) -> Reference:
        """Return the exact optimum, or bounds; see :func:`inventory_reference`."""
        return inventory_reference(self, test)

    def describe(
        self,
        policy: Any,
        tests: Mapping[str, Test],
        reference: Reference,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """Read the learned (s, S) off the policy, and draw it."""
        return describe_inventory(self, policy, tests, reference, folder)

    def heuristic_choice(self, observation: Tensor) -> Tensor:
        """Order when the items' mean position no longer covers the lead time and one period."""
        position = observation.unflatten(-1, (self.num_items, -1)).sum(-1).mean(-1)
        return (position <= self.lead_time + 1).long()

    def order_action(self, ordering: Tensor, quantity: Tensor) -> dict[str, Tensor]:
        """Return the action that orders ``quantity`` ``(*B, n)`` where ``ordering`` ``(*B,)``."""
        return {"discrete": ordering.long(), "continuous": quantity}
