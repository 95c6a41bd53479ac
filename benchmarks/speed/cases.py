"""What is timed: the measures of a case, each in every variant."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from tensordict import TensorDictBase

from benchmarks.speed.hand import DISCOUNT, HandWritten
from benchmarks.speed.matmul import MatmulReplay
from hpo_torchrl.algorithms import HPO
from hpo_torchrl.collectors import Rollout, differentiable_rollout
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv

FORWARD, BACKWARD, UPDATE = MEASURES = ("rollout forward", "rollout forward + backward", "update")
# The first is what the others are compared with.
HAND, FUNCTIONAL, GENERAL, STOCK, MATMUL = VARIANTS = (
    "hand-written",
    "functional route",
    "general route",
    "stock env.rollout",
    "matmuls alone",
)
COMPILED = "compiled"  # besides, when it is asked for: compiling takes half a minute a case
# Standard deviation of the continuous action in action scales: above 0, so that there is a normal
# sample to draw and to score.
SCALE = 0.1
# A divergence that no update reaches: all passes are made in every round, whatever is learned.
NEVER = 1e6
Call = Callable[[], object]


class Case(NamedTuple):
    """Sizes of a measurement: ``items`` n, ``batch`` B, ``width`` of two layers, ``horizon`` T."""

    items: int
    batch: int
    width: int
    horizon: int

    @property
    def frames(self) -> int:
        """Environment steps in a rollout."""
        return self.batch * self.horizon

    def __str__(self) -> str:
        """Say the sizes in words."""
        items = "item" if self.items == 1 else "items"
        return (
            f"{self.items} {items}, batch {self.batch}, nets {self.width}-{self.width}, "
            f"horizon {self.horizon}"
        )


class Workbench:
    """All variants of a case, ready to be called.

    Args:
        case: the sizes.
        device: where the tensors live.
        dtype: floating-point type.
    """

    def __init__(
        self, case: Case, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        hidden = (case.width, case.width)
        self.case = case
        self.env = InventoryEnv(
            num_items=case.items, batch_size=case.batch, device=device, dtype=dtype, seed=0
        )
        self.policy = HybridPolicy.for_env(self.env, hidden=hidden, scale=SCALE)
        self.critic = make_value_network(self.env, hidden=hidden)
        self.hpo = HPO(
            self.env,
            self.policy,
            self.critic,
            unroll_length=case.horizon,
            discount=DISCOUNT,
            target_kl=NEVER,
            branch_steps=0,
        )
        self.functional = self.hpo.collector.engine
        self.general = Rollout(self.env, self.policy, discount=DISCOUNT, route="general")
        self.compiled: Rollout | None = None
        self.hand = HandWritten(
            case.items,
            case.batch,
            case.horizon,
            hidden,
            scale=SCALE,
            target_kl=NEVER,
            device=device,
            dtype=dtype,
        )
        own = [*self.policy.network.parameters(), *self.critic.parameters()]
        with torch.no_grad():
            for copy, parameter in zip(self.hand.nets.parameters(), own, strict=True):
                copy.copy_(parameter)

    def call(self, measure: str, variant: str) -> Call:
        """Return what one call of a measure is in a variant; its result is not kept."""
        if variant == MATMUL:
            return MatmulReplay(self.call(measure, HAND))
        if measure == UPDATE:
            return self.hand.iterate if variant == HAND else lambda: self.iterate(variant)
        backward = measure == BACKWARD

        def call() -> None:
            # The trajectory is held during the backward pass, as by whoever goes on to use it.
            if variant == HAND:
                batch = self.hand.rollout()
                reward = batch.rewards
            else:
                batch = self.rollout(variant)
                reward = batch["next", "reward"]
            if backward:
                reward.mean().backward()

        return call

    def rollout(self, variant: str) -> TensorDictBase:
        """Roll the library's policy out by one of the routes."""
        if variant == STOCK:
            return self.env.rollout(self.case.horizon, self.policy, break_when_any_done=False)
        if variant == COMPILED:
            return self._compiled()(self.case.horizon)
        route = "functional" if variant == FUNCTIONAL else "general"
        return differentiable_rollout(
            self.env, self.policy, self.case.horizon, discount=DISCOUNT, route=route
        )

    def iterate(self, variant: str) -> dict[str, float]:
        """Collect a batch by one of the routes and update, as a trainer does."""
        self.hpo.anneal(0.0)
        if variant == STOCK:
            return self.hpo.update(self.rollout(STOCK))
        collector = self.hpo.collector
        engines = {FUNCTIONAL: self.functional, GENERAL: self.general}
        collector.engine = self._compiled() if variant == COMPILED else engines[variant]
        return self.hpo.iterate()

    def _compiled(self) -> Rollout:
        if self.compiled is None:
            self.compiled = Rollout(self.env, self.policy, discount=DISCOUNT, compile=True)
        return self.compiled
