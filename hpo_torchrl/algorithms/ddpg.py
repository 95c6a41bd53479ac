"""Learned-critic policy gradients: a replay buffer, and the slopes of a critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from hpo_torchrl.algorithms.base import Metrics
from hpo_torchrl.algorithms.learner import Learner, setting
from hpo_torchrl.core.checks import check_choice, check_int
from hpo_torchrl.core.finite import leaves
from hpo_torchrl.core.moving import moved_to
from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.modules import make_q_network
from hpo_torchrl.modules.layers import ACTIVATIONS
from hpo_torchrl.objectives import LearnedCriticLoss


@dataclass(kw_only=True, eq=False, repr=False)
class DDPG(Learner):
    """Deterministic policy gradients with a learned critic, for hybrid actions.

    TorchRL's ``Collector`` fills TorchRL's replay buffer; :class:`LearnedCriticLoss` follows the
    critic's slopes. No gradient of the simulator is used: what the critic believes takes its place.

    Args:
        env: the training environment: any ``EnvBase`` with hybrid actions.
        policy: the hybrid policy; a stochastic u explores (``policy.scale``).
        critic: a value network, whose hidden layers tell what the critic of actions is like.
        critic_of: what the critic judges: ``"actions"``, or the ``"parameters"`` of the policy's
            distribution (DA-AC), which needs a stochastic u, normal.
        updates_per_batch: gradient steps after each batch.
        minibatch_size: transitions in a step.
        buffer_batches: batches that the replay buffer holds.
        target_decay: weight of the past in the target networks.
        learning_rate: Adam's step size at the start.
        learner: further arguments, of :class:`Learner`; ``gae_lambda`` is unused.

    Raises:
        ValueError: an argument is out of range, or the policy does not fit the environment.

    Examples:
        >>> from hpo_torchrl.algorithms import DDPG
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy, make_value_network
        >>> env = InventoryEnv(batch_size=16, initial_state="random", seed=0)
        >>> policy = HybridPolicy.for_env(env, scale=0.1)
        >>> algorithm = DDPG(env, policy, make_value_network(env), unroll_length=20)
        >>> "loss_qvalue" in algorithm.iterate()
        True
    """

    critic_of: str = "actions"
    updates_per_batch: int = setting(20, check_int, minimum=1)
    minibatch_size: int = setting(512, check_int, minimum=1)
    buffer_batches: int = setting(10, check_int, minimum=1)
    target_decay: float = setting(0.99, maximum=1.0)
    learning_rate: float = setting(1e-3, strict=True)

    def __post_init__(self) -> None:
        env = self.env
        if getattr(plain(env), "num_heads", None) is not None:
            raise ValueError(
                "algorithm=ddpg needs a single discrete choice, whose actions its critic "
                f"compares; the environment has {env.num_heads} heads. Use algorithm=hpo."
            )
        if self.policy.memory is not None:
            raise ValueError(
                "algorithm=ddpg learns from single transitions, got a policy with a memory, which "
                "reads sequences. Use HPO or PPO."
            )
        widths, activation = _shape(self.critic)
        judges = {"actions": "candidate", "parameters": "parameters"}[
            check_choice("critic_of", self.critic_of, ("actions", "parameters"))
        ]
        kind = type(self.policy.continuous_distribution).__name__
        if judges == "parameters" and not (self.policy.stochastic and kind == "Normal"):
            raise ValueError(
                "critic_of=parameters needs a policy whose u is normal, with policy.scale above 0; "
                f"got {kind}, {'with' if self.policy.stochastic else 'without'} a scale."
            )
        self.critic = make_q_network(env, hidden=widths, activation=activation, judges=judges)
        super().__post_init__()
        size = self.buffer_batches * self.collector.frames_per_batch
        self.buffer = TensorDictReplayBuffer(
            # On the environment's device, where the networks are: TorchRL's default is the CPU.
            storage=LazyTensorStorage(size, device=env.device or "cpu"),
            batch_size=self.minibatch_size,
        )
        self.loss = LearnedCriticLoss(
            self.policy,
            self.critic,
            entropy_coeff=self.entropy_bonus,
            gamma=self.discount,
            centered=self.objective == "average" and self.discount == 1.0,
        )
        self.targets = SoftUpdate(self.loss, eps=self.target_decay)

    def update(self, batch: TensorDictBase) -> Metrics | list[Metrics]:
        """Add a batch to the buffer and take gradient steps; its rewards are rescaled."""
        if self.critic_of == "parameters":
            with torch.no_grad():
                self.policy[0](batch)  # those that acted, which batches come without
        # The buffer adds entries, which follow the device that the batch names.
        raw = batch.select(*self.loss.in_keys).to(self.buffer.storage.device).copy()
        metrics = self.rescale(batch)
        self.buffer.extend(raw.reshape(-1))
        # Rewards are kept as they came, so that one scale holds for old and new ones.
        scale, shift = self.reward_units(raw)
        for _ in range(self.updates_per_batch):
            part = self.buffer.sample()
            part["next", "reward"] = part["next", "reward"] / scale - shift
            last = self.optimization.step(self.loss(part))
            self.targets.step()
        return self.numbers(metrics | last)

    def scouting(self, num_updates: int) -> int:
        """Return 0: the target networks would keep the old scales."""
        return 0

    def components(self, seed_index: int | None = None) -> dict[str, Any]:
        """Return the components of a learner, the target networks and the buffer."""
        return super().components() | {"loss": self.loss, "buffer": _BufferState(self.buffer)}

    def _average_reward(self, batch: TensorDictBase, reward: Tensor) -> Tensor:
        """The running mean: all transitions of the buffer share it, so it must not jump."""
        return (self.scaler.mean / self.scaler.scale).to(reward.dtype)


class _BufferState:
    """A replay buffer for a checkpoint, empty or not: TorchRL's own saves no empty one."""

    def __init__(self, buffer: TensorDictReplayBuffer) -> None:
        self._buffer = buffer

    def state_dict(self) -> dict[str, Any]:
        """Return the buffer's own state; nothing of an empty one."""
        state = self._buffer.state_dict() if len(self._buffer) else {}
        for _, value in leaves(state):
            value[len(self._buffer) :] = 0.0  # memory that nothing was written to yet
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Fill the buffer again, where it is: a file is read on the CPU."""
        self._buffer.empty()
        if state:
            self._buffer.load_state_dict(moved_to(self._buffer.storage.device, state))


def _shape(critic: nn.Module) -> tuple[list[int], str]:
    """Return the widths of a network's hidden layers, and their activation."""
    modules = list(critic.modules())
    widths = [module.out_features for module in modules if isinstance(module, nn.Linear)][:-1]
    kinds = {type(module) for module in modules}
    return widths, next((name for name, kind in ACTIVATIONS.items() if kind in kinds), "tanh")
