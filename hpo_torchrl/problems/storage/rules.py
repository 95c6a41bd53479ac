"""Policies of storage to compare with: price thresholds, and the plan of the fleet as one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems.storage.batteries import CHARGE, DISCHARGE, IDLE
from hpo_torchrl.problems.storage.optimum import Plan, Store, solve
from hpo_torchrl.problems.storage.sites import fleet_of, market_of

# The search for thresholds: instances, days, those not counted, and thresholds tried on a side.
_INSTANCES, _DAYS, _SKIP, _TRIED, _ROUNDS = 48, 16, 2, 9, 3
_LEAST = 1e-5  # power below which a battery rather idles, MW, of a plan


class PriceThresholds(RulePolicy):
    """Charge at full power where the price is below one threshold, discharge above another.

    Args:
        env: the environment, which knows the price and the ratings.
        buy: the price below which all batteries charge.
        sell: the price above which they discharge, not below ``buy``.

    Examples:
        >>> from hpo_torchrl.problems import StorageEnv
        >>> from hpo_torchrl.problems.storage.rules import PriceThresholds
        >>> env = StorageEnv(num_batteries=2, batch_size=3, seed=0)
        >>> env.rollout(2, PriceThresholds(env, 45.0, 60.0))["action", "discrete"].shape
        torch.Size([3, 2, 2])
    """

    in_keys = ["content", "deviation", "hour"]  # noqa: RUF012

    def __init__(self, env: Any, buy: Any, sell: Any) -> None:
        super().__init__()
        self.env, self.buy, self.sell = env, buy, sell

    @classmethod
    def best(cls, env: Any) -> PriceThresholds:
        """Return the thresholds that cost least in a simulation, found on ever finer grids."""
        shares = np.linspace(0.02, 0.98, _TRIED)
        price = env.prices.profile
        drawn = price + env.prices.spread * np.random.default_rng(0).standard_normal((999, 1))
        buy = sell = np.quantile(drawn, shares)
        for _ in range(_ROUNDS):
            pairs = np.array([(low, high) for low in buy for high in sell if low <= high])
            costs = _simulated(env, torch.as_tensor(pairs).to(env.price_by_step))
            low, high = pairs[costs.argmin()]
            gaps = np.diff(buy).max(initial=1e-9), np.diff(sell).max(initial=1e-9)
            buy, sell = (
                np.linspace(at - gap, at + gap, _TRIED)
                for at, gap in zip((low, high), gaps, strict=True)
            )
        return cls(env, float(low), float(high))

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mode of the price for all batteries, and their ratings as power."""
        env, (content, deviation, hour) = self.env, state
        price = env.of_hour(env.price_by_step, hour) + deviation
        mode = CHARGE * (price < self.buy) + DISCHARGE * (price > self.sell)
        mode = mode.expand(content.shape)
        rows = env.batteries
        power = torch.where(mode == CHARGE, rows.charge_rating, rows.discharge_rating)
        return mode if env.num_heads else mode.amax(-1), power

    def __repr__(self) -> str:
        return f"PriceThresholds(buy={self.buy:.4g}, sell={self.sell:.4g})"


@torch.no_grad()
def _simulated(env: Any, pairs: Tensor) -> np.ndarray:
    """Return what each pair of thresholds ``(K, 2)`` costs; all face the same world."""
    generator = torch.Generator(device=env.device or "cpu").manual_seed(0)
    state = env.starts((_INSTANCES,), generator)
    state["step"] = torch.zeros_like(state["hour"], dtype=torch.int64)
    state = {key: x.expand(len(pairs), *x.shape) for key, x in state.items()}
    policy = PriceThresholds(env, *(pairs.unsqueeze(-1).unsqueeze(-1).unbind(1)))
    steps = env.horizon or _DAYS * env.cycle_length
    skip = 0 if env.horizon else _SKIP * env.cycle_length
    total = torch.zeros(len(pairs), dtype=torch.float64, device=env.device)
    for t in range(steps):
        discrete, u = policy.decide(*(state[key] for key in policy.in_keys))
        how: Any = {"generator": generator, "dtype": env.float_dtype, "device": env.device}
        noise = torch.randn((_INSTANCES, 1), **how)
        state, reward = env.dynamics(state, {"discrete": discrete, "continuous": u}, noise)
        if t >= skip:
            total -= reward.double().mean(-1)
    return total.cpu().numpy()


