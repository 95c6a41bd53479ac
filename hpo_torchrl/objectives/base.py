"""The base of losses of hybrid policies: critic and entropy terms, and how terms are reduced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torchrl.objectives import distance_loss

from hpo_torchrl.core import ranks
from hpo_torchrl.core.categorical import entropy_of, over_heads, unsqueeze_like
from hpo_torchrl.core.checks import check_choice, check_float, checked
from hpo_torchrl.objectives.advantages import AdvantageLoss


class HybridLossModule(AdvantageLoss):
    """A TorchRL loss with a hybrid actor and, optionally, a critic: the base of all losses here.

    A subclass writes :attr:`own_keys` and ``forward``, from :meth:`advantages`, :meth:`logits`,
    :meth:`log_prob`, :meth:`values`, :meth:`shared_terms` and :meth:`reduce`.

    A policy of S seeds (``policy.num_seeds``) takes data ``(S, *B, T)``. Every mean and every
    deviation is then one seed's own: a reduced term is ``(S,)``, and the sum over the seeds has for
    each of them the gradient of its loss alone.

    Where ranks share a training, :meth:`mean` and the reduced terms are those of the data of all
    ranks; a gradient is that of this rank's data, and :class:`Optimization` sums them.

    Args:
        actor_network: a :class:`HybridPolicy`, or any module whose ``get_dist`` returns a
            :class:`HybridDistribution`.
        critic_network: maps the observation to ``"state_value"``; ``None`` uses Monte-Carlo
            returns.
        entropy_coeff: weight of the entropy of the discrete choice; ``None`` drops the term.
        entropy_in_advantage_units: multiply that weight by the batch's standard deviation of the
            advantage, so that one setting serves every reward scale.
        critic_coeff: weight of the critic's loss; ``None`` drops the term.
        loss_critic_type: ``"l2"``, ``"l1"`` or ``"smooth_l1"``.
        baseline: what is subtracted from Monte-Carlo returns: ``None``, or ``"leave_one_out"``, the
            mean return of the batch's other rollouts from the same step (Kool, van Hoof & Welling
            2019); it does not depend on this rollout's discrete actions, so it adds no bias.
        functional: whether parameters are kept as a ``TensorDictParams`` (TorchRL's default);
            ``False`` keeps ordinary modules, for data-parallel wrappers.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an argument is out of range or unknown.

    Examples:
        >>> from hpo_torchrl.modules import HybridPolicy, make_value_network
        >>> from hpo_torchrl.objectives import HybridLossModule
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> class ScoreFunctionLoss(HybridLossModule):
        ...     own_keys = ("loss_objective",)
        ...     def forward(self, tensordict):
        ...         data = self.advantages(tensordict)
        ...         logits = self.logits(data)
        ...         terms, metrics = self.shared_terms(data, logits)
        ...         terms["loss_objective"] = -self.log_prob(data, logits) * self.advantage(data)
        ...         return self.reduce(terms, metrics, data)
        >>> env = InventoryEnv(batch_size=8, initial_state="random")
        >>> policy, critic = HybridPolicy.for_env(env), make_value_network(env)
        >>> loss = ScoreFunctionLoss(policy, critic)
        >>> sorted(loss(env.rollout(5, policy)).keys())[1:]
        ['explained_variance', 'loss_critic', 'loss_entropy', 'loss_objective']
    """

    _schedulable_buffers = frozenset({"entropy_coeff", "critic_coeff"})

    own_keys: Sequence[str] = ()
    """Entries that a subclass returns besides those of :meth:`shared_terms`."""

    places: Mapping[str, Tensor] | None = None
    """Where the masks of :meth:`masks` are true, and perhaps elsewhere, for who traces the loss."""

    @checked
    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModule | None = None,
        *,
        entropy_coeff: float | None = 0.0,
        entropy_in_advantage_units: bool = True,
        critic_coeff: float | None = 1.0,
        loss_critic_type: str = "l2",
        baseline: str | None = None,
        functional: bool = True,
        reduction: str | None = None,
    ) -> None:
        super().__init__(actor_network, critic_network, baseline, functional)
        self.num_seeds: int | None = getattr(actor_network, "num_seeds", None)
        self.reduction = check_choice("reduction", reduction or "mean", ("none", "mean", "sum"))
        self.entropy_in_advantage_units = entropy_in_advantage_units
        distances = ("l1", "l2", "smooth_l1")
        self.loss_critic_type = check_choice("loss_critic_type", loss_critic_type, distances)
        self._device = next((p.device for p in actor_network.parameters()), None)
        self.add_coefficient("entropy_coeff", entropy_coeff)
        self.add_coefficient("critic_coeff", None if critic_network is None else critic_coeff)
        critic = ["loss_critic", "explained_variance"] if self.critic_coeff is not None else []
        bonus = ["loss_entropy"] if entropy_coeff is not None else []
        self.out_keys = [*self.own_keys, *critic, *bonus, "entropy"]

    def add_coefficient(self, name: str, value: float | None, *, strict: bool = False) -> None:
        """Check a coefficient, a number >= 0 (> 0 if strict) or ``None``; make it a buffer."""
        if value is not None:
            check_float(name, value, minimum=0.0, strict=strict)
        self.register_coeff_buffer(name, value, device=self._device)

    def masks(self, data: TensorDictBase) -> dict[str, Tensor]:
        """Return where networks are evaluated that are not asked at all steps, bool ``(n,)`` each.

        How many places there are decides shapes, which a traced loss cannot look at.
        """
        return {}

    def places_of(self, name: str, mask: Tensor) -> Tensor:
        """Return the places where a mask is true; of :attr:`places`, if they are known."""
        if self.places is not None:
            return self.places[name]
        return mask.nonzero().squeeze(-1)

    def logits(self, data: TensorDictBase, *, detach: bool = False) -> Tensor:
        """Return log pi(. | s), normalised and masked: ``(*B, T, M)``, with heads ``(..., H, M)``.

        Args:
            data: holds what the actor reads; gradients flow through it where it has a graph.
            detach: stop gradients to the actor's parameters.
        """
        with self.placed("actor_network", data, detach) as (actor, given):
            if hasattr(actor, "discrete_logits"):
                return actor.discrete_logits(given)
            dist = actor.get_dist(given)
            if not hasattr(dist, "logits"):
                kind = type(dist).__name__
                raise TypeError(f"actor_network must have a HybridDistribution, got a {kind}.")
            return dist.logits

    def log_prob(self, data: TensorDictBase, logits: Tensor | None = None) -> Tensor:
        """Return log pi(d | s) of the discrete actions taken, summed over heads: ``(*B, T)``.

        Args:
            data: holds the discrete actions and what the actor reads.
            logits: what :meth:`logits` returns, if it is known already.

        Raises:
            ValueError: the discrete actions do not have the shape of the policy's choices.
        """
        logits = self.logits(data) if logits is None else logits
        discrete = self.entry(data, self.tensor_keys.discrete_action)
        if discrete.shape != logits.shape[:-1]:
            raise ValueError(
                f"The discrete actions {self.tensor_keys.discrete_action!r} must have the shape of "
                f"the policy's choices {tuple(logits.shape[:-1])}, got {tuple(discrete.shape)}; "
                "with heads both end in the number of heads."
            )
        try:
            chosen = logits.gather(-1, discrete.unsqueeze(-1)).squeeze(-1)
        except RuntimeError as error:
            lost = discrete[(discrete < 0) | (discrete >= logits.shape[-1])]
            raise ValueError(
                f"The discrete actions {self.tensor_keys.discrete_action!r} must be int64 in 0, "
                f"..., {logits.shape[-1] - 1}, got {discrete.dtype} with {lost[:3].tolist()}."
            ) from error
        return over_heads(chosen, data.ndim)

    def entropy(self, data: TensorDictBase, logits: Tensor) -> Tensor:
        """Return the entropy of the discrete choice in nats, summed over heads: ``(*B, T)``."""
        return over_heads(entropy_of(logits), data.ndim)

    def values(self, data: TensorDictBase, *, detach: bool = False) -> Tensor:
        """Return the critic's values, ``(*B, T, 1)``.

        Args:
            data: holds what the critic reads; gradients flow through it where it has a graph.
            detach: stop gradients to the critic's parameters.
        """
        with self.placed("critic_network", data, detach) as (critic, given):
            return critic(given).get(self.tensor_keys.value)

    def shared_terms(
        self, data: TensorDictBase, logits: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the terms ``(*B, T)`` and the metrics that all losses have: critic and entropy.

        Args:
            data: what :meth:`advantages` returns.
            logits: what :meth:`logits` returns of it.
        """
        terms, metrics = {}, {}
        if self.critic_coeff is not None:
            target = self.entry(data, self.tensor_keys.value_target, (1,))
            value = data.get(self.tensor_keys.critic_value, None)
            if value is None or not value.requires_grad:
                value = self.values(data)
            distance = distance_loss(value, target, loss_function=self.loss_critic_type)
            terms["loss_critic"] = self.critic_coeff * distance.squeeze(-1)
            spread = self._variance(target.squeeze(-1), data).clamp_min(1e-12)
            residual = self._variance((target - value.detach()).squeeze(-1), data)
            metrics["explained_variance"] = 1.0 - residual / spread
        entropy = self.entropy(data, logits)
        if self.entropy_coeff is not None:
            unit: Tensor | float = 1.0
            if self.entropy_in_advantage_units:
                unit = unsqueeze_like(self.advantage_unit(data, logits), entropy)
            terms["loss_entropy"] = -self.entropy_coeff * unit * entropy
        return terms, metrics | {"entropy": self.mean(entropy, data)}

    def advantage_unit(self, data: TensorDictBase, logits: Tensor) -> Tensor:
        """Return the standard deviation of the advantages, a scalar or ``(S,)``.

        Args:
            data: what :meth:`advantages` returns.
            logits: what :meth:`logits` returns of it; a subclass may need them.
        """
        return self._variance(self.advantage(data), data).sqrt()

    def reduce(
        self, terms: Mapping[str, Tensor], metrics: Mapping[str, Tensor], data: TensorDictBase
    ) -> TensorDict:
        """Return :attr:`out_keys`: the terms reduced, with their graph, and the metrics without.

        Args:
            terms: each step's share of every term, ``(*B, T)``.
            metrics: diagnostics, reduced already (:meth:`mean`).
            data: what :meth:`advantages` returns; TorchRL's loss mask in it is honoured.

        Raises:
            ValueError: a term does not have one entry for each step.
        """
        for name, term in terms.items():
            if term.shape != data.shape:
                raise ValueError(
                    f"{name} must have one entry for each step, shape {tuple(data.shape)}, got "
                    f"{tuple(term.shape)}. Use log_prob and entropy of HybridLossModule, which sum "
                    "over heads, and advantage, which has no last dimension of 1."
                )
        out = self._all_reduced(terms, data)
        out |= {name: metric.detach() for name, metric in metrics.items()}
        return TensorDict({key: out[key] for key in self.out_keys})

    def mean(self, value: Tensor, data: TensorDictBase) -> Tensor:
        """Return the mean over the steps that count, a scalar or ``(S,)``."""
        return self._reduced(value, data, "mean")

    def _all_reduced(self, terms: Mapping[str, Tensor], data: TensorDictBase) -> dict[str, Tensor]:
        """Return the terms reduced, of several ranks by one exchange."""
        if not ranks.active() or self.reduction == "none" or self.num_seeds is not None:
            return {key: self._reduced(term, data, self.reduction) for key, term in terms.items()}
        own = [self._reduce_loss(term, data, reduction="none").sum() for term in terms.values()]
        one = torch.ones(data.shape, dtype=own[0].dtype, device=own[0].device)
        own.append(self._reduce_loss(one, data, reduction="none").sum())
        *sums, count = ranks.total(torch.stack(own))
        divisor = count.clamp_min(1) if self.reduction == "mean" else 1.0
        return {key: each / divisor for key, each in zip(terms, sums, strict=True)}

    def _reduced(self, value: Tensor, data: TensorDictBase, reduction: str) -> Tensor:
        single = self.num_seeds is None
        if reduction == "none" or (single and not ranks.active()):
            return self._reduce_loss(value, data, reduction=reduction)
        # Masked steps are 0 here, in the values as in the count of those that are not.
        sums = [
            self._reduce_loss(each, data, reduction="none").flatten(0 if single else 1).sum(-1)
            for each in (value, torch.ones_like(value))
        ]
        total, count = ranks.total(torch.stack(sums))
        return total / count.clamp_min(1) if reduction == "mean" else total

    def _variance(self, value: Tensor, data: TensorDictBase) -> Tensor:
        """Population variance over the steps that count; 0 for a single one."""
        if ranks.active():
            counts = self._reduce_loss(torch.ones_like(value), data, reduction="none")
            return ranks.moments(value, counts)[2]
        mean = unsqueeze_like(self.mean(value, data), value)
        return self.mean((value - mean) ** 2, data)


def values_where(
    values: Callable[[TensorDictBase], Tensor],
    where: Tensor,
    data: TensorDictBase,
    steps: Tensor | None = None,
) -> Tensor:
    """Return a critic's values where they are asked for and 0 elsewhere, ``(*B, T)``.

    The critic sees only the time steps at which any is asked for.

    Args:
        values: evaluates the critic, ``(*B, t)`` to ``(*B, t, 1)``.
        where: bool ``(*B, T)``.
        data: what the critic reads, ``(*B, T)``.
        steps: these time steps, and perhaps others, int64 ``(t,)``; ``None`` looks for them.
    """
    if steps is None:
        steps = anywhere(where).nonzero().squeeze(-1)
    value = torch.where(where[..., steps], values(data[..., steps]).squeeze(-1), 0.0)
    return value.new_zeros(where.shape).index_copy(-1, steps, value)


def ends_of(done: Tensor) -> Tensor:
    """Return where data end: where ``done``, ``(*B, T, 1)``, and at the last step; ``(*B, T)``."""
    return F.pad(done.squeeze(-1)[..., :-1], (0, 1), value=True)


def anywhere(where: Tensor) -> Tensor:
    """Return at which time steps a mask ``(*B, T)`` is true anywhere, bool ``(T,)``."""
    return where.reshape(-1, where.shape[-1]).any(0)
