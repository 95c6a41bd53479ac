"""TorchRL's own collector, with what the trainer asks of one: restarts and exact resumption."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from hpo_torchrl.collectors.collector import check_frames, restarts
from hpo_torchrl.core.checks import check_bool, check_float
from hpo_torchrl.modules import HybridPolicy


class SampleCollector:
    """Collect rollouts without a graph by TorchRL's ``Collector``.

    It has the vocabulary of :class:`DifferentiableCollector`, for algorithms that use no gradient
    of the simulator: no entry of a batch requires one.

    Args:
        env: the environment.
        policy: the policy, used as it is at the time of each batch.
        frames_per_batch: environment steps in a batch: a multiple of the number of systems.
        reset_at_each_iter: start every batch from fresh initial states.
        reset_fraction: share of the systems, drawn anew for each batch, that starts it from a
            fresh initial state.

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
    ) -> None:
        check_frames(frames_per_batch, env)
        self.reset_fraction = check_float(
            "reset_fraction", reset_fraction, minimum=0.0, maximum=1.0
        )
        self.env, self.policy, self.frames_per_batch = env, policy, frames_per_batch
        self.frames = 0
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
        """Collect one batch of shape ``(*B, T)``, detached; the systems run on afterwards."""
        afresh = self.frames == 0 or self._collector.reset_at_each_iter
        if self.reset_fraction > 0.0 and not afresh:
            self._collector.reset(restarts(self.env, self.reset_fraction).squeeze(-1))
        batch = self._collector.rollout()
        self.frames += self.frames_per_batch
        # A copy: TorchRL reuses the buffers of a batch for the next one.
        return batch.exclude("logits", "loc", "scale").clone()

    def shutdown(self) -> None:
        """Close the environment."""
        self._collector.shutdown()

    def state_dict(self) -> dict[str, Any]:
        """Return the frames so far, the running systems and the environment's generator."""
        # TorchRL's own state leaves the running systems out.
        carried = self._collector._carrier.flatten_keys(".").items()
        state: dict[str, Any] = {"frames": self.frames, "rng": None}
        state["carried"] = {key: value.clone() for key, value in carried}
        if isinstance(rng := getattr(self.env, "rng", None), torch.Generator):
            state["rng"] = rng.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        self.frames = state["frames"]
        self._collector._carrier = TensorDict(
            state["carried"], batch_size=self.env.batch_size, device=self.env.device
        ).unflatten_keys(".")
        if state["rng"] is not None:
            self.env.rng.set_state(state["rng"].cpu())
