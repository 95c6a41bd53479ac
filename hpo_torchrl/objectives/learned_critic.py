"""The loss of learned-critic policy gradients: the slopes of a critic instead of a simulator's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule, ValueEstimators

from hpo_torchrl.core.categorical import entropy_of
from hpo_torchrl.core.checks import check_float


class LearnedCriticLoss(LossModule):
    r"""Deterministic policy gradients (Lillicrap et al. 2016, DDPG) for hybrid actions.

    The critic Q(s, u) answers with one value per discrete action. With
    :math:`V(s) = \sum_d \pi(d|s)\, Q_d(s, u_d(s))`, where :math:`u_d` is the mode of branch d,

    .. math::
        L_Q = \bigl(r + \gamma\, \bar V(s') - Q_d(s, u)\bigr)^2, \qquad
        L_\pi = -V(s) - c\, H(\pi(\cdot | s))

    with :math:`\bar V` from target networks, and Q's parameters detached in :math:`L_\pi`. As the
    sum over d is taken exactly, no score function is needed: the discrete choice follows the
    critic's values, the continuous action their slopes.

    Args:
        actor_network: a :class:`HybridPolicy`.
        qvalue_network: reads the observation and ``"candidate"``, a continuous action ``(*B, n)``,
            and writes ``"action_value"``, ``(*B, M)``.
        entropy_coeff: weight c of the entropy of the discrete choice, in standard deviations of
            the advantage Q - V under the policy.
        gamma: discount.

    Returns:
        Tensordict with ``loss_actor``, ``loss_qvalue``, ``loss_entropy``, to be summed, and the
        detached diagnostics ``entropy`` and ``td_error``.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import torch
        >>> from torchrl.objectives import SoftUpdate
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy, make_q_network
        >>> from hpo_torchrl.objectives import LearnedCriticLoss
        >>> env = InventoryEnv(batch_size=8, initial_state="random")
        >>> policy = HybridPolicy.for_env(env)
        >>> loss = LearnedCriticLoss(policy, make_q_network(env), gamma=0.99)
        >>> targets = SoftUpdate(loss, eps=0.99)
        >>> with torch.no_grad():
        ...     batch = env.rollout(5, policy).reshape(-1)
        >>> sorted(key for key in loss(batch).keys() if key.startswith("loss_"))
        ['loss_actor', 'loss_entropy', 'loss_qvalue']
    """

    @dataclass
    class _AcceptedKeys:
        """The configurable entries of the input, with their defaults."""

        discrete_action: NestedKey = ("action", "discrete")
        continuous_action: NestedKey = ("action", "continuous")
        reward: NestedKey = "reward"
        terminated: NestedKey = "terminated"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    _schedulable_buffers = frozenset({"entropy_coeff"})

    actor_network: ProbabilisticTensorDictSequential
    qvalue_network: TensorDictModule
    actor_network_params: TensorDictParams
    qvalue_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule,
        *,
        entropy_coeff: float = 0.0,
        gamma: float = 0.99,
    ) -> None:
        super().__init__()
        self.convert_to_functional(actor_network, "actor_network", create_target_params=True)
        self.convert_to_functional(qvalue_network, "qvalue_network", create_target_params=True)
        self.gamma = check_float("gamma", gamma, minimum=0.0, maximum=1.0)
        check_float("entropy_coeff", entropy_coeff, minimum=0.0)
        device = next(qvalue_network.parameters()).device
        self.register_coeff_buffer("entropy_coeff", entropy_coeff, device=device)
        self.out_keys = ["loss_actor", "loss_qvalue", "loss_entropy", "entropy", "td_error"]

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that the loss reads."""
        keys = self.tensor_keys
        seen = [*self.actor_network.in_keys, *self.qvalue_network.in_keys]
        seen = [key for key in dict.fromkeys(seen) if key != "candidate"]
        after = [*seen, keys.reward, keys.terminated]
        return [
            *seen,
            keys.discrete_action,
            keys.continuous_action,
            *(("next", key) if isinstance(key, str) else ("next", *key) for key in after),
        ]

    def _forward_value_estimator_keys(self, **kwargs) -> None:
        """No value estimator is used: the target is one step of the critic's own."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the terms on detached transitions of any batch shape; the input is kept."""
        keys = self.tensor_keys
        after = tensordict.get("next")
        with torch.no_grad():
            logits, values = self._branches(after, target=True)
            value = (logits.exp() * values).sum(-1)
            alive = 1.0 - after.get(keys.terminated).squeeze(-1).to(value.dtype)
            goal = after.get(keys.reward).squeeze(-1) + self.gamma * alive * value
        params = self.qvalue_network_params
        taken = self._q(tensordict, tensordict.get(keys.continuous_action), params)
        taken = taken.gather(-1, tensordict.get(keys.discrete_action).unsqueeze(-1)).squeeze(-1)
        error = taken - goal
        logits, values = self._branches(tensordict, target=False)
        probability = logits.exp()
        entropy = entropy_of(logits)
        # A bonus in standard deviations of the advantage serves every scale of rewards.
        with torch.no_grad():
            spread = values - (probability * values).sum(-1, keepdim=True)
            unit = (probability * spread.square()).sum(-1).mean().sqrt()
        return TensorDict(
            {
                "loss_actor": -(probability * values).sum(-1).mean(),
                "loss_qvalue": error.pow(2).mean(),
                "loss_entropy": -self.entropy_coeff * unit * entropy.mean(),
                "entropy": entropy.mean().detach(),
                "td_error": error.abs().mean().detach(),
            }
        )

    def _branches(self, tensordict: TensorDictBase, *, target: bool) -> tuple[Tensor, Tensor]:
        """Log-probabilities and critic's values of all discrete actions, ``(*B, M)``."""
        actor = self.target_actor_network_params if target else self.actor_network_params
        with actor.to_module(self.actor_network, preserve_module_state=False):
            dist = self.actor_network.get_dist(tensordict.select(*self.actor_network.in_keys))
        # Detached here: the critic is taught by its own error alone. The frozen targets' slopes are
        # never asked for.
        critic = self.target_qvalue_network_params if target else self.qvalue_network_params
        critic = critic.detach()
        actions = dist.actions()
        values = [
            self._q(tensordict, actions[..., d, :], critic)[..., d]
            for d in range(dist.num_discrete)
        ]
        return dist.logits, torch.stack(values, -1)

    def _q(self, tensordict: TensorDictBase, u: Tensor, params: TensorDictParams) -> Tensor:
        network = self.qvalue_network
        inputs = tensordict.select(*(key for key in network.in_keys if key != "candidate"))
        with params.to_module(network, preserve_module_state=False):
            return network(inputs.set("candidate", u)).get("action_value")
