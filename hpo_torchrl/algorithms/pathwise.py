"""Pathwise algorithms: backpropagation through the simulator without a score function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.objectives import LossModule

from hpo_torchrl.algorithms.base import Metrics, build_loss
from hpo_torchrl.algorithms.learner import Learner
from hpo_torchrl.collectors.inputs import check_functional
from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.objectives import HPOLoss

# Logit of the discrete action that a rule takes; the others have 0. The rest of the probability,
# e^-30, is below the resolution of float32.
_CERTAIN = 30.0


class _PathwiseLearner(Learner):
    """A learner whose whole update is one step down the pathwise loss of each batch."""

    differentiable = True
    loss: LossModule

    def _prepare(self, loss: Callable[..., LossModule], critic_coeff: float) -> None:
        check_float("critic_coeff", critic_coeff, minimum=0.0)
        self.loss = build_loss(
            self,
            loss,
            {"critic_coeff": critic_coeff},
            score_function=False,
            entropy_coeff=self.entropy_bonus,
            functional=False,
        )

    def update(self, batch: TensorDictBase) -> Metrics | list[Metrics]:
        """Do one update; the batch's graph is consumed and its rewards are rescaled."""
        self.add_values(batch)
        metrics = self.rescale(batch)
        self.add_advantages(batch)
        terms = self.loss(batch)
        return self.numbers(metrics | self.optimization.step(terms) | dict(terms.items()))

    def losses(self) -> list[LossModule]:
        """The one loss."""
        return [self.loss]


class GumbelSoftmax(_PathwiseLearner):
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

    def __init__(
        self,
        env: EnvBase,
        policy: HybridPolicy,
        critic: TensorDictModule,
        *,
        loss: Callable[..., LossModule] = HPOLoss,
        temperature: float = 0.5,
        critic_coeff: float = 1.0,
        **learner,
    ) -> None:
        self.temperature = check_float("temperature", temperature, minimum=0.0, strict=True)
        check_functional("algorithm=gumbel_softmax", env, policy, "choose another algorithm")
        super().__init__(env, policy, critic, **learner)
        self._prepare(loss, critic_coeff)


class Pathwise(_PathwiseLearner):
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

    def __init__(
        self,
        env: EnvBase,
        policy: HybridPolicy,
        critic: TensorDictModule,
        *,
        loss: Callable[..., LossModule] = HPOLoss,
        discrete_action: int | None = None,
        critic_coeff: float = 1.0,
        **learner,
    ) -> None:
        network: Any = policy.network
        if not isinstance(getattr(network, "trunk", None), nn.Identity):
            raise ValueError(
                "algorithm=pathwise replaces the discrete net by a rule that reads the "
                "observation, and needs a HybridNetwork without a shared trunk; set "
                "policy.shared_trunk=false."
            )
        if getattr(env, "num_heads", None) is not None:
            raise ValueError(
                "algorithm=pathwise needs a single discrete choice for its rule, but the "
                f"environment has {env.num_heads} heads; use algorithm=hpo."
            )
        network.discrete = FixedRule(env, network.num_discrete, discrete_action)
        super().__init__(env, policy, critic, **learner)
        self._prepare(loss, critic_coeff)


class FixedRule(nn.Module):
    """Logits of a rule that takes one discrete action for certain, ``(*B, M)``; no parameters.

    Args:
        env: the environment whose heuristic is followed.
        num_discrete: number M of discrete actions.
        discrete_action: the one to take always; ``None`` follows the heuristic.

    Raises:
        ValueError: there is no such discrete action, or no heuristic.
    """

    def __init__(self, env: EnvBase, num_discrete: int, discrete_action: int | None = None) -> None:
        super().__init__()
        self.num_discrete, self.discrete_action = num_discrete, discrete_action
        rule: Any = getattr(env, "heuristic_choice", None)
        known = getattr(rule, "__func__", None) is not DifferentiableEnv.heuristic_choice
        self._rule: Any = rule if known else None
        if discrete_action is not None:
            if check_int("discrete_action", discrete_action, minimum=0) >= num_discrete:
                raise ValueError(
                    f"discrete_action must be one of the {num_discrete} discrete actions 0 to "
                    f"{num_discrete - 1}, got {discrete_action}."
                )
        elif self._rule is None:
            raise ValueError(
                f"{type(env).__name__} has no heuristic_choice for its discrete choice; give one "
                "discrete action to take always, algorithm.discrete_action=0 for example."
            )

    def forward(self, observation: Tensor) -> Tensor:
        """Return the logits of the rule at an observation."""
        if self.discrete_action is None:
            choice = self._rule(observation.detach())
        else:
            choice = torch.full(
                observation.shape[:-1], self.discrete_action, device=observation.device
            )
        chosen = nn.functional.one_hot(choice, self.num_discrete)
        return _CERTAIN * chosen.to(observation.dtype)
