"""The loss of learned-critic policy gradients: the slopes of a critic instead of a simulator's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.objectives import LossModule, ValueEstimators

from hpo_torchrl.core.categorical import entropy_of
from hpo_torchrl.core.checks import check_bool, check_float, checked
from hpo_torchrl.core.data import entry


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
        centered: take its mean over the batch off the goal :math:`r + \gamma \bar V(s')`. With
            ``gamma=1`` this is relative Q-learning (Abounadi et al. 2001) of differential values:
            what is taken off is the average reward, and the values keep their level.

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

    @checked
    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule,
        *,
        entropy_coeff: float = 0.0,
        gamma: float = 0.99,
        centered: bool = False,
    ) -> None:
        super().__init__()
        if "candidate" not in qvalue_network.in_keys:
            read = qvalue_network.in_keys
            raise ValueError(f"qvalue_network must read 'candidate', an action, got {read}.")
        self.convert_to_functional(actor_network, "actor_network", create_target_params=True)
        self.convert_to_functional(qvalue_network, "qvalue_network", create_target_params=True)
        self.gamma = check_float("gamma", gamma, minimum=0.0, maximum=1.0)
        self.centered = check_bool("centered", centered)
        check_float("entropy_coeff", entropy_coeff, minimum=0.0)
        device = next(qvalue_network.parameters()).device
        self.register_coeff_buffer("entropy_coeff", entropy_coeff, device=device)
        self.out_keys = ["loss_actor", "loss_qvalue", "loss_entropy", "entropy", "td_error"]
        self._set_in_keys()

    def _set_in_keys(self) -> None:
        """Set the entries that the loss reads; TorchRL calls this where keys are renamed."""
        keys = self.tensor_keys
        seen = dict.fromkeys([*self.actor_network.in_keys, *self.qvalue_network.in_keys])
        seen.pop("candidate")
        after = [unravel_key(("next", key)) for key in (*seen, keys.reward, keys.terminated)]
        self.in_keys = [*seen, keys.discrete_action, keys.continuous_action, *after]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the terms on detached transitions of any batch shape; the input is kept."""
        keys, one = self.tensor_keys, type(self).__name__
        discrete, continuous = (
            entry(tensordict, key, one) for key in (keys.discrete_action, keys.continuous_action)
        )
        reward = entry(tensordict, ("next", keys.reward), one, (1,))
        terminated = entry(tensordict, ("next", keys.terminated), one, (1,), torch.bool)
        after = tensordict.get("next")
        with torch.no_grad():
            logits, values = self._branches(after, "target_")
            value = (logits.exp() * values).sum(-1)
            alive = 1.0 - terminated.squeeze(-1).to(value.dtype)
            goal = reward.squeeze(-1) + self.gamma * alive * value
            if self.centered:
                goal = goal - goal.mean()
        taken = self._q(tensordict, continuous)
        taken = taken.gather(-1, discrete.unsqueeze(-1)).squeeze(-1)
        error = taken - goal
        logits, values = self._branches(tensordict)
        probability = logits.exp()
        value = (probability * values).sum(-1)
        entropy = entropy_of(logits)
        # A bonus in standard deviations of the advantage serves every scale of rewards.
        with torch.no_grad():
            spread = (probability * (values - value.unsqueeze(-1)).square()).sum(-1).mean().sqrt()
        return TensorDict(
            {
                "loss_actor": -value.mean(),
                "loss_qvalue": error.pow(2).mean(),
                "loss_entropy": -self.entropy_coeff * spread * entropy.mean(),
                "entropy": entropy.mean().detach(),
                "td_error": error.abs().mean().detach(),
            }
        )

    def _branches(self, tensordict: TensorDictBase, target: str = "") -> tuple[Tensor, Tensor]:
        """Log-probabilities and critic's values of all discrete actions, ``(*B, M)``."""
        actor = self.actor_network
        params = getattr(self, f"{target}actor_network_params")
        with params.to_module(actor, preserve_module_state=False):
            dist = actor.get_dist(tensordict.select(*actor.in_keys))
        # Detached: the critic is taught by its own error alone. The frozen targets' slopes are
        # never asked for.
        values = [
            self._q(tensordict, action, target, detach=True)[..., d]
            for d, action in enumerate(dist.actions().unbind(-2))
        ]
        return dist.logits, torch.stack(values, -1)

    def _q(
        self, tensordict: TensorDictBase, action: Tensor, target: str = "", detach: bool = False
    ) -> Tensor:
        network = self.qvalue_network
        params = getattr(self, f"{target}qvalue_network_params")
        inputs = tensordict.select(*(key for key in network.in_keys if key != "candidate"))
        params = params.detach() if detach else params
        with params.to_module(network, preserve_module_state=False):
            return network(inputs.set("candidate", action)).get("action_value")
