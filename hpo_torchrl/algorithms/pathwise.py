"""Pathwise algorithms: backpropagation through the simulator without a score function."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from hpo_torchrl.algorithms.base import Metrics
from hpo_torchrl.algorithms.fused import FusedLoss, computable
from hpo_torchrl.algorithms.learner import Learner, setting
from hpo_torchrl.collectors.inputs import check_functional
from hpo_torchrl.core import ranks
from hpo_torchrl.core.checks import accepted, check_int
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.objectives import HPOLoss, HybridLossModule

# Logit of the discrete action that a rule takes; the others have 0. The rest of the probability,
# e^-30, is below the resolution of float32.
_CERTAIN = 30.0


@dataclass(kw_only=True, eq=False, repr=False)
class GraphLearner(Learner):
    """A learner whose update is one step down a loss of each batch, with the batch's graph.

    Args:
        loss: loss class, or callable ``(policy, critic, **coefficients)``, see :class:`HPO`; the
            object that it makes takes its place.
        critic_coeff: weight of the critic's loss.
    """

    differentiable = True
    trains_in_ranks = True

    loss: Any = HPOLoss
    critic_coeff: float = setting(1.0)

    fused: Any = field(default=None, init=False)  # computes the loss of a batch by XLA

    def __post_init__(self) -> None:
        super().__post_init__()
        self.build_losses()
        if self.evaluations is not None and computable(self.loss):
            self.fused = FusedLoss(self, self.loss, self.collector.compiled)

    def build_losses(self) -> None:
        """Build the loss of the pathwise terms."""
        self.loss = self.build_loss("critic_coeff", score_function=False)

    def build_loss(self, *names: str, **others: Any) -> LossModule:
        """Build a loss of policy and critic from the coefficients that it takes.

        Args:
            names: settings of this algorithm that are coefficients.
            others: further coefficients.

        Raises:
            ValueError: the loss does not take a setting that was changed from its default.
        """
        known = accepted(self.loss)
        defaults = {own.name: own.default for own in fields(self)}
        for name in names:
            value = getattr(self, name)
            if name not in known and value != defaults[name]:
                raise ValueError(
                    f"The loss {getattr(self.loss, '__name__', self.loss)} takes no {name}, got "
                    f"{name}={value!r}; leave it at {defaults[name]!r}, or let the loss take it."
                )
            others[name] = value
        # functional=False: the nets themselves, so that nothing is swapped in and out.
        others |= {"entropy_coeff": self.entropy_bonus, "functional": False}
        given = {name: value for name, value in others.items() if name in known}
        loss = self.loss(self.policy, self.critic, **given)
        if ranks.active() and not isinstance(loss, HybridLossModule):
            raise ValueError(
                f"The loss {type(loss).__name__} takes means of this rank's data alone; derive it "
                "from HybridLossModule, whose mean and reduce are over all ranks, or train it in "
                "one process."
            )
        if loss.default_value_estimator is not None:
            loss.make_value_estimator(gamma=self.discount, lmbda=self.gae_lambda)
        return loss

    def update(self, batch: TensorDictBase) -> Metrics | list[Metrics]:
        """Do one update; the batch's graph is consumed and its rewards are rescaled."""
        metrics, _ = self.prepare(batch)
        return self.numbers(metrics | self.optimization.step(self.terms(batch)))

    def terms(self, batch: TensorDictBase) -> Any:
        """Return the terms of the loss of a batch, with their graph."""
        return (self.fused or self.loss)(batch)


