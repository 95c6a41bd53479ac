"""Collectors of batches: with the simulator's graph, and without it by TorchRL's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.collectors.episodes import Ended, begun, follow
from hpo_torchrl.collectors.inputs import check_keeps_graph
from hpo_torchrl.collectors.rollout import Rollout
from hpo_torchrl.core import ranks
from hpo_torchrl.core.checks import check_annotated, check_float, check_int, shown
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.core.wrappers import batched, check_outcome, differentiable
from hpo_torchrl.modules import HybridPolicy

# What is kept of the instances between two batches.
_HELD = ("carried", "explorers", "running")


# What a policy writes beside the action, and a loss computes anew.
LEFT_OUT = ("logits", "loc", "scale")


def restart(env: EnvBase, carried: TensorDictBase, mask: Tensor) -> TensorDictBase:
    """Return running instances, those of a mask ``(*B, 1)`` begun anew."""
    return env.reset(carried.copy().set("_reset", mask), select_reset_only=True)


def check_sampling(env: EnvBase, policy: Any) -> None:
    """Raise an error unless a policy and an environment fit a collector without a graph."""
    if not isinstance(policy, HybridPolicy):
        raise TypeError(f"policy must be a HybridPolicy, got {shown(policy)}.")
    check_outcome(env)


@dataclass(kw_only=True, eq=False, repr=False)
class BatchCollector:
    """The arguments, restarts and state that all collectors share.

    Attributes:
        frames: environment steps so far, of all ranks, to which an algorithm adds those that it
            simulates itself.
        carried: the running instances, in which the next batch starts; ``None`` before the first.
        explorers: the states in which some start it instead, and their ``"first"`` actions.
        running: what is known of the episodes that go on, see :func:`begun`.
        ended: the episodes that ended in the last batch.
        forced: which instances began the last batch by such an action, bool ``(*B,)``.
        compiled: what is compiled for whoever collects; ``None`` if nothing is.
    """

    env: EnvBase = field(kw_only=False)
    policy: Any = field(kw_only=False)
    frames_per_batch: int
    reset_at_each_iter: bool = False
    reset_fraction: float = 0.0
    randomness: Randomness = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_annotated(type(self), vars(self))
        instances = self.batch_size.numel()
        if check_int("frames_per_batch", self.frames_per_batch, minimum=1) % instances:
            raise ValueError(
                f"frames_per_batch must be a multiple of the {instances} instances of the "
                f"environment, got {self.frames_per_batch}; a batch of T steps holds "
                f"T * {instances}."
            )
        check_float("reset_fraction", self.reset_fraction, minimum=0.0, maximum=1.0)
        # A fault of the equations is told before a run has a folder.
        if batched(self.env) is None and hasattr(self.env, "check_contract"):
            self.env.check_contract()
        if hasattr(self.policy, "check_env"):
            self.policy.check_env(self.env)
        if self.randomness is None:
            self.randomness = getattr(self.policy, "randomness", None) or Randomness()
        self.num_steps, self.frames = self.frames_per_batch // instances, 0
        self.carried: TensorDictBase | None = None
        self.explorers: TensorDictBase | None = None
        self.forced: Tensor | None = None
        self.running: Any = None
        self.ended: Ended | None = None
        self.compiled: Any = None
        self._compile_seconds = 0.0

    def compile_seconds(self) -> float:
        """Return the time spent on compiling since this was last asked."""
        spent = 0.0 if self.compiled is None else self.compiled.seconds
        before, self._compile_seconds = self._compile_seconds, spent
        return spent - before

    @property
    def batch_size(self) -> torch.Size:
        """Shape of the instances of a batch."""
        return self.env.batch_size

    @property
    def device(self) -> torch.device | None:
        """Device of a batch."""
        return self.env.device

    def _begin(self) -> TensorDictBase | None:
        """Return the instances that begin the next batch; ``None`` if all are to be reset."""
        if self.carried is None or self.reset_at_each_iter:
            self.running = begun(self)
            return None
        return self.restarted(self.carried)

    def _follow(self, batch: TensorDictBase) -> None:
        """Follow the episodes through a batch."""
        after: Any = batch.get("next")
        self.running, self.ended = follow(self.running, after.get("reward"), after.get("done"))

    def restarted(self, carried: TensorDictBase) -> TensorDictBase:
        """Return running instances, a share of them restarted."""
        mask = self._restarts()
        return carried if mask is None else restart(self.env, carried, mask)

    def _restarts(self) -> Tensor | None:
        """Draw which running instances begin anew, bool ``(*B, 1)``; ``None`` if none does."""
        if self.reset_fraction == 0.0:
            return None
        drawn = self.randomness.draw("uniform", self.batch_size, device=self.device)
        mask = (drawn < self.reset_fraction).unsqueeze(-1)
        if not ranks.anywhere(mask):  # nothing is drawn then, for one seed as for many
            return None
        self.running = begun(self).where(mask.squeeze(-1), self.running)
        return mask

    def state(self, index: int | None = None) -> Any:
        """Return what a checkpoint of one seed holds: an object with ``state_dict``.

        Args:
            index: number of the seed; ``None`` is the collector itself.
        """
        return SimpleNamespace(
            state_dict=partial(self.state_dict, index),
            load_state_dict=partial(self.load_state_dict, index=index),
        )

    def state_dict(self, index: int | None = None) -> dict[str, Any]:
        """Return the frames so far, the running instances and the environment's generator.

        It does not include the policy's random numbers, which ``randomness.state()`` holds.

        Args:
            index: number of the seed, in the form of a collector of that seed alone.
        """
        env, number = self._member(index)
        state: dict[str, Any] = {"frames": self.frames // number, "rng": None}
        for name in _HELD:
            held = getattr(self, name)
            own = held if held is None or index is None else held[index]
            leaves = {} if own is None else dict(own.flatten_keys(".").items())
            if leaves:  # of the whole batch, so that any number of ranks can go on
                leaves = ranks.gathered_all(leaves, self._instances)
            state[name] = {key: value.clone() for key, value in leaves.items()} or None
        # By attribute, so that a generator behind TorchRL's transforms is found too.
        if isinstance(rng := None if batched(env) else getattr(env, "rng", None), torch.Generator):
            state["rng"] = rng.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any], index: int | None = None) -> None:
        """Go on exactly where :meth:`state_dict` was taken; of many seeds, load all.

        An environment whose state is its own, and not in the tensordict, goes on from new episodes.
        All that was compiled so far counts from there on.
        """
        self._compile_seconds = 0.0
        env, number = self._member(index)
        self.frames = number * state["frames"]
        for name in _HELD:
            held, own = getattr(self, name), None
            if state[name] is not None:
                place = {"batch_size": env.batch_size, "device": env.device}
                leaves = state[name]
                if ranks.active():
                    share = ranks.share(self._instances)
                    leaves = {key: value[share] for key, value in leaves.items()}
                own = TensorDict(leaves, **place).unflatten_keys(".")
                if index is not None:
                    rows = [own] * number if held is None else list(held.unbind(0))
                    rows[index] = own
                    own = torch.stack(rows).contiguous()
            setattr(self, name, own)
        if state["rng"] is not None:
            env.rng.set_state(state["rng"].cpu())
        if not differentiable(self.env):
            self.carried = None

    @property
    def _instances(self) -> int:
        """Length of the first axis of the whole batch, of which a rank has its share."""
        return getattr(self.env, "original", self.env).batch_size[0] if ranks.active() else 0

    def _member(self, index: int | None) -> tuple[Any, int]:
        """Return the environment of a seed, and the number of seeds."""
        env: Any = self.env
        return (env, 1) if index is None else (env.members[index], len(env.members))


@dataclass(kw_only=True, eq=False, repr=False)
class DifferentiableCollector(BatchCollector):
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
        explore_fraction: share of the instances, drawn anew for each batch, that starts it from a
            state that the batch before has visited, by a discrete action drawn uniformly (if it is
            allowed there): the continuous action beside a discrete one that the policy has given up
            is learned as well. Needs the functional route.
        randomness: where the policy's random numbers and the restarts come from; ``None`` is
            ``policy.randomness``.
        exploration_type: how the policy acts.
        discount: of the :class:`Rollout` that makes the batches, like the settings below.
        route: likewise.
        temperature: likewise.
        checkpoint_steps: likewise.
        compile: likewise.

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

    init_random_frames = 0  # TorchRL's trainer asks for it: every batch is the policy's

    total_frames: int = -1
    explore_fraction: float = 0.0
    exploration_type: ExplorationType = ExplorationType.RANDOM
    discount: float = 1.0
    route: str = "auto"
    temperature: float | None = None
    checkpoint_steps: int | None = None
    compile: bool | str = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("total_frames", self.total_frames, minimum=-1)
        check_float("explore_fraction", self.explore_fraction, minimum=0.0, maximum=1.0)
        own = {known.name: getattr(self, known.name) for known in fields(Rollout) if known.init}
        self.engine = Rollout(**own)
        self.compiled = self.engine.compiled
        if not self.engine.functional:
            check_keeps_graph(self.env)

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
        start = self._begin()
        if start is None:
            start = self.env.reset()
        self.forced, first = None, None
        if self.explorers is not None:
            first = self.explorers["first"]
            self.forced = first >= 0
            states = self.explorers.exclude("first")
            there = states.where(self.forced, start.select(*states.keys()))
            start = start.copy().update(there)
            self.running = self.running.copy().set("whole", self.running["whole"] & ~self.forced)
        with set_exploration_type(self.exploration_type):
            batch = self.engine(self.num_steps, tensordict=start, first=first)
        last = batch.detach()[(..., -1)]
        # ``maybe_reset`` restarts the instances whose episode ended with the batch.
        self.carried = self.env.maybe_reset(self.env.step_mdp(last.copy()))
        self.explorers = self._explorers(batch.detach()) if self.explore_fraction > 0 else None
        self._follow(batch)
        self.frames += ranks.count(self.frames_per_batch)
        return batch

    def _explorers(self, batch: TensorDict) -> TensorDict:
        """Return where instances may start the next batch, and ``"first"``: by what, -1 for not."""
        env: Any = self.env
        shape, number = env.batch_size, env.full_action_spec["action", "discrete"].space.n
        who, when, what = self.randomness.draw("uniform", (*shape, 3), device=env.device).unbind(-1)
        time = (when * batch.shape[-1]).long().unsqueeze(-1)
        names = [*env.state_names, *env.shown_names]
        found = batch.select(*names).gather(len(shape), time).squeeze(-1)
        first = (what * number).long()
        return found.set("first", first.where(who < self.explore_fraction, -1))

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Seed the environment, as TorchRL's collectors do; return the next seed."""
        return self.env.set_seed(seed, static_seed=static_seed)

    def update_policy_weights_(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: TorchRL calls it where workers have copies of the policy."""

    def reset(self) -> None:
        """Forget the running instances: the next batch starts from fresh initial states."""
        self.carried = self.explorers = None

    def shutdown(self) -> None:
        """Close the environment."""
        if not self.env.is_closed:
            self.env.close()


class _Borrower(Collector):
    """TorchRL's collector, but for an environment that others go on with when it is forgotten."""

    def __del__(self) -> None:
        with suppress(Exception):  # as TorchRL does: the program may be at its end
            self.shutdown(close_env=False)


@dataclass(kw_only=True, eq=False, repr=False)
class SampleCollector(BatchCollector):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sampling(self.env, self.policy)
        self.policy.randomness = self.randomness

    @cached_property
    def _collector(self) -> Collector:
        """TorchRL's collector, which resets the environment: made when it is first needed."""
        return _Borrower(
            self.env,
            self.policy,
            frames_per_batch=self.frames_per_batch,
            total_frames=-1,
            reset_at_each_iter=self.reset_at_each_iter,
            auto_register_policy_transforms=False,
            trust_policy=True,
            track_traj_ids=False,
        )

    def collect(self) -> TensorDictBase:
        """Collect one batch of shape ``(*B, T)``, detached; the instances run on afterwards."""
        start = self._begin()
        if start is None and self.frames and not self.reset_at_each_iter:
            start = self.env.reset()  # of a run that goes on without its instances
        if start is not None:
            self._collector._carrier = start
        try:
            batch = self._collector.rollout()
        finally:  # of a failed rollout, where it stopped
            self.carried = self._collector._carrier
        self._follow(batch)
        self.frames += ranks.count(self.frames_per_batch)
        # A copy: TorchRL reuses the buffers of a batch for the next one.
        return batch.exclude(*LEFT_OUT).clone()

    def load_state_dict(self, state: dict[str, Any], index: int | None = None) -> None:
        """Go on exactly where :meth:`state_dict` was taken; of many seeds, load all."""
        _ = self._collector  # which resets the environment, before its generator is set
        super().load_state_dict(state, index)

    def shutdown(self) -> None:
        """Close the environment."""
        if "_collector" in vars(self):
            self._collector.shutdown()
        elif not self.env.is_closed:
            self.env.close()
