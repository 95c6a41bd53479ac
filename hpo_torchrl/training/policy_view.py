"""Read the rule off a learned inventory policy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.envs import InventoryEnv
from hpo_torchrl.modules import HybridPolicy

_STEPS, _GRID = 100, 2000


class InventoryPolicyView(NamedTuple):
    """A policy over the inventory position (on hand plus on order), in units per item.

    ``position``, ``order_probability`` and ``order_up_to`` run over a grid of states: all items
    equally far stocked, nothing on order. ``visited_position`` and ``visited_order_up_to`` are the
    states in which the running system did order.
    """

    position: Tensor
    order_probability: Tensor
    order_up_to: Tensor
    visited_position: Tensor
    visited_order_up_to: Tensor

    @property
    def reorder_point(self) -> int | None:
        """Learned s: the policy orders at this position and at all below on the grid."""
        orders = self.order_probability >= 0.5
        first_without = int((~orders).to(torch.int8).argmax()) if not bool(orders.all()) else None
        if first_without in (None, 0):
            return None
        return round(float(self.position[first_without - 1]))

    @property
    def order_up_to_level(self) -> int | None:
        """Learned S: the mean position that an order reached in the running system."""
        if not len(self.visited_order_up_to):
            return None
        return round(float(self.visited_order_up_to.mean()))


@torch.no_grad()
def view_inventory_policy(env: InventoryEnv, policy: HybridPolicy) -> InventoryPolicyView:
    """Evaluate a policy on a grid of inventory positions and in the running system.

    Args:
        env: a test environment; its batch is the number of systems that run.
        policy: the policy.
    """
    mean = env.demand_mean.cpu()
    # Whole units of an average item, from two periods of backlog to the rough order-up-to level.
    unit = float(mean.mean())
    low, high = min(-2, round(-2 * unit)), round(1.5 * float(env.order_up_to.mean()))
    position = torch.arange(low, high + 1, max(1, (high - low) // _GRID))
    inventory = torch.zeros(len(position), *env.state_spec["inventory"].shape[-2:])
    inventory[..., 0] = position.unsqueeze(-1) / unit * mean
    inventory = inventory.to(dtype=env.float_dtype, device=env.device)
    # What else there is to a state stands at its mean over fresh systems.
    others = [key for key in env.state_names if key not in ("inventory", "step")]
    fresh = env.reset().reshape(-1) if others else {}
    usual = {key: fresh[key].mean(0).expand(len(position), *fresh[key].shape[1:]) for key in others}
    dist = policy.distribution(env.observe({"inventory": inventory, **usual}))
    order = torch.ones(len(position), dtype=torch.int64, device=env.device)
    reached = inventory[..., 0] + dist.branch(order)[0]

    with set_exploration_type(ExplorationType.DETERMINISTIC):
        run = differentiable_rollout(env, policy, _STEPS)
    ordered = run["action", "discrete"] == 1
    before = run["inventory"].sum(-1)[ordered]
    after = before + run["action", "continuous"][ordered].clamp_min(0.0)
    return InventoryPolicyView(
        position=position,
        order_probability=dist.probs[..., 1].cpu(),
        order_up_to=reached.mean(-1).cpu(),
        visited_position=before.mean(-1).cpu(),
        visited_order_up_to=after.mean(-1).cpu(),
    )
