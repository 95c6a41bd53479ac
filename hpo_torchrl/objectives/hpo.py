"""The loss of Hybrid Policy Optimization."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from hpo_torchrl.core.categorical import over_heads
from hpo_torchrl.core.checks import check_bool
from hpo_torchrl.objectives.cross_weight import CrossTermWeight
from hpo_torchrl.objectives.pathwise import PathwiseLoss

CROSS_TERMS = {True: "on", False: "off"} | {name: name for name in ("on", "off", "adaptive")}


class HPOLoss(PathwiseLoss):
    r"""Mixed-gradient loss for hybrid actions, on differentiable rollouts.

    With the sampled options and all noise held fixed, rewards and states are differentiable
    functions of the parameters. The gradient of this loss estimates minus the policy gradient,

    .. math::
        \nabla J = \mathbb E \Big[
        &\underbrace{\textstyle\sum_t \tfrac{dr_t}{d\psi}}_{\text{pathwise}}
        + \underbrace{\textstyle\sum_t A_t\,
            \partial_\theta \log \pi_\theta(d_t | s_t)}_{\text{score function}} \\
        + &\underbrace{\textstyle\sum_t A_t\,
            \partial_s \log \pi_\theta(d_t | s_t)\, \tfrac{ds_t}{d\psi}}_{\text{cross}} \Big]

    divided by the number of steps (Alvo, Russo & Kanoria 2026, arXiv 2605.14297). It is the
    autograd gradient of one surrogate, :math:`-[r_t + \log\pi_\theta(d_t|s_t)\,\mathrm{sg}(A_t)]`
    with the state attached: detaching it inside the log-probability drops the cross term. Pathwise
    and cross terms meet in the same parameters, so both use rewards on one scale: rescale the
    rewards of the batch, never the advantages.

    *Exact mode*, unbiased for the undiscounted sum of a finite horizon: ``clip_epsilon=None`` and
    either no critic (Monte-Carlo returns) or ``make_value_estimator(gamma=1, lmbda=1)``.

    Where the batch holds ``"action_value"``, an estimate of Q for every option ``(*B, T, M)``
    (:func:`~hpo_torchrl.collectors.branched_returns`), score function and cross term are taken in
    expectation over the options instead of at the sampled one; clipping does not apply to it.

    Where a window ends in a state that is not terminal, the pathwise term goes on with the
    critic's value of that state, differentiated through the state with the critic's parameters
    held (Xu et al. 2022, SHAC).

    Args:
        actor_network: a :class:`HybridPolicy`, or any module whose ``get_dist`` returns a
            :class:`HybridDistribution`.
        critic_network: maps the observation to ``"state_value"``; ``None`` uses Monte-Carlo
            returns without a baseline.
        pathwise: whether to compute the pathwise term; without it the data may be detached.
        cross_term: ``True`` (or ``"on"``): the cross term is in ``loss_objective``. ``False``
            (``"off"``): without it the gradient is biased, with less variance. ``"adaptive"``:
            weighted by its signal and noise, see :class:`CrossTermWeight`; this backpropagates
            twice more through the rollout.
        baseline: without a critic, what is taken off the returns; see :class:`HybridLossModule`.
        clip_epsilon: clipping range of the ratio of discrete probabilities; ``None`` uses the
            log-probability itself.
        entropy_coeff: weight of the entropy of the discrete choice; ``None`` drops the term.
        entropy_in_advantage_units: multiply that weight by the batch's standard deviation of the
            advantage, so that one setting serves every reward scale.
        critic_coeff: weight of the critic's loss; ``None`` drops the term.
        loss_critic_type: ``"l2"``, ``"l1"`` or ``"smooth_l1"``.
        functional: whether parameters are held as a ``TensorDictParams`` (TorchRL's default);
            ``False`` keeps ordinary modules, for data-parallel wrappers.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        device: device of the coefficients; defaults to the actor's.

    Returns:
        Tensordict with ``loss_pathwise``, ``loss_objective`` (score function, and cross term),
        ``loss_critic``, ``loss_entropy``, to be summed, and the detached diagnostics ``entropy``,
        ``kl_approx``, ``clip_fraction`` and ``explained_variance``. Terms that were not asked for
        are absent.

    Raises:
        RuntimeError: the pathwise term is asked for and the rewards carry no gradient.
        KeyError: an entry is missing.
        ValueError: an argument is out of range or unknown.

    Examples:
        >>> from hpo_torchrl.collectors import differentiable_rollout
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy, make_value_network
        >>> from hpo_torchrl.objectives import HPOLoss
        >>> env = InventoryEnv(batch_size=8, initial_state="random")
        >>> policy, critic = HybridPolicy.for_env(env), make_value_network(env)
        >>> loss = HPOLoss(policy, critic)
        >>> _ = loss.make_value_estimator(gamma=0.99, lmbda=0.95)
        >>> terms = loss(differentiable_rollout(env, policy, 10, discount=0.99))
        >>> sum(value for key, value in terms.items() if key.startswith("loss_")).backward()
    """

    _schedulable_buffers = frozenset({"entropy_coeff", "critic_coeff", "clip_epsilon"})

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModule | None = None,
        *,
        pathwise: bool = True,
        cross_term: bool | str = True,
        baseline: str | None = None,
        clip_epsilon: float | None = 0.2,
        entropy_coeff: float | None = 0.0,
        entropy_in_advantage_units: bool = True,
        critic_coeff: float | None = 1.0,
        loss_critic_type: str = "l2",
        functional: bool = True,
        reduction: str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            actor_network,
            critic_network,
            entropy_coeff=entropy_coeff,
            entropy_in_advantage_units=entropy_in_advantage_units,
            critic_coeff=critic_coeff,
            loss_critic_type=loss_critic_type,
            baseline=baseline,
            functional=functional,
            reduction=reduction,
            device=device,
        )
        self.pathwise = check_bool("pathwise", pathwise)
        self.cross_term = check_cross_term(cross_term)
        if device is None:
            device = next((parameter.device for parameter in actor_network.parameters()), None)
        adaptive = self.cross_term == "adaptive"
        self.cross_term_weight = CrossTermWeight().to(device) if adaptive else None
        self._coefficient("clip_epsilon", clip_epsilon, device, strict=True)

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries that the loss returns: the terms, then the diagnostics."""
        if not self._out_keys:
            clipped, critic = self.clip_epsilon is not None, self.critic_coeff is not None
            self._out_keys = [
                *(["loss_pathwise"] if self.pathwise else []),
                "loss_objective",
                *(["loss_critic"] if critic else []),
                *(["loss_entropy"] if self.entropy_coeff is not None else []),
                *("entropy", "kl_approx"),
                *(["cross_term_weight"] if self.cross_term == "adaptive" else []),
                *(["clip_fraction"] if clipped else []),
                *(["explained_variance"] if critic else []),
            ]
        return self._out_keys

    @out_keys.setter
    def out_keys(self, value: list[NestedKey]) -> None:
        self._out_keys = value

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the terms of the mixed gradient; the input is not changed.

        Args:
            tensordict: a differentiable rollout of shape ``(*B, T)``; without the pathwise term,
                detached data of any shape that holds advantages.
        """
        return self.evaluate(tensordict, self.add_advantage(tensordict))[0]

    def evaluate(
        self, tensordict: TensorDictBase, held: TensorDictBase, value: Tensor | None = None
    ) -> tuple[TensorDict, Tensor]:
        """See :meth:`PathwiseLoss.evaluate`."""
        keys = self.tensor_keys
        advantage = held.get(keys.advantage).squeeze(-1)
        discrete = self.entry(held, keys.discrete_action)
        terms: dict[str, Tensor] = {}
        if self.pathwise:
            terms["loss_pathwise"] = -self._pathwise(tensordict)

        # The cross term is the dependence of the log-probabilities on the state: attached or not.
        attached = self.cross_term == "on"
        logits = self._logits(tensordict if attached else held)
        action_value = held.get(keys.action_value, None)
        if self.cross_term == "adaptive":
            logits = self._add_weighted_cross(logits, tensordict, held, action_value)
        log_prob = over_heads(logits.gather(-1, discrete.unsqueeze(-1)).squeeze(-1), advantage.ndim)
        old = held.get(keys.sample_log_prob, None)
        log_ratio = log_prob - (log_prob.detach() if old is None else old)
        if action_value is None:
            objective = self._score_function(log_prob, log_ratio, advantage)
        else:
            objective = _expectation(logits, action_value)
        terms["loss_objective"] = -objective
        notes = {"kl_approx": -self._mean(log_ratio, held)}
        if self.cross_term_weight is not None:
            notes["cross_term_weight"] = self.cross_term_weight.weight
        if self.clip_epsilon is not None:
            beyond = (log_ratio.exp() - 1.0).abs() > self.clip_epsilon
            notes["clip_fraction"] = self._mean(beyond.to(log_ratio.dtype), held)

        # The bonus is for exploring here, not for steering towards states of high entropy.
        if self.cross_term != "off" and self.entropy_coeff is not None:
            logits = self._logits(held)
        return self._finish(terms, notes, held, logits, value), logits

    def _add_weighted_cross(
        self,
        logits: Tensor,
        tensordict: TensorDictBase,
        held: TensorDictBase,
        action_value: Tensor | None,
    ) -> Tensor:
        """The log-probabilities with a weighted gradient through the state, values unchanged."""
        weight: Any = self.cross_term_weight
        through_state = self._logits(tensordict, held=True)
        if through_state.requires_grad:
            if action_value is None:
                discrete = self.entry(held, self.tensor_keys.discrete_action).unsqueeze(-1)
                advantage = held.get(self.tensor_keys.advantage).squeeze(-1)
                chosen = through_state.gather(-1, discrete).squeeze(-1)
                cross = over_heads(chosen, advantage.ndim) * advantage
            else:
                cross = _expectation(through_state, action_value)
            weight.observe(cross, [p for p in self._actor_parameters() if p.requires_grad])
        return logits + weight.weight.to(logits.dtype) * (through_state - through_state.detach())

    def _score_function(self, log_prob: Tensor, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """Each step's log-probability times advantage, or its clipped surrogate: ``(*B, T)``."""
        if self.clip_epsilon is None:
            return log_prob * advantage
        ratio = log_ratio.exp()
        within = ratio.clamp(1.0 - self.clip_epsilon, 1.0 + self.clip_epsilon)
        return torch.minimum(ratio * advantage, within * advantage)


def _expectation(logits: Tensor, action_value: Tensor) -> Tensor:
    """Advantage expected over the options, ``(*B, T)``; its gradient needs no sampled option."""
    # What an option that may not be chosen would lead to need not make sense.
    action_value = action_value.masked_fill(logits.isneginf(), 0.0)
    probability = logits.exp()
    value = (probability.detach() * action_value).sum(-1, keepdim=True)
    return (probability * (action_value - value)).sum(-1)


def check_cross_term(value: bool | str) -> str:
    """Return ``"on"``, ``"off"`` or ``"adaptive"``.

    Raises:
        ValueError: it is none of these, nor ``True`` or ``False``.
    """
    if not isinstance(value, (bool, str)) or value not in CROSS_TERMS:
        raise ValueError(f"cross_term must be true, false or 'adaptive', got {value!r}.")
    return CROSS_TERMS[value]