class PlanPolicy(RulePolicy):
    """Follow the plan of all batteries as one, shared out among them.

    In each state the total power is the best by the values of the plan. The emptiest batteries
    charge first, the fullest discharge first, each at the most that it can, so that few run. For
    one battery this is the optimal policy.

    Args:
        env: the environment.
        store: the battery that stands for all.
        plan: what :func:`~hpo_torchrl.problems.storage.optimum.solve` found for it.
    """

    in_keys = ["content", "deviation", "hour"]  # noqa: RUF012

    def __init__(self, env: Any, store: Store, plan: Plan) -> None:
        super().__init__()
        self.env, self.store, self.plan = env, store, plan
        for name in ("ahead", "contents", "nodes"):
            table = torch.as_tensor(np.ascontiguousarray(getattr(plan, name)))
            self.register_buffer(name, table.to(env.device, torch.float64))

    @classmethod
    def best(cls, env: Any) -> PlanPolicy:
        """Solve the fleet as one battery.

        Raises:
            ValueError: the environment has a horizon, or a cycle beyond the reach of a table.
        """
        store = fleet_of(env)
        return cls(env, store, solve(store, market_of(env)))

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the total power, then who gives or takes it."""
        content, deviation, hour = (entry.double() for entry in state)
        total = self._total(content.mean(-1, keepdim=True), deviation, hour.long() % self.env.cycle)
        mode, power = self._shared(content, total * self.env.num_batteries)
        power = power.to(state[0].dtype)
        return mode if self.env.num_heads else mode.amax(-1), power

    def _total(self, content: Tensor, deviation: Tensor, hour: Tensor) -> Tensor:
        """Return the best power of the mean battery, ``(*B, 1)``."""
        env, store, hours = self.env, self.store, self.env.step_hours
        kept = content * (1 - store.self_discharge) ** hours
        most = hours * store.charge_efficiency * store.charge_rating
        least = hours * store.discharge_rating / store.discharge_efficiency
        low, high = (kept - least).clamp_min(0.0), (kept + most).clamp_max(store.capacity)
        # All points of the lattice within reach, the ends of that, whole batteries, and to idle.
        whole = torch.arange(1, env.num_batteries + 1, device=content.device) / env.num_batteries
        tried = [self.contents, kept + most * whole, kept - least * whole, low, high]
        after = torch.cat([entry.expand(*kept.shape[:-1], -1) for entry in tried], -1)
        after = torch.cat([torch.maximum(torch.minimum(after, high), low), kept], -1)
        moved = (after - kept) / hours
        power = torch.where(
            moved > 0, moved / store.charge_efficiency, moved * store.discharge_efficiency
        )
        net = power * env.num_batteries + env.of_hour(env.load_by_step, hour).double()
        price = env.of_hour(env.price_by_step, hour).double() + deviation
        rate = price * power + store.wear_cost * power.abs()
        rate = rate + env.joint_cost(power * env.num_batteries, net) / env.num_batteries
        rating = torch.where(power > 0, store.charge_rating, store.discharge_rating)
        # Of a fleet as many run as the power needs, each but one at its rating.
        runs = (env.num_batteries * power.abs() / rating - 1e-6).ceil() / env.num_batteries
        runs = runs if env.num_heads else (moved != 0).double()
        earned = self._read(after, deviation, hour)
        best = (earned - hours * (rate + store.running_cost * runs)).argmax(-1, keepdim=True)
        return power.gather(-1, best)

    def _read(self, content: Tensor, deviation: Tensor, hour: Tensor) -> Tensor:
        """Interpolate what is earned later, at contents ``(*B, K)``."""
        rows, share = _places(self.contents, content)
        found = torch.zeros_like(content)
        if len(self.nodes) == 1:
            line, along = torch.zeros_like(hour), torch.zeros_like(deviation)
        else:
            line, along = _places(self.nodes, deviation)
        for y, weight in ((line, 1 - along), (line + 1, along)):
            y = y.clamp_max(len(self.nodes) - 1)
            here, there = self.ahead[hour, y, rows], self.ahead[hour, y, rows + 1]
            found = found + weight * torch.lerp(here, there, share)
        return found

    def _shared(self, content: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Share a total power out, ``(*B, 1)``; return modes and powers, ``(*B, N)``."""
        rows, hours = self.env.batteries, self.env.step_hours
        kept = content * (1 - rows.self_discharge.double()) ** hours
        room = (rows.capacity - kept) / (hours * rows.charge_efficiency)
        held = kept * rows.discharge_efficiency / hours
        charging = total > 0
        able = torch.where(
            charging,
            torch.minimum(room, rows.charge_rating),
            torch.minimum(held, rows.discharge_rating),
        )
        # One shuffles the fewest batteries: the fuller a battery, the sooner it discharges.
        order = torch.where(charging, kept, -kept).argsort(-1)
        before = able.gather(-1, order).cumsum(-1) - able.gather(-1, order)
        before = torch.zeros_like(before).scatter(-1, order, before)
        power = torch.minimum((total.abs() - before).clamp_min(0.0), able)
        mode = torch.where(charging, CHARGE, DISCHARGE).expand(power.shape)
        # What rounding leaves over is not worth running for.
        return torch.where(power > _LEAST, mode, IDLE), power

    def __repr__(self) -> str:
        return f"PlanPolicy(cost={self.plan.cost:.4g})"


def _places(points: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cell of ascending points that holds each value, and how far along it is."""
    at = torch.searchsorted(points, values.contiguous(), right=True).clamp(1, len(points) - 1) - 1
    width = points[at + 1] - points[at]
    return at, ((values - points[at]) / width).clamp(0.0, 1.0)
