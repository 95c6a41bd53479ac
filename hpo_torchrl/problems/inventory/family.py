"""A family of single items: each env instance has its own demand, costs and lead time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo_torchrl.core.categorical import BranchBounds
from hpo_torchrl.core.checks import check_choice, check_float, check_int
from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.envs.differentiable import Action, DifferentiableEnv, State
from hpo_torchrl.problems.inventory.demand import Demand
from hpo_torchrl.problems.inventory.env import InventoryEnv
from hpo_torchrl.problems.inventory.instances import empty_inventory

# The numbers of an item, in the order in which they are drawn, and the entries of the state.
NUMBERS = ("demand_mean", "holding_cost", "shortage_cost", "fixed_cost", "lead_time")
# Steps below the middle that orders for one period may end.
_STEPS = 2.0
# Leading entries of the observation: position and numbers. On hand and on order come after them.
_POSITION = 10


class Rough(NamedTuple):
    r"""What the numbers of an item say of its scale, each ``(*B, 1)``.

    Attributes:
        level: mean demand of the lead time and one period, :math:`\mu_L = (L + 1) \mu`.
        deviation: its standard deviation, :math:`\sigma_L = \sqrt{\mu_L}`.
        safety: :math:`z = \Phi^{-1}(p / (h + p))`, the safety stock of a newsvendor in deviations.
        lot: :math:`u = \sqrt{Q^2 + \mu^2}`, with the economic order quantity
            :math:`Q = \sqrt{2 K \mu / h}`: about what is ordered at a time.
        middle: :math:`\ell = \mu_L + z \sigma_L + \mu / 2`, between orders for one period and
            orders for more.
        step: :math:`(\mu + \sigma_L) / 2`, the unit of levels below that.
        cost: :math:`\sqrt{2 K \mu h p / (h + p) + ((h + p)\,\varphi(z)\,\sigma_L)^2}`, about what
            a period costs: of the order quantity with backorders, and of the newsvendor.
    """

    level: Tensor
    deviation: Tensor
    safety: Tensor
    lot: Tensor
    middle: Tensor
    step: Tensor
    cost: Tensor

    @classmethod
    def of(cls, state: State) -> Rough:
        """Compute them from the state."""
        mean, h, p, K, lead_time = (state[name] for name in NUMBERS)
        level = (lead_time + 1) * mean
        deviation, service = level.sqrt(), p / (h + p)
        z = torch.special.ndtri(service)
        density = (-z.square() / 2).exp() / (2 * torch.pi) ** 0.5
        lot = (2 * K * mean / h + mean.square()).sqrt()
        cost = (2 * K * mean * h * service + ((h + p) * density * deviation).square()).sqrt()
        middle, step = level + z * deviation + mean / 2, (mean + deviation) / 2
        return cls(level, deviation, z, lot, middle, step, cost)

    def up_to(self, size: Tensor, chosen: Tensor) -> Tensor:
        """Return the level of an order of size 1 or 2 whose continuous action is ``chosen``."""
        return self.middle + torch.where(size == 1, -chosen * self.step, chosen * self.lot)

    def action_up_to(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return the size and the continuous action of an order up to a level."""
        above = level - self.middle
        size = 1 + (above > 0).long()
        return size, torch.where(size == 1, -above / self.step, above / self.lot)


