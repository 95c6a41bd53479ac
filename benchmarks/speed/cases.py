"""What is timed: the measures of a case, each in every variant."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase

from benchmarks.speed.car import Car
from benchmarks.speed.hand import DISCOUNT, HandWritten
from benchmarks.speed.matmul import MatmulReplay
from benchmarks.suite.battery import Battery
from hpo_torchrl.algorithms import HPO
from hpo_torchrl.collectors import Rollout, differentiable_rollout
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv

FORWARD, BACKWARD, UPDATE = MEASURES = ("rollout forward", "rollout forward + backward", "update")
HAND, FUNCTIONAL, GENERAL, STOCK, MATMUL = VARIANTS = (
    "hand-written",
    "functional route",
    "general route",
    "stock env.rollout",
    "matmuls alone",
)
COMPILED = "compiled"  # besides, when it is asked for: compiling takes half a minute a case
JAX = "JAX"
PROBLEMS = ("inventory", "switched_lqr", "battery", "car")
# Standard deviation of the continuous action in action scales: above 0, so that there is a normal
# sample to draw and to score.
SCALE = 0.1
# A divergence that no update reaches: all passes are made in every round, whatever is learned.
NEVER = 1e6
Call = Callable[[], object]


class Case(NamedTuple):
    """Sizes of a measurement: ``items`` n, ``batch`` B, ``width`` of two layers, ``horizon`` T.

    Of a problem without items n is the dimension of the continuous action.
    """

    items: int
    batch: int
    width: int
    horizon: int
    problem: str = "inventory"

    @property
    def frames(self) -> int:
        """Environment steps in a rollout."""
        return self.batch * self.horizon

    @property
    def measures(self) -> tuple[str, ...]:
        """What is measured: an update is that of an instance that goes on after the batch."""
        return MEASURES[:2] if self.problem == "switched_lqr" else MEASURES

    def __str__(self) -> str:
        """Say the sizes in words."""
        size = "item" if self.problem == "inventory" else "dimension"
        return (
            f"{self.problem}, {self.items} {size}{'s' * (self.items > 1)}, batch {self.batch}, "
            f"nets {self.width}-{self.width}, horizon {self.horizon}"
        )

    def make_env(self, device: torch.device, dtype: torch.dtype) -> DifferentiableEnv:
        """Return the environment.

        Raises:
            ValueError: the problem has no such size.
        """
        others: dict[str, Any] = {"batch_size": self.batch, "device": device, "dtype": dtype}
        others["seed"] = 0
        if self.problem == "inventory":
            return InventoryEnv(num_items=self.items, **others)
        if self.problem == "switched_lqr":
            others |= {"horizon": self.horizon, "observe_time": False, "process_noise": 0.1}
            return SwitchedLQREnv.from_recipe(self.items, 4, **others)
        if self.items != 1:
            raise ValueError(f"problem={self.problem} has one dimension, got items={self.items}.")
        return {"battery": Battery, "car": Car}[self.problem](**others)


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
        self.case, self.dtype = case, dtype
        self.env = case.make_env(device, dtype)
        # In the units that the environment declares, which the others take too.
        own: dict[str, Any] = {"hidden": hidden, "find_scales": False}
        self.policy = HybridPolicy.for_env(self.env, scale=SCALE, **own)
        self.critic = make_value_network(self.env, **own)
        self.hpo = self._learner()
        self.functional = self.hpo.collector.engine
        self.general = Rollout(self.env, self.policy, discount=DISCOUNT, route="general")
        self.hand: Any = None
        if case.problem == "inventory":
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
            self.copy_parameters()

    def _learner(self, **others: Any) -> HPO:
        return HPO(
            self.env,
            self.policy,
            self.critic,
            unroll_length=self.case.horizon,
            discount=DISCOUNT,
            target_kl=NEVER,
            branch_steps=0,
            **others,
        )

    @torch.no_grad()
    def copy_parameters(self) -> None:
        """Give the hand-written networks the parameters of the library's."""
        for copy, parameter in zip(self.hand.nets.parameters(), self.parameters(), strict=True):
            copy.copy_(parameter)

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters of policy and critic."""
        return [*self.policy.network.parameters(), *self.critic.parameters()]

    @cached_property
    def compiled(self) -> HPO:
        """The same learner with everything compiled that can be."""
        return self._learner(compile=True)

    @cached_property
    def in_jax(self) -> Any:
        """The same in JAX, which is imported only here."""
        from benchmarks.speed.bridge import JaxBench

        return JaxBench(self)

    def call(self, measure: str, variant: str) -> Call:
        """Return what one call of a measure is in a variant; its result is not kept."""
        if variant == MATMUL:
            return MatmulReplay(self.call(measure, FUNCTIONAL if self.hand is None else HAND))
        if variant == JAX:
            return self.in_jax.call(measure)
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
            return self.compiled.collector.engine(self.case.horizon)
        route = "functional" if variant == FUNCTIONAL else "general"
        return differentiable_rollout(
            self.env, self.policy, self.case.horizon, discount=DISCOUNT, route=route
        )

    def iterate(self, variant: str) -> Any:
        """Collect a batch by one of the routes and update, as a trainer does."""
        if variant == COMPILED:
            self.compiled.anneal(0.0)
            return self.compiled.iterate()
        self.hpo.anneal(0.0)
        if variant == STOCK:
            return self.hpo.update(self.rollout(STOCK))
        engines = {FUNCTIONAL: self.functional, GENERAL: self.general}
        self.hpo.collector.engine = engines[variant]
        return self.hpo.iterate()
