"""Batches without a graph that processes of Ray collect, on one machine or on many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from sys import maxsize
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from hpo_torchrl.collectors.collector import LEFT_OUT, BatchCollector, check_sampling, restart
from hpo_torchrl.collectors.episodes import begun
from hpo_torchrl.core.checks import check_int, first_line
from hpo_torchrl.core.extras import extra
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.modules import HybridPolicy

_QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}


class Worker(Collector):
    """TorchRL's collector in a process of its own, with random numbers of its own.

    Args:
        env: the environment, a copy of the process's own.
        policy: the policy, likewise.
        seeds: of the environment and of the policy.
        settings: further arguments, of TorchRL's ``Collector``.
    """

    _carrier: TensorDictBase

    def __init__(
        self, env: EnvBase, policy: HybridPolicy, *, seeds: Sequence[int], **settings: Any
    ) -> None:
        env.set_seed(seeds[0])
        policy.randomness = Randomness(seeds[1], env.device)
        super().__init__(env, policy, **settings)

    def __bool__(self) -> bool:
        """Say yes: Ray asks workers whose beginning failed, and those have no length."""
        return True

    @torch.no_grad()
    def restart(self, mask: Tensor) -> None:
        """Begin anew the instances of a mask ``(*B, 1)``."""
        self._carrier = restart(self.env, self._carrier, mask)

    def next(self) -> TensorDictBase:
        """Return the next batch."""
        return super().next().exclude(*LEFT_OUT)


@dataclass(kw_only=True, eq=False, repr=False)
class RayCollector(BatchCollector):
    """Collect rollouts without a graph by TorchRL's ``RayCollector``, in several processes at once.

    Each of K workers simulates a copy of the environment: a batch holds K times its instances, and
    waits for the slowest worker. The policy's weights are sent to the workers before each batch.

    The seeds of the workers and the restarts are drawn from ``randomness``. The first batch joins
    Ray, or begins it on this machine. A checkpoint holds no running instances: a collector that
    goes on begins new episodes.

    Args:
        env: the environment of one worker, on a CPU; it is copied, and not stepped here.
        policy: the policy.
        workers: number K of workers, each with a CPU of its own.
        frames_per_batch: environment steps in a batch, of all workers.
        reset_at_each_iter: start every batch from fresh initial states.
        reset_fraction: share of the instances, drawn anew for each batch, that starts it from a
            fresh initial state.
        randomness: where seeds and restarts come from, and from then on what the policy draws in
            this process; ``None`` is ``policy.randomness``.

    Raises:
        TypeError: a number is not an integer.
        ValueError: a number is out of range, or the environment is not on a CPU.

    Examples:
        >>> from hpo_torchrl.collectors import RayCollector
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=4)
        >>> policy = HybridPolicy.for_env(env)
        >>> collector = RayCollector(env, policy, workers=2, frames_per_batch=80)
        >>> collector.batch_size, collector.num_steps
        (torch.Size([8]), 10)
    """

    workers: int

    def __post_init__(self) -> None:
        check_int("workers", self.workers, minimum=1)
        super().__post_init__()
        check_sampling(self.env, self.policy)
        self.policy.randomness = self.randomness
        if self.device is not None and self.device.type != "cpu":
            raise ValueError(
                f"Ray's workers simulate on CPUs, got an environment with device={self.device}; "
                "use device=cpu, or leave the workers out."
            )
        self._began_ray = False

    @property
    def batch_size(self) -> torch.Size:
        """Shape of the instances of a batch: those of all workers, along the first axis."""
        own = self.env.batch_size or torch.Size([1])
        return torch.Size([self.workers * own[0], *own[1:]])

    def collect(self) -> TensorDictBase:
        """Collect one batch of shape ``(K * B, ..., T)``, detached.

        Raises:
            MissingExtraError: Ray is not installed.
            TypeError: the environment cannot be sent to another process.
            ValueError: Ray has fewer CPUs than there are workers.
        """
        workers = self._collector
        if self.running is None or self.reset_at_each_iter:
            self.running = begun(self)
            mask: Tensor | None = torch.ones((*self.batch_size, 1), dtype=torch.bool)
        else:
            mask = self._restarts()
        if mask is not None:
            own = mask.reshape(self.workers, *self.env.batch_size, 1)
            workers.map_fn("restart", [(part.clone(),) for part in own])
        workers.update_policy_weights_()
        batch = next(self._batches)
        batch = batch.reshape(*self.batch_size, self.num_steps)
        self._follow(batch)
        self.frames += self.frames_per_batch
        return batch

    @cached_property
    def _batches(self) -> Iterator[TensorDictBase]:
        return iter(self._collector)

    @cached_property
    def _collector(self) -> Any:
        """TorchRL's collector, whose workers begin as it is made."""
        ray = extra("ray", "ray")
        from torchrl.collectors.distributed import RayCollector as Workers

        try:
            extra("ray.cloudpickle", "ray").dumps(self.env)
        except Exception as error:
            raise TypeError(
                f"{type(self.env).__name__} cannot be sent to a worker of Ray, for it cannot be "
                f"pickled ({first_line(error)}). Leave the workers out."
            ) from error
        if not ray.is_initialized():
            ray.init(**_QUIET)
            self._began_ray = True
        try:
            if (there := int(ray.cluster_resources().get("CPU", 0))) < self.workers:
                raise ValueError(
                    f"{self.workers} workers need a CPU each, but Ray has {there}: ask for at most "
                    "so many, or begin Ray with more by `ray start --head --num-cpus=N`."
                )
            return Workers(**self._arguments())
        except BaseException:
            self.stop()
            raise

    def _arguments(self) -> dict[str, Any]:
        drawn = self.randomness.draw("uniform", (self.workers, 2), dtype=torch.float64)
        shared = {"auto_register_policy_transforms": False, "track_traj_ids": False}
        seeds = (drawn * (2**31 - 1)).long().tolist()
        return {
            "create_env_fn": [self.env] * self.workers,
            "policy": self.policy,
            "frames_per_batch": self.frames_per_batch,
            "total_frames": maxsize,
            "sync": True,
            "trust_policy": True,
            "collector_class": Worker,
            "collector_kwargs": [{**shared, "seeds": own} for own in seeds],
            "remote_configs": {"num_cpus": 1},
        }

    def state_dict(self, index: int | None = None) -> dict[str, Any]:
        """Return the frames so far; the running episodes are the workers' own."""
        return {**super().state_dict(index), "running": None}

    def stop(self) -> None:
        """End the workers, and Ray if it began here; the next batch begins new ones."""
        self.running = None
        if (workers := vars(self).pop("_collector", None)) is not None:
            vars(self).pop("_batches", None)
            workers.shutdown()
        if self._began_ray:
            extra("ray", "ray").shutdown()
            self._began_ray = False

    def shutdown(self) -> None:
        """End the workers, and close the environment."""
        self.stop()
        if not self.env.is_closed:
            self.env.close()