class DrawnItem(Demand):
    """Poisson demand of an item whose numbers are drawn anew at every start.

    Each is uniform in its square root, so that neither small nor large ones are rare; the lead time
    is uniform.

    Args:
        ranges: least and largest of each of ``NUMBERS``.
    """

    num_items = 1

    def __init__(self, ranges: Mapping[str, tuple[float, float]]) -> None:
        super().__init__(1.0)
        self.ranges = dict(ranges)

    def draw(self, num_steps: int, state: State, env: DifferentiableEnv) -> Tensor:
        """Draw counts with the mean of each instance, ``(*B, T, 1)``."""
        mean = state["demand_mean"].unsqueeze(-2)
        mean = mean.expand(*mean.shape[:-2], num_steps, -1)
        return torch.poisson(mean.contiguous(), generator=env.rng)

    def state_shapes(self, num_items: int) -> dict[str, tuple[int, ...]]:
        """The numbers."""
        return dict.fromkeys(NUMBERS, (1,))

    def observation_dim(self, num_items: int) -> int:
        """All but on hand and on order."""
        return _POSITION

    def start(self, env: DifferentiableEnv) -> dict[str, Tensor]:
        """Draw the numbers."""
        found = {}
        for name, (low, high) in self.ranges.items():
            share = env._draw(torch.rand, (*env.batch_size, 1))
            if name == "lead_time":
                found[name] = low + (share * (high + 1 - low)).floor()
            else:
                found[name] = (low**0.5 + share * (high**0.5 - low**0.5)).square()
                found[name] = found[name].clamp(low, high)
        return found

    def usual_start(self, env: DifferentiableEnv) -> dict[str, Tensor]:
        """Refuse: demand depends on the item.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Demand depends on the item of each env instance: give the start of the rollout too, "
            "env.sample_noise(T, env.reset())."
        )

    def advance(self, state: State, met: Tensor) -> dict[str, Tensor]:
        """Keep the numbers."""
        return {name: state[name] for name in NUMBERS}


class InventoryFamily(InventoryEnv):
    r"""Single items with Poisson demand, backlog and a fixed cost: one policy for all of them.

    An env instance is an item of :class:`InventoryEnv` with numbers of its own: mean demand, h, p,
    K and lead time L. They are drawn at every reset, stay in the state, and the policy sees them.
    So it is trained once, and orders for items that it has not met.

    The equations are those of :class:`InventoryEnv`, of one item, in these units:

    * discrete action 0 is no order. An order lifts the position to a level, which the continuous
      action a chooses, on one side or the other of half a period's demand above the rough level
      of a newsvendor, who orders in every period: :math:`\ell = \mu_L + z \sigma_L + \mu / 2`.
      Discrete action 1 is up to :math:`\ell - a (\mu + \sigma_L) / 2`, for one period, with a up
      to 2 (an end from which a level comes back, once it is clear which items order so); 2 is up to
      :math:`\ell + a u`, for several (see :class:`Rough`). The optimal S jumps where orders
      for one period give way to orders for two: a continuous net alone would bend across the
      jump. They are levels because a rollout's gradient then forgets past orders as the position
      does. Up to less than there is orders nothing, pays K, and passes no gradient;
    * the reward is the negated cost of a period divided by the rough cost of the item, so that all
      items weigh alike;
    * the observation has no unit. Its first 10 entries are the inventory position less its mean
      :math:`\mu_L`, in lots and in deviations :math:`\sigma_L`, and the item's numbers: rough
      safety stock, mean demand and deviation in lots, and logarithms. The optimal policy depends on
      no more. On hand and on order, in lots, come after them: by these a critic tells the cost of
      the coming L periods, which no order changes.

    The state is ``"inventory"``, ``(*B, 1, max(L, 1))`` of the longest lead time; an order enters
    at the place of its own. The numbers are entries ``(*B, 1)`` of the state, by their names.

    Args:
        demand_mean: least and largest mean demand.
        shortage_cost: least and largest p.
        fixed_cost: least and largest K.
        lead_time: least and largest L, whole periods.
        holding_cost: least and largest h. Only p / h and K / h matter to a policy.
        initial_state: ``"empty"``; ``"random"``: wide around where an item's position is, for
            training; or ``"stationary"``: about a random point of the cycle between two orders.
        horizon: as for :class:`InventoryEnv`, like what follows.
        batch_size: see there.
        device: see there.
        dtype: see there.
        seed: see there.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a range is no two numbers, or out of range.

    Examples:
        >>> from hpo_torchrl.problems import InventoryFamily
        >>> env = InventoryFamily(demand_mean=(3, 30), lead_time=(0, 4), batch_size=4, seed=0)
        >>> rollout = env.rollout(5)
        >>> rollout["inventory"].shape, rollout["demand_mean"].shape
        (torch.Size([4, 5, 1, 4]), torch.Size([4, 5, 1]))
        >>> bool((rollout["demand_mean"][:, :1] == rollout["demand_mean"]).all())
        True
    """

    def __init__(
        self,
        demand_mean: Sequence[float] = (3.0, 30.0),
        shortage_cost: Sequence[float] = (2.0, 40.0),
        fixed_cost: Sequence[float] = (0.0, 300.0),
        lead_time: Sequence[int] = (0, 4),
        holding_cost: Sequence[float] = (1.0, 1.0),
        *,
        initial_state: str = "random",
        horizon: int | None = None,
        batch_size: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int | None = None,
    ) -> None:
        rows = (demand_mean, holding_cost, shortage_cost, fixed_cost, lead_time)
        given = dict(zip(NUMBERS, rows, strict=True))
        ranges = {name: _checked_range(name, ends) for name, ends in given.items()}
        check_choice("initial_state", initial_state, _STARTS)
        super().__init__(
            lead_time=int(ranges["lead_time"][1]),
            demand=DrawnItem(ranges),
            fixed_cost_per_item=0.0,
            initial_state=initial_state,
            horizon=horizon,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            seed=seed,
        )
        self.ranges = ranges
        # The continuous action is a level: its pieces are not those of a quantity.
        self.num_discrete, self.pieces = 3, None
        none = [math.inf]
        self.branch_bounds = BranchBounds([[0.0]] * 3, [none, [_STEPS], none])
        self.action_scale = torch.ones_like(self.action_scale)
        self._set_specs()

    item_numbers = NUMBERS

    # -- the equations ---------------------------------------------------------------------------

    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        """Serve one period of demand, the noise ``(*B, 1)``."""
        rough = Rough.of(state)
        in_units = _in_units(state, action, rough)
        order, ordering, supplier = self.ordering.placed(in_units, state["inventory"])
        # An order due in L periods joins what arrives then; a slot is added for the longest.
        held = F.pad(state["inventory"], (0, 1))
        slot = torch.arange(held.shape[-1], device=held.device)
        held = held + order.unsqueeze(-1) * (slot == state["lead_time"].unsqueeze(-1))
        placed = torch.zeros_like(order), ordering, supplier
        costs = state["holding_cost"], state["shortage_cost"], torch.zeros_like(order)
        after, reward = self.serve(held, placed, noise, costs)
        reward = reward - state["fixed_cost"].squeeze(-1) * ordering
        kept = {"inventory": after[..., : held.shape[-1] - 1]}
        return kept | self.demand.advance(state, noise), reward / rough.cost.squeeze(-1)

    def observe(self, state: State) -> Tensor:
        """Return position and numbers, then on hand and on order, without units."""
        mean, h, p, _, lead_time = (state[name] for name in NUMBERS)
        level, deviation, safety, lot, *_ = Rough.of(state)
        inventory = state["inventory"].squeeze(-2)
        position = inventory.sum(-1, keepdim=True) - level
        shown = (
            position / lot,
            position / deviation,
            safety * deviation / lot,
            safety,
            deviation / lot,
            mean / lot,
            (lot / mean).log(),
            (mean / 10).log(),
            (lead_time + 1).log(),
            4 * h / (h + p),  # of the usual size of the others
        )
        return torch.cat([*shown, inventory / lot], -1)

    def initial_state(self) -> dict[str, Tensor]:
        """Draw items and their stocks, all on hand."""
        item, inventory = self.demand.start(self), empty_inventory(self)
        if self.start != "empty":
            rough, (low, high) = Rough.of(item), _STARTS[self.start]
            share = low + (high - low) * self._draw(torch.rand, (*self.batch_size, 1))
            inventory[..., 0] = rough.level + share * (rough.lot + rough.deviation)
        return {"inventory": inventory, **item}

    def orders(self, state: State, action: Action) -> Tensor:
        """Return what an action orders in a state, in units of the item, ``(*B, 1)``."""
        return super().orders(state, _in_units(state, action, Rough.of(state)))

    def heuristic_choice(self, observation: Tensor) -> Tensor:
        """Order where the position no longer covers the lead time and one period, ``(*B,)``."""
        return 2 * (observation[..., 0] <= 0).long()

    # -- what is known of the problem ------------------------------------------------------------

    def rules(self) -> dict[str, Callable[[], nn.Module]]:
        """Return the optimal (s, S) of each item."""
        from hpo_torchrl.problems.inventory.family_costs import ItemPolicy

        return {"s_S": ItemPolicy}

    def reference(self, test: Test) -> Reference:
        """Return what the optimal (s, S) of each item costs on the test's items and demand."""
        if getattr(test, "objective", None) != "average":
            return Reference()
        policy = self.rules()["s_S"]()
        known: dict[str, Any] = {"objective": "average", "policy": policy, "paired": True}
        return Reference(optimal_cost=test.run(policy).mean, **known)

    def describe(
        self,
        policy: Any,
        tests: Mapping[str, Test],
        reference: Reference,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """Say how far the policy is above the optimum of each item of the primary test.

        Costs are exact, of orders in whole units; see :func:`item_costs`.

        Returns:
            ``items``, see :func:`gap_summary`.
        """
        from hpo_torchrl.problems.inventory.family_costs import gap_summary, item_costs

        own = [test for test in tests.values() if test.env is self]
        if not own:
            return {}
        self.set_seed(own[0].seed)
        return {"items": gap_summary(item_costs(self, policy, self.reset()))}

    def check_items(self, items: Mapping[str, Any]) -> None:
        """Check that items are of the family, so that the policy has learned about such.

        Costs count in units of the holding cost.

        Args:
            items: the numbers of the items by name, rows of equal length.

        Raises:
            ValueError: a number is out of the range of the family.
        """
        rows = {name: np.asarray(items[name], dtype=float) for name in NUMBERS}
        if bool((rows["lead_time"] % 1 != 0).any()) or bool((rows["holding_cost"] <= 0).any()):
            raise ValueError(
                "lead_time must hold whole numbers and holding_cost numbers above 0, got "
                f"{rows['lead_time'].tolist()} and {rows['holding_cost'].tolist()}."
            )
        least, most = self.ranges["holding_cost"]
        for name in ("demand_mean", "shortage_cost", "fixed_cost", "lead_time"):
            unit = rows["holding_cost"] if name.endswith("cost") else 1.0
            low, high = self.ranges[name]
            if name.endswith("cost"):
                low, high = low / most, high / least
            found = rows[name] / unit
            # The numbers of the state may be of single precision.
            out = (found < low - 1e-5 * abs(low)) | (found > high + 1e-5 * abs(high))
            if bool(out.any()):
                each = " / holding_cost" if name.endswith("cost") else ""
                raise ValueError(
                    f"{name}{each} must be within {low:g} to {high:g}, the range of the items that "
                    f"the policy was trained for, got {found[out][0]:g}; train with another "
                    f"env.{name}=[low,high]."
                )

    def details(self, test: Any, policies: Mapping[str, Any], folder: Any = None) -> Any:
        """Return the exact costs of the items of a test; see :func:`compare_items`."""
        from hpo_torchrl.problems.inventory.family_costs import compare_items  # loads pandas

        return compare_items(test, policies, folder)


# Ends of the position at a start less the mean demand of lead time and one period, in lots and a
# deviation.
_STARTS = {"empty": (), "random": (-1.0, 2.0), "stationary": (0.0, 1.0)}


def _in_units(state: State, action: Action, rough: Rough) -> Action:
    """Return whether there is an order, and its quantity in units."""
    size, chosen = action["discrete"].unsqueeze(-1), action["continuous"]
    level = rough.up_to(size, chosen)
    quantity = (level - state["inventory"].sum(-1)).clamp_min(0.0)
    return {"discrete": (size > 0).long().squeeze(-1), "continuous": quantity}


def _checked_range(name: str, ends: Any) -> tuple[float, float]:
    if np.shape(ends) != (2,):
        raise ValueError(f"{name} must be two numbers [low, high], got {ends!r}.")
    if name == "lead_time":
        least = check_int(f"{name}[0]", ends[0], minimum=0)
        return least, check_int(f"{name}[1]", ends[1], minimum=least)
    low = check_float(f"{name}[0]", ends[0], minimum=0.0, strict=name != "fixed_cost")
    return low, check_float(f"{name}[1]", ends[1], minimum=low)
