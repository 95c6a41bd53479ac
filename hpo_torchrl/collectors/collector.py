"""A collector whose batches keep the graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.collectors.compiled import CompiledRollout
from hpo_torchrl.collectors.rollout import ROUTES, check_functional, differentiable_rollout
from hpo_torchrl.collectors.straight_through import straight_through_rollout
from hpo_torchrl.core.checks import check_bool, check_choice, check_float, check_int
from hpo_torchrl.modules import HybridPolicy


def check_frames(frames_per_batch: int, env: EnvBase) -> int:
    """Check that a batch holds as many steps of every system, and return their number."""
    systems = env.batch_size.numel()
    if check_int("frames_per_batch", frames_per_batch, minimum=1) % systems:
        raise ValueError(
            f"frames_per_batch must be a multiple of the {systems} systems of the environment, got "
            f"{frames_per_batch}; a batch of T steps holds T * {systems}."
        )
    return systems


def restarts(env: EnvBase, fraction: float) -> Tensor:
    """Draw which systems start the next window afresh, bool ``(*B, 1)``."""
    return (torch.rand(env.batch_size, device=env.device) < fraction).unsqueeze(-1)


class DifferentiableCollector:
    """Iterate over differentiable rollouts: tensordicts of shape ``(*B, T)`` with their graph.

    TorchRL's collectors run without gradients; this one has their vocabulary and keeps the graph.
    Each batch is a window of the running systems: the state is carried over and detached at the
    window's start, so that a graph spans exactly one batch.

    Args:
        env: the environment.
        policy: the policy, used as it is at the time of each batch.
        frames_per_batch: environment steps in a batch: a multiple of the number of systems.
        total_frames: environment steps in all; -1 goes on for ever.
        reset_at_each_iter: start every batch from fresh initial states.
        reset_fraction: share of the systems, drawn anew for each batch, that starts it from a
            fresh initial state: it keeps rare states in the data.
        discount: see :func:`differentiable_rollout`.
        exploration_type: how the policy acts.
        route: see :func:`differentiable_rollout`.
        temperature: of a :func:`straight_through_rollout`, which is then what a batch is; ``None``
            takes an ordinary differentiable rollout.
        checkpoint_steps: see :func:`differentiable_rollout`.
        compile: roll out by :class:`CompiledRollout`, where the policy samples and gradients are
            kept.

    Raises:
        TypeError: a number of frames is not an integer.
        ValueError: the policy does not fit the environment, or a number is out of range.

    Examples:
        >>> from hpo_torchrl.collectors import DifferentiableCollector
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=4)
        >>> policy = HybridPolicy.for_env(env)
        >>> collector = DifferentiableCollector(env, policy, frames_per_batch=40, total_frames=80)
        >>> [(batch.shape, batch["next", "reward"].requires_grad) for batch in collector]
        [(torch.Size([4, 10]), True), (torch.Size([4, 10]), True)]
    """

    def __init__(
        self,
        env: EnvBase,
        policy: HybridPolicy,
        *,
        frames_per_batch: int,
        total_frames: int = -1,
        reset_at_each_iter: bool = False,
        reset_fraction: float = 0.0,
        discount: float = 1.0,
        exploration_type: ExplorationType = ExplorationType.RANDOM,
        route: str = "auto",
        temperature: float | None = None,
        checkpoint_steps: int | None = None,
        compile: bool = False,
    ) -> None:
        systems = check_frames(frames_per_batch, env)
        check_int("total_frames", total_frames, minimum=-1)
        check_float("discount", discount, minimum=0.0, maximum=1.0, strict=True)
        check_choice("route", route, ROUTES)
        check_float("reset_fraction", reset_fraction, minimum=0.0, maximum=1.0)
        if hasattr(policy, "check_env"):
            policy.check_env(env)
        self.env, self.policy = env, policy
        self.frames_per_batch, self.total_frames = frames_per_batch, total_frames
        self.num_steps = frames_per_batch // systems
        self.reset_at_each_iter = check_bool("reset_at_each_iter", reset_at_each_iter)
        self.reset_fraction = reset_fraction
        self.discount, self.exploration_type, self.route = discount, exploration_type, route
        if temperature is not None:
            check_float("temperature", temperature, minimum=0.0, strict=True)
            check_functional("temperature", env, policy, "leave it out")
        self.temperature = temperature
        if checkpoint_steps is not None:
            check_int("checkpoint_steps", checkpoint_steps, minimum=1)
            check_functional("checkpoint_steps", env, policy, "leave it out")
            if temperature is not None:
                raise ValueError(
                    "checkpoint_steps is not for straight-through rollouts; leave it out."
                )
        self.checkpoint_steps = checkpoint_steps
        self.compiled: CompiledRollout | None = None
        if check_bool("compile", compile):
            others: dict[str, Any] = {
                "temperature": temperature,
                "checkpoint_steps": checkpoint_steps,
                "route": route if route == "general" else None,
            }
            for name, value in others.items():
                if value is not None:
                    raise ValueError(f"compile does not go with {name}={value!r}; leave one out.")
            self.compiled = CompiledRollout(env, policy, discount=discount)
        self._compile_seconds = 0.0
        self.frames = 0
        self._carried: TensorDictBase | None = None

    def __iter__(self) -> Iterator[TensorDict]:
        """Yield batches until ``total_frames`` are collected."""
        while self.total_frames < 0 or self.frames < self.total_frames:
            yield self.collect()

    def __len__(self) -> int:
        """Number of batches in all."""
        if self.total_frames < 0:
            raise TypeError("A collector with total_frames=-1 has no length.")
        return -(-self.total_frames // self.frames_per_batch)

    def collect(self) -> TensorDict:
        """Collect one batch of shape ``(*B, T)`` and carry the state over."""
        start = self.start(self._carried)
        with set_exploration_type(self.exploration_type):
            if self.compiled is not None:
                batch = self.compiled(self.num_steps, tensordict=start)
            elif self.temperature is None:
                batch = differentiable_rollout(
                    self.env,
                    self.policy,
                    self.num_steps,
                    tensordict=start,
                    discount=self.discount,
                    route=self.route,
                    checkpoint_steps=self.checkpoint_steps,
                )
            else:
                batch = straight_through_rollout(
                    self.env,
                    self.policy,
                    self.num_steps,
                    tensordict=start,
                    discount=self.discount,
                    temperature=self.temperature,
                )
        last = batch.detach()[(..., -1)]
        # ``maybe_reset`` restarts the systems whose episode ended with the window.
        self.carry(self.env.maybe_reset(self.env.step_mdp(last.copy())))
        return batch

    def carry(self, running: TensorDictBase) -> None:
        """Count a batch, and let the next one start where its systems are now."""
        self._carried = running
        self.frames += self.frames_per_batch

    def compile_seconds(self) -> float:
        """Return the time spent on compiling since this was last asked."""
        if self.compiled is None:
            return 0.0
        before, self._compile_seconds = self._compile_seconds, self.compiled.compile_seconds
        return self._compile_seconds - before

    @property
    def carried(self) -> TensorDictBase | None:
        """The running systems, in which the next batch starts; ``None`` before the first."""
        return self._carried

    def start(self, carried: TensorDictBase | None) -> TensorDictBase:
        """Return the start of a batch: ``carried``, with the restarts that are asked for."""
        if carried is None or self.reset_at_each_iter:
            return self.env.reset()
        if self.reset_fraction > 0.0:
            carried = carried.copy().set("_reset", restarts(self.env, self.reset_fraction))
            carried = self.env.reset(carried, select_reset_only=True)
        return carried

    def reset(self) -> None:
        """Forget the running systems: the next batch starts from fresh initial states."""
        self._carried = None

    def shutdown(self) -> None:
        """Close the environment."""
        if not self.env.is_closed:
            self.env.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the frames so far, the running systems and the environment's generator.

        Not held is torch's global generator, from which policies sample: whoever saves a run saves
        that too (``torchrl.checkpoint.GlobalRNGState``).
        """
        state: dict[str, Any] = {"frames": self.frames, "carried": None, "rng": None}
        if self._carried is not None:
            leaves = self._carried.flatten_keys(".")
            state["carried"] = {key: value.clone() for key, value in leaves.items()}
        # By attribute, so that a generator behind TorchRL's transforms is found too.
        if isinstance(rng := getattr(self.env, "rng", None), torch.Generator):
            state["rng"] = rng.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        self.frames, self._carried = state["frames"], None
        if state["carried"] is not None:
            self._carried = TensorDict(
                state["carried"], batch_size=self.env.batch_size, device=self.env.device
            ).unflatten_keys(".")
        if state["rng"] is not None:
            self.env.rng.set_state(state["rng"].cpu())
