"""A collector whose batches keep the graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.collectors.engine import Rollout
from hpo_torchrl.collectors.inputs import check_functional, is_functional
from hpo_torchrl.collectors.rollout import ROUTES, general_rollout
from hpo_torchrl.collectors.straight_through import straight_through
from hpo_torchrl.core.checks import check_bool, check_choice, check_float, check_int
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.modules import HybridPolicy


class _BatchCollector:
    """The arguments, restarts and state that both collectors share."""

    def __init__(
        self,
        env: EnvBase,
        policy: HybridPolicy,
        frames_per_batch: int,
        reset_fraction: float,
        randomness: Randomness | None,
    ) -> None:
        instances = env.batch_size.numel()
        if check_int("frames_per_batch", frames_per_batch, minimum=1) % instances:
            raise ValueError(
                f"frames_per_batch must be a multiple of the {instances} instances of the "
                f"environment, got {frames_per_batch}; a batch of T steps holds T * {instances}."
            )
        self.reset_fraction = check_float(
            "reset_fraction", reset_fraction, minimum=0.0, maximum=1.0
        )
        self.env, self.policy, self.frames_per_batch = env, policy, frames_per_batch
        self.num_steps = frames_per_batch // instances
        if randomness is None:
            randomness = getattr(policy, "randomness", None) or Randomness()
        self.randomness = randomness
        self.frames = 0

    @property
    def carried(self) -> TensorDictBase | None:
        """The running instances, in which the next batch starts; ``None`` before the first."""
        raise NotImplementedError

    @carried.setter
    def carried(self, value: TensorDictBase | None) -> None:
        raise NotImplementedError

    def restarted(self, carried: TensorDictBase) -> TensorDictBase:
        """Return running instances, a share of them restarted."""
        if self.reset_fraction == 0.0:
            return carried
        drawn = self.randomness.uniform(self.env.batch_size, device=self.env.device)
        mask = (drawn < self.reset_fraction).unsqueeze(-1)
        if not bool(mask.any()):  # nothing is drawn then, for one seed as for many
            return carried
        return self.env.reset(carried.copy().set("_reset", mask), select_reset_only=True)

    def state(self, index: int | None = None) -> Any:
        """Return what a checkpoint of one seed holds: an object with ``state_dict``.

        Args:
            index: number of the seed; ``None`` is the collector itself.
        """
        return self if index is None else _SeedState(self, index)

    def state_dict(self) -> dict[str, Any]:
        """Return the frames so far, the running instances and the environment's generator.

        It does not include the policy's random numbers, which ``randomness.state()`` holds.
        """
        return self._state(self.env, self.carried, self.frames)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        self._load(state, self.env, state["frames"], lambda carried: carried)

    def _state(self, env: EnvBase, carried: TensorDictBase | None, frames: int) -> dict[str, Any]:
        state: dict[str, Any] = {"frames": frames, "carried": None, "rng": None}
        if carried is not None:
            leaves = carried.flatten_keys(".")
            state["carried"] = {key: value.clone() for key, value in leaves.items()}
        # By attribute, so that a generator behind TorchRL's transforms is found too.
        if isinstance(rng := getattr(env, "rng", None), torch.Generator):
            state["rng"] = rng.get_state()
        return state

    def _load(self, state: dict[str, Any], env: EnvBase, frames: int, place: Any) -> None:
        self.frames, carried = frames, None
        if state["carried"] is not None:
            own = {"batch_size": env.batch_size, "device": env.device}
            carried = place(TensorDict(state["carried"], **own).unflatten_keys("."))
        self.carried = carried
        if state["rng"] is not None:
            env.rng.set_state(state["rng"].cpu())


class _SeedState:
    """What a collector of many seeds holds of one, in the form of an ordinary collector's."""

    def __init__(self, collector: _BatchCollector, index: int) -> None:
        self.collector, self.index = collector, index
        self.env: Any = collector.env.members[index]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the seed."""
        carried = self.collector.carried
        own = None if carried is None else carried[self.index]
        frames = self.collector.frames // len(self.collector.env.members)
        return self.collector._state(self.env, own, frames)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; all seeds have to be loaded."""
        together = self.collector.carried
        number = len(self.collector.env.members)

        def place(own: TensorDictBase) -> TensorDictBase:
            rows = [own] * number
            # A fresh collector holds nothing, or other entries than a running one.
            if together is not None and _names(together) == _names(own):
                rows = list(together.unbind(0))
            rows[self.index] = own
            return torch.stack(rows).contiguous()

        self.collector._load(state, self.env, number * state["frames"], place)


