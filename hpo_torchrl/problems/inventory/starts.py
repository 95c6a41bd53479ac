"""Stocks that an inventory problem may start with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hpo_torchrl.problems.inventory.env import InventoryEnv

# How far items stray from their common level at a random start, in periods of demand.
_SPREAD = 2.0


def empty_inventory(env: InventoryEnv) -> Tensor:
    """Nothing on hand and nothing ordered, ``(*B, n, max(L, 1))``."""
    shape = env.state_spec["inventory"].shape
    return torch.zeros(shape, dtype=env.float_dtype, device=env.device)


def random_inventory(env: InventoryEnv) -> Tensor:
    """Stocks for training, wide on purpose: rare states must be seen.

    On hand from one period of backlog up to the rough S, and half the instances await an order
    anywhere in the pipeline. Items are ordered together, so their levels rise and fall together, up
    to a spread of their own: drawn one by one, a thousand items would never be short all at once.
    """
    inventory = empty_inventory(env)
    batch, n, slots = env.batch_size, env.num_items, inventory.shape[-1]
    own = n > 1
    level = env._draw(torch.rand, (*batch, 1))
    level = level * (env.order_up_to + env.demand_mean) - env.demand_mean
    spread = own * _SPREAD * (2 * env._draw(torch.rand, (*batch, n)) - 1)
    on_hand = level + spread * env.demand_mean
    inventory[..., 0] = on_hand.clamp_min(0.0) if env.lost_sales else on_hand
    if slots > 1:
        spread = 1 + own * 0.25 * (2 * env._draw(torch.rand, (*batch, n)) - 1)
        size = env._draw(torch.rand, (*batch, 1)) * spread * env.order_up_to
        waiting = env._draw(torch.rand, (*batch, 1)) < 0.5
        slot = 1 + (env._draw(torch.rand, (*batch, 1)) * (slots - 1)).long()
        slot = slot.unsqueeze(-1).expand(*batch, n, 1)
        inventory = inventory.scatter(-1, slot, (size * waiting).unsqueeze(-1))
    return inventory


def stationary_inventory(env: InventoryEnv) -> Tensor:
    """Stocks that ordering up to a fixed level every economic order interval leaves.

    Simulated for long enough to forget the start; each instance begins at its own point of the
    cycle.
    """
    inventory = empty_inventory(env)
    inventory[..., 0] = env.order_up_to
    phase = (env._draw(torch.rand, env.batch_size) * env.order_interval).long()
    for period in range(env.lead_time + 2 * env.order_interval):
        ordering = ((period + phase) % env.order_interval == 0).to(env.float_dtype)
        quantity = (env.order_up_to - inventory.sum(-1)).clamp_min(0.0)
        order = env.ordering.delivered(ordering.unsqueeze(-1) * quantity)
        demand = env.demand.draw_any(env)
        inventory, _ = env.serve(inventory, (order, ordering, torch.zeros_like(phase)), demand)
    return inventory


STARTS = {
    "empty": empty_inventory,
    "random": random_inventory,
    "stationary": stationary_inventory,
}
