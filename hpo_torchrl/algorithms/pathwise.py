"""Pathwise algorithms: backpropagation through the simulator without a score function."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, set_skip_existing
from torch import Tensor, nn
from torchrl.envs import EnvBase

from hpo_torchrl.algorithms.base import numbers
from hpo_torchrl.algorithms.learner import Learner
from hpo_torchrl.collectors import DifferentiableCollector
from hpo_torchrl.collectors.inputs import check_functional
from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.objectives import PathwiseLoss

# Logit of the option that a rule takes; the others have 0. The rest of the probability, e^-30, is
# below the resolution of float32.
_CERTAIN = 30.0


class PathwiseLearner(Learner):
    """A learner whose whole update is one step down the pathwise loss of each batch."""

    def _prepare(self, critic_coeff: float, temperature: float | None = None) -> None:
        self.collector = DifferentiableCollector(
            self.env,
            self.policy,
            discount=self.discount,
            temperature=temperature,
            **self.collecting,
        )
        check_float("critic_coeff", critic_coeff, minimum=0.0)
        self.loss = PathwiseLoss(
            self.policy, self.critic, entropy_coeff=self.entropy_bonus, critic_coeff=critic_coeff
        )
        self.loss.make_value_estimator(gamma=self.discount, lmbda=self.gae_lambda)

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Do one update; the batch's graph is consumed and its rewards are rescaled."""
        value = self.add_values(batch)
        metrics = self.rescale(batch)
        with set_skip_existing(True):  # the values are there already
            held = self.loss.add_advantage(batch)
        terms, _ = self.loss.evaluate(batch, held, value)
        metrics |= self.step(terms)
        return metrics | numbers(terms)

    def losses(self) -> list[PathwiseLoss]:
        """The one loss."""
        return [self.loss]


class GumbelSoftmax(PathwiseLearner):
    r"""Pathwise gradients through a straight-through Gumbel-softmax (Jang et al. 2017).

    The discrete choice is exact when acting; its gradient is that of its soft weights, see
    :func:`~hpo_torchrl.collectors.straight_through_rollout`, and biased.

    Args:
        env: the training environment, a :class:`DifferentiableEnv`.
        policy: the hybrid policy.
        critic: the value network.
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
        temperature: float = 0.5,
        critic_coeff: float = 1.0,
        **learner,
    ) -> None:
        check_float("temperature", temperature, minimum=0.0, strict=True)
        check_functional("algorithm=gumbel_softmax", env, policy, "choose another algorithm")
        super().__init__(env, policy, critic, **learner)
        self._prepare(critic_coeff, temperature)


class Pathwise(PathwiseLearner):
    """Pathwise gradients with the discrete choice made by a fixed rule.

    The rule is the environment's rule of thumb (:meth:`DifferentiableEnv.heuristic_choice`), or
    always
    the same option. Only the continuous action is learned. With a rule that ignores the state the
    gradient is exact; one that looks at the state hides, like a dropped cross term, what an action
    does to later choices.

    Args:
        env: the training environment.
        policy: the hybrid policy; its discrete net is replaced by the rule.
        critic: the value network.
        option: the option to take always; ``None`` follows the rule of thumb.
        critic_coeff: weight of the critic's loss.
        learner: further arguments, of :class:`Learner`.

    Raises:
        ValueError: an argument is out of range, the policy's heads share their layers, or the
            environment has no rule of thumb.

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
        option: int | None = None,
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
        network.discrete = FixedRule(env, network.num_discrete, option)
        super().__init__(env, policy, critic, **learner)
        self._prepare(critic_coeff)


class FixedRule(nn.Module):
    """Logits of a rule that takes one option for certain, ``(*B, M)``; it has no parameters.

    Args:
        env: the environment whose rule of thumb is followed.
        num_discrete: number M of options.
        option: the option to take always; ``None`` follows the rule of thumb.

    Raises:
        ValueError: there is no such option, or no rule of thumb.
    """

    def __init__(self, env: EnvBase, num_discrete: int, option: int | None = None) -> None:
        super().__init__()
        self.num_discrete, self.option = num_discrete, option
        rule: Any = getattr(env, "heuristic_choice", None)
        known = getattr(rule, "__func__", None) is not DifferentiableEnv.heuristic_choice
        self._rule: Any = rule if known else None
        if option is not None and check_int("option", option, minimum=0) >= num_discrete:
            raise ValueError(
                f"option must be one of the {num_discrete} options 0 to {num_discrete - 1}, got "
                f"{option}."
            )
        if option is None and self._rule is None:
            raise ValueError(
                f"{type(env).__name__} has no heuristic_choice for its discrete choice; give one "
                "option to take always, algorithm.option=0 for example."
            )

    def forward(self, observation: Tensor) -> Tensor:
        """Return the logits of the rule at an observation."""
        if self.option is not None:
            choice = torch.full(observation.shape[:-1], self.option, device=observation.device)
        else:
            choice = self._rule(observation.detach())
        chosen = nn.functional.one_hot(choice, self.num_discrete)
        return _CERTAIN * chosen.to(observation.dtype)