def _names(carried: TensorDictBase) -> set[Any]:
    return set(carried.keys(include_nested=True, leaves_only=True))


class DifferentiableCollector(_BatchCollector):
    """Iterate over differentiable rollouts: tensordicts of shape ``(*B, T)`` with their graph.

    TorchRL's collectors run without gradients; this one has their vocabulary and keeps the graph.
    The state is carried over from batch to batch and detached at the start of each, so that a graph
    spans exactly one batch. With a :class:`ReplicatedEnv` and a replicated policy a batch is
    ``(S, *B, T)``, each seed's rows from its own random numbers.

    Args:
        env: the environment.
        policy: the policy, used as it is at the time of each batch.
        frames_per_batch: environment steps in a batch: a multiple of the number of
            instances.
        total_frames: environment steps in all; -1 goes on for ever.
        reset_at_each_iter: start every batch from fresh initial states.
        reset_fraction: share of the instances, drawn anew for each batch, that starts it from a
            fresh initial state: it keeps rare states in the data.
        discount: see :func:`differentiable_rollout`.
        exploration_type: how the policy acts.
        route: see :func:`differentiable_rollout`.
        temperature: of a :func:`straight_through_rollout`, which is then what a batch is; ``None``
            takes an ordinary differentiable rollout.
        checkpoint_steps: see :func:`differentiable_rollout`.
        compile: see :class:`Rollout`.
        randomness: where the policy's random numbers and the restarts come from; ``None`` is
            ``policy.randomness``.

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
        randomness: Randomness | None = None,
    ) -> None:
        super().__init__(env, policy, frames_per_batch, reset_fraction, randomness)
        self.total_frames = check_int("total_frames", total_frames, minimum=-1)
        check_float("discount", discount, minimum=0.0, maximum=1.0, strict=True)
        self.route = check_choice("route", route, ROUTES)
        self.reset_at_each_iter = check_bool("reset_at_each_iter", reset_at_each_iter)
        if hasattr(policy, "check_env"):
            policy.check_env(env)
        self.discount, self.exploration_type = discount, exploration_type
        asked = {
            "temperature": temperature,
            "checkpoint_steps": checkpoint_steps,
            "compile": check_bool("compile", compile) or None,
            "route='functional'": True if route == "functional" else None,
        }
        for name, value in asked.items():
            if value is not None:
                check_functional(name, env, policy, "leave it out")
                if route == "general":
                    raise ValueError(
                        f"{name} needs the functional route, got route='general'; leave one out."
                    )
        self.engine: Rollout | None = None
        if route != "general" and is_functional(env, policy):
            functional: Any = env
            self.engine = Rollout(
                functional,
                policy,
                discount=discount,
                checkpoint_steps=checkpoint_steps,
                compile=compile,
                step=None if temperature is None else straight_through(env, policy, temperature),
                randomness=self.randomness,
            )
        self._compile_seconds = 0.0
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
            if self.engine is not None:
                batch = self.engine(self.num_steps, tensordict=start)
            else:
                batch = general_rollout(
                    self.env,
                    self.policy,
                    self.num_steps,
                    start.copy(),
                    None,
                    self.discount,
                    self.randomness,
                )
        last = batch.detach()[(..., -1)]
        # ``maybe_reset`` restarts the instances whose episode ended with the batch.
        self._carried = self.env.maybe_reset(self.env.step_mdp(last.copy()))
        self.frames += self.frames_per_batch
        return batch

    def start(self, carried: TensorDictBase | None) -> TensorDictBase:
        """Return the start of a batch: ``carried``, with the restarts that are asked for."""
        if carried is None or self.reset_at_each_iter:
            return self.env.reset()
        return self.restarted(carried)

    def compile_seconds(self) -> float:
        """Return the time spent on compiling since this was last asked."""
        if self.engine is None:
            return 0.0
        before, self._compile_seconds = self._compile_seconds, self.engine.compile_seconds
        return self._compile_seconds - before

    @property
    def carried(self) -> TensorDictBase | None:
        """The running instances, in which the next batch starts; ``None`` before the first."""
        return self._carried

    @carried.setter
    def carried(self, value: TensorDictBase | None) -> None:
        self._carried = value

    def reset(self) -> None:
        """Forget the running instances: the next batch starts from fresh initial states."""
        self._carried = None

    def shutdown(self) -> None:
        """Close the environment."""
        if not self.env.is_closed:
            self.env.close()


class SampleCollector(_BatchCollector):
    """Collect rollouts without a graph by TorchRL's ``Collector``.

    It has the vocabulary of :class:`DifferentiableCollector`, for algorithms that use no gradient
    of the simulator: no entry of a batch requires one.

    Args:
        env: the environment.
        policy: the policy, used as it is at the time of each batch.
        frames_per_batch: environment steps in a batch: a multiple of the number of instances.
        reset_at_each_iter: start every batch from fresh initial states.
        reset_fraction: share of the instances, drawn anew for each batch, that starts it from a
            fresh initial state.
        randomness: where restarts and, from then on, the policy draw their random numbers; ``None``
            is ``policy.randomness``.

    Raises:
        TypeError: a number of frames is not an integer.
        ValueError: a number is out of range.

    Examples:
        >>> from hpo_torchrl.collectors import SampleCollector
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=4)
        >>> collector = SampleCollector(env, HybridPolicy.for_env(env), frames_per_batch=40)
        >>> batch = collector.collect()
        >>> batch.shape, batch["next", "reward"].requires_grad
        (torch.Size([4, 10]), False)
    """

    def __init__(
        self,
        env: EnvBase,
        policy: HybridPolicy,
        *,
        frames_per_batch: int,
        reset_at_each_iter: bool = False,
        reset_fraction: float = 0.0,
        randomness: Randomness | None = None,
    ) -> None:
        super().__init__(env, policy, frames_per_batch, reset_fraction, randomness)
        policy.randomness = self.randomness
        self._collector = Collector(
            env,
            policy,
            frames_per_batch=frames_per_batch,
            total_frames=-1,
            reset_at_each_iter=check_bool("reset_at_each_iter", reset_at_each_iter),
            auto_register_policy_transforms=False,
            trust_policy=True,
            track_traj_ids=False,
        )

    def collect(self) -> TensorDictBase:
        """Collect one batch of shape ``(*B, T)``, detached; the instances run on afterwards."""
        if self.frames > 0 and not self._collector.reset_at_each_iter:
            self.carried = self.restarted(self.carried)
        batch = self._collector.rollout()
        self.frames += self.frames_per_batch
        # A copy: TorchRL reuses the buffers of a batch for the next one.
        return batch.exclude("logits", "loc", "scale").clone()

    @property
    def carried(self) -> TensorDictBase:
        """The running instances, which TorchRL's own state leaves out."""
        return self._collector._carrier

    @carried.setter
    def carried(self, value: TensorDictBase) -> None:
        self._collector._carrier = value

    def shutdown(self) -> None:
        """Close the environment."""
        self._collector.shutdown()
