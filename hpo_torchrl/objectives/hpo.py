"""The loss of Hybrid Policy Optimization: pathwise, score-function and cross term."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from torch import Tensor

from hpo_torchrl.core.categorical import insert_like, over_heads, unsqueeze_like
from hpo_torchrl.core.checks import check_bool, check_float
from hpo_torchrl.core.finite import vmapped
from hpo_torchrl.objectives.base import HybridLossModule, anywhere, ends_of, values_where
from hpo_torchrl.objectives.cross_term import CrossTermWeight

_NO_GRADIENT = (
    "The rewards {key!r} carry no gradient, so there is no pathwise term. Usual causes: the batch "
    "was collected under torch.no_grad() (TorchRL collectors do; use differentiable_rollout or "
    "DifferentiableCollector); it was detached or went through a replay buffer; the policy sampled "
    "its continuous action without reparameterisation (stock CompositeDistribution policies do; "
    "use HybridPolicy); the environment's step breaks the graph (.detach(), .item(), numpy, a "
    "process of its own). For "
    "detached data, ask for no pathwise term: HPOLoss(..., pathwise=False, cross_term=False)."
)

# Where a hybrid policy of a HybridNetwork holds temperature and preference.
_NETWORK = ("module", "0", "network")


class HPOLoss(HybridLossModule):
    r"""Mixed-gradient loss for hybrid actions, on differentiable rollouts.

    With the sampled discrete actions and all noise held fixed, rewards and states are
    differentiable functions of the parameters. The gradient of this loss estimates minus the policy
    gradient,

    .. math::
        \nabla J = \mathbb E \Big[
        &\underbrace{\textstyle\sum_t \tfrac{dr_t}{d\psi}}_{\text{pathwise}}
        + \underbrace{\textstyle\sum_t A_t\,
            \partial_\theta \log \pi_\theta(d_t | s_t)}_{\text{score function}} \\
        + &\underbrace{\textstyle\sum_t A_t\,
            \partial_s \log \pi_\theta(d_t | s_t)\, \tfrac{ds_t}{d\psi}}_{\text{cross}} \Big]

    divided by the number of steps (Alvo, Russo & Kanoria 2026, arXiv 2605.14297). Each term has a
    method of its name: :meth:`pathwise_term`, :meth:`score_function_term` and :meth:`cross_term`.
    Pathwise and cross terms meet in the same parameters, so both use rewards on one scale: rescale
    the rewards of the batch, never the advantages.

    A rollout serves once, for one backward pass; further epochs on its data take a second loss with
    ``pathwise=False, cross_term=False``. Its transitions and the advantages must have the same
    discount: ``gamma`` is the rollout's unless :meth:`make_value_estimator` has chosen it.

    *Exact mode*, unbiased for the undiscounted sum of a finite horizon: ``clip_epsilon=None`` and
    either no critic (Monte-Carlo returns) or ``make_value_estimator(gamma=1, lmbda=1)``.

    Where the batch holds ``"action_value"``, an estimate of Q for every discrete action
    ``(*B, T, M)``, with heads ``(*B, T, H, M)`` beside what the other heads took
    (:func:`~hpo_torchrl.collectors.branched_returns`), score function and cross term are
    expectations over the discrete actions (of each head) instead of samples at the one taken;
    clipping does not apply to them. The unit of the entropy bonus is then the geometric mean of the
    differences between the best discrete action (of a head) and the second. The score function
    takes them in units of ``"action_unit"``, if the batch holds it; the cross term does not, and
    samples where a single choice was not tried.

    ``HPOLoss(policy, critic, score_function=False)`` is plain backpropagation through the
    simulator. The rollout then decides what becomes of the discrete choice: in a
    :func:`~hpo_torchrl.collectors.differentiable_rollout` no gradient reaches it, and the gradient
    is biased wherever the continuous actions change what it will choose; in a
    :func:`~hpo_torchrl.collectors.straight_through_rollout` the straight-through estimate does.

    Args:
        actor_network: a :class:`HybridPolicy`, or any module whose ``get_dist`` returns a
            :class:`HybridDistribution`.
        critic_network: maps the observation to ``"state_value"``; ``None`` uses Monte-Carlo
            returns without a baseline, and no value beyond the end of the data.
        pathwise: whether to compute the pathwise term; without it the data may be detached.
        score_function: whether the discrete choice is scored; ``False`` drops the score-function
            and the cross term.
        cross_term: ``True`` adds the cross term to ``loss_objective``. ``False`` leaves it out: the
            gradient is biased, with less variance. ``"adaptive"`` weights it by its signal and
            noise, see :class:`CrossTermWeight`; this backpropagates twice more through the rollout.
        clip_epsilon: clipping range of the ratio of discrete probabilities; ``None`` uses the
            log-probability itself.
        advantage_limit: in entropy bonuses, what the advantages of tried discrete actions are
            cut at in the score function: whatever is so much better or worse is certain to be
            chosen or left, and would drown what is not.
        shared: further arguments, of :class:`HybridLossModule`: ``entropy_coeff``,
            ``entropy_in_advantage_units``, ``critic_coeff``, ``loss_critic_type``, ``baseline``,
            ``functional`` and ``reduction``.

    Returns:
        Tensordict with ``loss_pathwise``, ``loss_objective`` (score function and cross term),
        ``loss_critic``, ``loss_entropy``, to be summed, and the detached metrics ``entropy``,
        ``kl_approx``, ``clip_fraction`` and ``explained_variance``. Terms that were not asked for
        are absent.

    Raises:
        RuntimeError: the pathwise term is asked for and the rewards carry no gradient, or their
            graph is used up.
        KeyError: an entry is missing.
        ValueError: an argument is out of range or unknown, a shape or dtype is wrong, time is not
            the last axis, a number that advantages follow from is not finite, or the rollout has
            another discount.

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
        score_function: bool | str = True,
        cross_term: bool | str = True,
        clip_epsilon: float | None = 0.2,
        advantage_limit: float = 10.0,
        **shared: Any,
    ) -> None:
        super().__init__(actor_network, critic_network, **shared)
        self.advantage_limit = check_float("advantage_limit", advantage_limit, strict=True)
        self.pathwise = check_bool("pathwise", pathwise)
        self.regression = score_function == "regression"
        self.score_function = self.regression or check_bool("score_function", score_function)
        if not isinstance(cross_term, bool) and cross_term != "adaptive":
            raise ValueError(f"cross_term must be true, false or 'adaptive', got {cross_term!r}.")
        self.cross = cross_term if score_function else False
        self.cross_term_weight: CrossTermWeight | None = None
        if self.cross == "adaptive":
            self.cross_term_weight = CrossTermWeight(num_seeds=self.num_seeds).to(self._device)
        self.add_coefficient("clip_epsilon", clip_epsilon, strict=True)
        keys = ["loss_pathwise"] if pathwise else []
        if score_function:
            # A regression is no step of a policy: it has no ratio of probabilities.
            keys += ["loss_objective", "advantage_fit" if self.regression else "kl_approx"]
            keys += ["cross_term_weight"] if self.cross == "adaptive" else []
            clipped = clip_epsilon is not None and not self.regression
            keys += ["clip_fraction"] if clipped else []
        self.out_keys = [*keys, *self.out_keys]
        if self.regression and "loss_entropy" in self.out_keys:
            self.out_keys.remove("loss_entropy")

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the terms of the mixed gradient; the input is not changed.

        Args:
            tensordict: a differentiable rollout of shape ``(*B, T)``; without pathwise and cross
                term, detached data of any shape that holds advantages.
        """
        if self.pathwise or self.cross:
            self.share_discount(tensordict)
        data = self.advantages(tensordict)  # detached
        logits = self._logits_tried(data) if self.regression else self.logits(data)
        terms, metrics = self.shared_terms(data, logits)
        if self.pathwise:
            terms["loss_pathwise"] = -self.pathwise_term(tensordict)
        if self.score_function:
            fit = self.regression_term if self.regression else self.score_function_term
            objective = fit(data, logits)
            if self.regression:
                metrics["advantage_fit"] = 1.0 + self.mean(objective, data)
            if self.cross:
                objective = objective + self.cross_term(tensordict, data)
            terms["loss_objective"] = -objective
            if not self.regression:
                metrics |= self._metrics(data, logits.detach())
            if self.cross_term_weight is not None:
                metrics["cross_term_weight"] = self.cross_term_weight.weight
        terms.pop("loss_entropy" if self.regression else "", None)
        return self.reduce(terms, metrics, data)

    def pathwise_term(self, tensordict: TensorDictBase) -> Tensor:
        r"""Return :math:`r_t`, with the graph that gives :math:`dr_t / d\psi`: ``(*B, T)``.

        Where the data end in a state that is not terminal, :math:`\gamma V(s)` of that state is
        added, differentiated through the state with the critic's parameters detached (Xu et al.
        2022, SHAC, arXiv 2204.07137).

        Raises:
            RuntimeError: the rewards carry no gradient.
        """
        keys = self.tensor_keys
        reward = self.entry(tensordict, ("next", keys.reward))
        if not reward.requires_grad:
            raise RuntimeError(_NO_GRADIENT.format(key=("next", keys.reward)))
        if self.critic_network is None:
            return reward.squeeze(-1)
        ends, after = self._ends(tensordict), tensordict.get("next")
        steps = self.places_of("ends", anywhere(ends))
        beyond = values_where(lambda states: self.values(states, detach=True), ends, after, steps)
        return reward.squeeze(-1) + self.discount * beyond

    def _ends(self, tensordict: TensorDictBase) -> Tensor:
        """Return where data end in a state that is not terminal, bool ``(*B, T)``."""
        after = tensordict.get("next")
        ends = ends_of(after.get(self.tensor_keys.done))
        return ends & ~after.get(self.tensor_keys.terminated).squeeze(-1)

    def masks(self, data: TensorDictBase) -> dict[str, Tensor]:
        """Return ``"ends"``, the time steps at which a rollout ends, and the steps ``"tried"``."""
        found = {}
        if self.pathwise and self.critic_network is not None:
            found["ends"] = anywhere(self._ends(data))
        if self.regression and self.num_seeds is None:
            found["tried"] = data.get(self.tensor_keys.branched).flatten()
        return found

    def score_function_term(self, data: TensorDictBase, logits: Tensor) -> Tensor:
        r"""Return :math:`A_t \log \pi_\theta(d_t | s_t)` at detached states: ``(*B, T)``.

        With ``clip_epsilon`` it is PPO's clipped surrogate, whose gradient at the policy that
        collected the data is the same.

        Args:
            data: what :meth:`advantages` returns.
            logits: what :meth:`logits` returns of it.
        """
        if data.get(self.tensor_keys.action_value, None) is not None:
            return self._credit(data, logits, limited=True) * self._branched(data)
        if self.clip_epsilon is None:
            return self._credit(data, logits)
        advantage = self.advantage(data)
        ratio = self._log_ratio(data, logits).exp()
        within = ratio.clamp(1.0 - self.clip_epsilon, 1.0 + self.clip_epsilon)
        return torch.minimum(ratio * advantage, within * advantage)

    def entropy(self, data: TensorDictBase, logits: Tensor) -> Tensor:
        """Return the entropy of the discrete choice in nats; of a regression where it was tried."""
        entropy = super().entropy(data, logits)
        return entropy * self._branched(data) if self.regression else entropy

    def _logits_tried(self, data: TensorDictBase) -> Tensor:
        """Return the logits where the discrete actions were tried, and 0 at the other steps.

        A regression says nothing of those, most of the steps, and so the net is not evaluated.
        """
        tried = self.entry(data, self.tensor_keys.branched, (1,), torch.bool)
        whole = self.num_seeds is not None or getattr(self.actor_network, "memory", None)
        if whole or vmapped(tried):  # as many of each seed, whole sequences
            return self.logits(data)
        places = self.places_of("tried", tried.flatten())
        found = self.logits(data.reshape(-1)[places])
        every = found.new_zeros(data.numel(), *found.shape[1:]).index_copy(0, places, found)
        return every.reshape(*data.shape, *found.shape[1:])

    def regression_term(self, data: TensorDictBase, logits: Tensor) -> Tensor:
        r"""Return minus the squared error of the advantages that the logits stand for: ``(*B, T)``.

        With the temperature :math:`\tau` and the preference b of the policy the logits stand for
        the advantages :math:`\tau (\log \pi_\theta(d | s) - b_d)` less their mean over the discrete
        actions. They are regressed on estimates of Q less theirs, at the steps where ``"branched"``
        is true, in units of the variance of the latter: noise of the estimates is averaged out
        before anything is decided. The policy is the softmax of its own advantages (soft policy
        iteration; Haarnoja et al. 2018, arXiv 1801.01290), times exp(b), and deterministic as the
        temperature goes to 0.

        Args:
            data: what :meth:`advantages` returns, with ``"action_value"`` and ``"branched"``.
            logits: what :meth:`logits` returns of it; where nothing was tried they do not count.
        """
        keys = self.tensor_keys
        aim = self.entry(data, keys.action_value, logits.shape[data.ndim :])
        allowed = ~logits.isneginf()
        number = allowed.sum(-1, keepdim=True)

        def centered(value: Tensor) -> Tensor:
            value = value.masked_fill(~allowed, 0.0)
            return torch.where(allowed, value - value.sum(-1, keepdim=True) / number, 0.0)

        tried = self.entry(data, keys.branched, (1,), torch.bool)
        aim = centered(aim.masked_fill(~tried, 0.0))
        error = (centered(self._own_advantages(logits)) - aim).square().sum(-1)
        used = tried.squeeze(-1).to(error.dtype)
        unit = self.mean(aim.square().sum(-1) * used, data)
        return -error * used / unsqueeze_like(unit.clamp_min(1e-12), error)

    def _own_advantages(self, logits: Tensor) -> Tensor:
        """Return the advantages that logits ``(*B, T, M)`` stand for, but for a constant."""
        network = self.weights("actor_network").get(_NETWORK)
        names = ("temperature", "preference")
        temperature, preference = (network.get(name).detach() for name in names)
        return unsqueeze_like(temperature, logits) * (logits - insert_like(preference, logits))

    def cross_term(self, tensordict: TensorDictBase, data: TensorDictBase) -> Tensor:
        r"""Return the cross term: value 0, gradient :math:`A_t\, \partial_s \log \pi\, ds_t/d\psi`.

        The log-probability is a function of the state alone: its parameters are detached. So
        :math:`\psi` is credited for the later discrete actions that its states lead to.

        Args:
            tensordict: the rollout, whose states carry the graph.
            data: what :meth:`advantages` makes of it.

        Returns:
            ``(*B, T)``.
        """
        through_state = self.logits(tensordict, detach=True)
        cross = self._credit(data, through_state)
        if not cross.requires_grad:
            return torch.zeros_like(cross)
        if self.cross_term_weight is not None:
            parameters = self.weights("actor_network").values(True, True)
            self.cross_term_weight.observe(cross, [p for p in parameters if p.requires_grad])
            weight = self.cross_term_weight.weight.to(cross.dtype)
            cross = unsqueeze_like(weight, cross) * cross
        return cross - cross.detach()

    def advantage_unit(self, data: TensorDictBase, logits: Tensor) -> Tensor:
        """Return what the entropy bonus is measured in, a scalar or ``(S,)``; see the class."""
        if self.regression or data.get(self.tensor_keys.action_value, None) is None:
            return super().advantage_unit(data, logits)
        value = self._scored_value(data)
        value = value.where(~logits.isneginf(), -torch.inf)
        gap = -value.topk(2).values.diff(dim=-1).squeeze(-1)
        gap = gap.where(gap.isfinite(), 0.0)
        counts = (gap > 0).to(gap.dtype) * unsqueeze_like(self._branched(data).sign(), gap)
        logs = gap.clamp_min(1e-30).log() * counts
        sums = [self.mean(over_heads(part, data.ndim), data) for part in (logs, counts)]
        return (sums[0] / sums[1].clamp_min(1e-12)).exp()

    def _branched(self, data: TensorDictBase) -> Tensor:
        """Return the weights of steps whose discrete actions were tried, ``(*B, T)``, mean 1."""
        known = data.get(self.tensor_keys.branched, None)
        if known is None:
            return self.entry(data, self.tensor_keys.action_value).new_ones(data.shape)
        used = known.squeeze(-1).to(data[self.tensor_keys.action_value].dtype)
        return used / unsqueeze_like(self.mean(used, data).clamp_min(1e-12), used)

    def _scored_value(self, data: TensorDictBase) -> Tensor:
        """Return ``"action_value"`` in its unit, if the data have one."""
        value = data.get(self.tensor_keys.action_value)
        unit = data.get(self.tensor_keys.action_unit, None)
        return value if unit is None else value / insert_like(unit, value)

    def _credit(self, data: TensorDictBase, logits: Tensor, limited: bool = False) -> Tensor:
        """Advantage times log-probability, or the advantage expected over the discrete actions.

        Args:
            data: what :meth:`advantages` returns.
            logits: what :meth:`logits` returns of it.
            limited: whether it is scored: in the unit of the data, and cut.
        """
        if self.regression:  # those that the policy stands for, which it has at every step
            action_value = self._own_advantages(logits.detach())
        elif (action_value := data.get(self.tensor_keys.action_value, None)) is None:
            return self.log_prob(data, logits) * self.advantage(data)
        else:
            self.entry(data, self.tensor_keys.action_value, logits.shape[data.ndim :])
            action_value = self._scored_value(data) if limited else action_value
        # Q of a masked action need not make sense.
        action_value = action_value.masked_fill(logits.isneginf(), 0.0)
        probability = logits.exp()
        value = (probability.detach() * action_value).sum(-1, keepdim=True)
        advantage = action_value - value
        if limited and self.entropy_coeff is not None:
            limit = self.advantage_limit * self.entropy_coeff * self.advantage_unit(data, logits)
            limit = unsqueeze_like(limit, advantage)
            advantage = advantage.minimum(limit).maximum(-limit)
        expected = over_heads((probability * advantage).sum(-1), data.ndim)
        known = data.get(self.tensor_keys.branched, None)
        if limited or self.regression or known is None or logits.ndim > data.ndim + 1:
            return expected
        # Of heads a sample says too little: their advantages are not told apart.
        sampled = self.log_prob(data, logits) * self.advantage(data)
        return torch.where(known.squeeze(-1), expected, sampled)

    def _log_ratio(self, data: TensorDictBase, logits: Tensor) -> Tensor:
        log_prob = self.log_prob(data, logits)
        old = data.get(self.tensor_keys.sample_log_prob, None)
        return log_prob - (log_prob.detach() if old is None else old)

    def _metrics(self, data: TensorDictBase, logits: Tensor) -> dict[str, Tensor]:
        log_ratio = self._log_ratio(data, logits)
        metrics = {"kl_approx": -self.mean(log_ratio, data)}
        if self.clip_epsilon is not None:
            beyond = (log_ratio.exp() - 1.0).abs() > self.clip_epsilon
            metrics["clip_fraction"] = self.mean(beyond.to(log_ratio.dtype), data)
        return metrics
