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
from hpo_torchrl.objectives.advantages import check_actor


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

    A critic :math:`Q(s, \theta)` of the policy's *distribution* takes the parameters
    :math:`\theta` (probabilities of d, means and standard deviations of u) for the action, as DA-AC
    does (He, Mahmood and White 2026, "Distributions as actions", ICLR, arXiv 2506.16608; without
    the twin critics that it has from TD3). Then :math:`V(s) = Q(s, \theta(s))`, and Q is taught at
    a random point between the parameters that acted and those that would have taken the same action
    for certain, where both have the goal:

    .. math::
        L_Q = \bigl(r + \gamma\, \bar V(s') - Q(s, w\,\theta + (1 - w)\,\delta_{d, u})\bigr)^2,
        \qquad w \sim U(0, 1)

    Args:
        actor_network: a :class:`HybridPolicy`.
        qvalue_network: reads the observation and ``"candidate"``, a continuous action ``(*B, n)``,
            and writes ``"action_value"``, ``(*B, M)``; or reads ``"parameters"`` in its place,
            those of a distribution (:func:`distribution_parameters`), and writes ``(*B, 1)``.
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
        logits: NestedKey = "logits"
        loc: NestedKey = "loc"
        scale: NestedKey = "scale"
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
        check_actor(actor_network, type(self).__name__)
        read = qvalue_network.in_keys
        judged = [key for key in ("candidate", "parameters") if key in read]
        if len(judged) != 1:
            raise ValueError(
                "qvalue_network must read 'candidate', an action, or 'parameters', those of a "
                f"distribution; got {read}."
            )
        self.judged = judged[0]
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
        seen.pop(self.judged)
        after = [unravel_key(("next", key)) for key in (*seen, keys.reward, keys.terminated)]
        acted = [keys.discrete_action, keys.continuous_action]
        if self.judged == "parameters":
            acted += [keys.logits, keys.loc, keys.scale]
        self.in_keys = [*seen, *acted, *after]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the terms on detached transitions of any batch shape; the input is kept."""
        keys, one = self.tensor_keys, type(self).__name__
        reward = entry(tensordict, ("next", keys.reward), one, (1,))
        terminated = entry(tensordict, ("next", keys.terminated), one, (1,), torch.bool)
        after = tensordict.get("next")
        with torch.no_grad():
            _, value, _ = self._judge(after, "target_")
            alive = 1.0 - terminated.squeeze(-1).to(value.dtype)
            goal = reward.squeeze(-1) + self.gamma * alive * value
            if self.centered:
                goal = goal - goal.mean()
        error = self._taken(tensordict) - goal
        logits, value, values = self._judge(tensordict)
        entropy = entropy_of(logits)
        # A bonus in standard deviations of the advantage serves every scale of rewards.
        with torch.no_grad():
            off = (values - (logits.exp() * values).sum(-1, keepdim=True)).square()
            spread = (logits.exp() * off).sum(-1).mean().sqrt()
        return TensorDict(
            {
                "loss_actor": -value.mean(),
                "loss_qvalue": error.pow(2).mean(),
                "loss_entropy": -self.entropy_coeff * spread * entropy.mean(),
                "entropy": entropy.mean().detach(),
                "td_error": error.abs().mean().detach(),
            }
        )

    def _judge(self, tensordict: TensorDictBase, target: str = "") -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities ``(*B, M)``, V ``(*B,)``, and the values of all discrete actions."""
        actor = self.actor_network
        params = getattr(self, f"{target}actor_network_params")
        with params.to_module(actor, preserve_module_state=False):
            dist = actor.get_dist(tensordict.select(*actor.in_keys))

        # Detached: the critic is taught by its own error alone. The frozen targets' slopes are
        # never asked for.
        def value_of(judged: Tensor) -> Tensor:
            return self._q(tensordict, judged, target, detach=True)

        probability = dist.logits.exp()
        if self.judged == "candidate":
            found = [value_of(one)[..., d] for d, one in enumerate(dist.actions().unbind(-2))]
            values = torch.stack(found, -1)
            return dist.logits, (probability * values).sum(-1), values
        value = value_of(distribution_parameters(probability, dist.loc, dist.scale))
        with torch.no_grad():
            certain = torch.eye(dist.num_discrete).to(probability).expand(*probability.shape, -1)
            found = [
                value_of(distribution_parameters(one, dist.loc, dist.scale))
                for one in certain.unbind(-2)
            ]
        return dist.logits, value.squeeze(-1), torch.cat(found, -1)

    def _taken(self, tensordict: TensorDictBase) -> Tensor:
        """Return the critic's value of what was done, ``(*B,)``."""
        keys, one = self.tensor_keys, type(self).__name__
        discrete, continuous = (
            entry(tensordict, key, one) for key in (keys.discrete_action, keys.continuous_action)
        )
        if self.judged == "candidate":
            values = self._q(tensordict, continuous)
            return values.gather(-1, discrete.unsqueeze(-1)).squeeze(-1)
        logits, loc, scale = (
            entry(tensordict, key, one) for key in (keys.logits, keys.loc, keys.scale)
        )
        probability = logits.softmax(-1)
        chosen = torch.nn.functional.one_hot(discrete, logits.shape[-1]).to(loc)
        branch = chosen.unsqueeze(-1)
        sure = torch.lerp(loc, continuous.unsqueeze(-2), branch), scale * (1.0 - branch)
        certain = distribution_parameters(chosen, *sure)
        acted = distribution_parameters(probability, loc, scale)
        between = torch.lerp(acted, certain, torch.rand_like(acted[..., :1]))
        return self._q(tensordict, between).squeeze(-1)

    def _q(
        self, tensordict: TensorDictBase, judged: Tensor, target: str = "", detach: bool = False
    ) -> Tensor:
        network = self.qvalue_network
        params = getattr(self, f"{target}qvalue_network_params")
        inputs = tensordict.select(*(key for key in network.in_keys if key != self.judged))
        params = params.detach() if detach else params
        with params.to_module(network, preserve_module_state=False):
            return network(inputs.set(self.judged, judged)).get("action_value")


def distribution_parameters(probability: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Return the parameters of a hybrid distribution as one vector, ``(*B, M + 2 M n)``.

    Args:
        probability: of the discrete actions, ``(*B, M)``.
        loc: means of u, ``(*B, M, n)``.
        scale: their standard deviations, likewise.
    """
    return torch.cat([probability, loc.flatten(-2), scale.flatten(-2)], -1)