@dataclass(kw_only=True, eq=False, repr=False)
class GumbelSoftmax(GraphLearner):
    r"""Pathwise gradients through a straight-through Gumbel-softmax (Jang et al. 2017).

    The discrete choice is exact when acting; its gradient is that of its soft weights, see
    :func:`~hpo_torchrl.collectors.straight_through_rollout`, and biased.

    Args:
        env: the training environment, a :class:`DifferentiableEnv`.
        policy: the hybrid policy.
        critic: the value network.
        loss: loss class, or callable ``(policy, critic, **coefficients)``, see :class:`HPO`; the
            coefficients are ``score_function=False``, ``critic_coeff``, ``entropy_coeff`` and
            ``functional``.
        temperature: of the softmax; lower has less bias and more variance.
        critic_coeff: weight of the critic's loss.
        learner: further arguments, of :class:`Learner`.

    Raises:
        TypeError: the environment or policy has no functional core.
        ValueError: an argument is out of range, or the policy does not fit the environment.

    Examples:
        >>> from hpo_torchrl.algorithms import GumbelSoftmax
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy, make_value_network
        >>> env = InventoryEnv(batch_size=16, initial_state="random", seed=0)
        >>> algorithm = GumbelSoftmax(env, HybridPolicy.for_env(env), make_value_network(env))
        >>> "loss_pathwise" in algorithm.iterate()
        True
    """

    temperature: float = setting(0.5, strict=True)

    def __post_init__(self) -> None:
        check_functional(
            "algorithm=gumbel_softmax", self.env, self.policy, "choose another algorithm"
        )
        super().__post_init__()


@dataclass(kw_only=True, eq=False, repr=False)
class Pathwise(GraphLearner):
    """Pathwise gradients with the discrete choice made by a fixed rule.

    The rule is the environment's heuristic (:meth:`DifferentiableEnv.heuristic_choice`), or always
    the same discrete action. Only the continuous action is learned. With a rule that ignores the
    state the gradient is exact; one that looks at the state hides, like a dropped cross term, what
    an action does to later choices.

    Args:
        env: the training environment.
        policy: the hybrid policy; its discrete net is replaced by the rule.
        critic: the value network.
        loss: see :class:`GumbelSoftmax`.
        discrete_action: the one to take always; ``None`` follows the environment's heuristic.
        critic_coeff: weight of the critic's loss.
        learner: further arguments, of :class:`Learner`.

    Raises:
        ValueError: an argument is out of range, the policy's heads share their layers, or the
            environment has no heuristic.

    Examples:
        >>> from hpo_torchrl.algorithms import Pathwise
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy, make_value_network
        >>> env = InventoryEnv(batch_size=16, initial_state="random", seed=0)
        >>> algorithm = Pathwise(env, HybridPolicy.for_env(env), make_value_network(env))
        >>> "loss_pathwise" in algorithm.iterate()
        True
    """

    discrete_action: int | None = None

    def __post_init__(self) -> None:
        network: Any = self.policy.network
        if not isinstance(getattr(network, "trunk", None), nn.Identity):
            raise ValueError(
                "algorithm=pathwise replaces the discrete net by a rule that reads the "
                "observation, and needs a HybridNetwork without a shared trunk; set "
                "policy.shared_trunk=false."
            )
        if getattr(self.env, "num_heads", None) is not None:
            raise ValueError(
                "algorithm=pathwise needs a single discrete choice for its rule, but the "
                f"environment has {self.env.num_heads} heads; use algorithm=hpo."
            )
        network.discrete = _FixedRule(self._rule(network.num_discrete), network.num_discrete)
        super().__post_init__()

    def _rule(self, number: int) -> Any:
        """Return the rule: from an observation to the discrete action, or always the same one."""
        if self.discrete_action is not None:
            if check_int("discrete_action", self.discrete_action, minimum=0) >= number:
                raise ValueError(
                    f"discrete_action must be one of the {number} discrete actions 0 to "
                    f"{number - 1}, got {self.discrete_action}."
                )
            return self.discrete_action
        rule: Any = getattr(self.env, "heuristic_choice", None)
        if getattr(rule, "__func__", None) in (None, DifferentiableEnv.heuristic_choice):
            raise ValueError(
                f"{type(self.env).__name__} has no heuristic_choice for its discrete choice; give "
                "one discrete action to take always, algorithm.discrete_action=0 for example."
            )
        return rule


class _FixedRule(nn.Module):
    """Logits of a rule that takes one discrete action for certain, ``(*B, M)``; no parameters."""

    def __init__(self, rule: Any, num_discrete: int) -> None:
        super().__init__()
        self.rule, self.num_discrete = rule, num_discrete

    def forward(self, observation: Tensor) -> Tensor:
        choice = self.rule(observation.detach()) if callable(self.rule) else self.rule
        choice = torch.as_tensor(choice, device=observation.device)
        chosen = nn.functional.one_hot(choice, self.num_discrete).to(observation.dtype)
        return _CERTAIN * chosen.expand(*observation.shape[:-1], -1)
