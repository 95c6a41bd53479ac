"""The pathwise loss: backpropagation through the simulator and nothing else."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import distance_loss

from hpo_torchrl.core.categorical import entropy_of, over_heads
from hpo_torchrl.core.checks import check_choice, check_float
from hpo_torchrl.objectives.base import HybridLossModule

_DISTANCES = ("l1", "l2", "smooth_l1")
_NO_GRADIENT = (
    "The rewards {key!r} carry no gradient, so there is no pathwise term. Usual causes: the batch "
    "was collected under torch.no_grad() (TorchRL collectors do; use differentiable_rollout or "
    "DifferentiableCollector); it was detached or went through a replay buffer; the policy sampled "
    "its continuous action without reparameterisation (stock CompositeDistribution policies do; "
    "use HybridPolicy); the environment's step breaks the graph (.detach(), .item(), numpy). For "
    "detached data, ask for no pathwise term: HPOLoss(..., pathwise=False, cross_term=False)."
)


class PathwiseLoss(HybridLossModule):
    r"""Backpropagate through a differentiable rollout: :math:`-\sum_t dr_t / d\psi`.

    What it does to the discrete choice is decided by the rollout: of a
    :func:`~hpo_torchrl.collectors.differentiable_rollout` nothing reaches it (its own choice, or a
    fixed rule, is taken as given, and the gradient is biased wherever the continuous actions
    change what it will choose); of a
    :func:`~hpo_torchrl.collectors.straight_through_rollout` the straight-through estimate does.

    Where a window ends in a state that is not terminal, the reward goes on with the critic's value
    of that state, differentiated through the state with the critic's parameters held (Xu et al.
    2022, SHAC, arXiv 2204.07137).

    Args:
        actor_network: a :class:`HybridPolicy`, or any module whose ``get_dist`` returns a
            :class:`HybridDistribution`.
        critic_network: maps the observation to ``"state_value"``; ``None`` ends the return with
            the window.
        entropy_coeff: weight of the entropy of the discrete choice; ``None`` drops the term.
        entropy_in_advantage_units: multiply that weight by the batch's standard deviation of the
            advantage, so that one setting serves every reward scale.
        critic_coeff: weight of the critic's loss; ``None`` drops the term.
        loss_critic_type: ``"l2"``, ``"l1"`` or ``"smooth_l1"``.
        baseline: see :class:`HybridLossModule`.
        functional: whether parameters are held as a ``TensorDictParams`` (TorchRL's default);
            ``False`` keeps ordinary modules, for data-parallel wrappers.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        device: device of the coefficients; defaults to the actor's.

    Returns:
        Tensordict with ``loss_pathwise``, ``loss_critic``, ``loss_entropy``, to be summed, and the
        detached diagnostics ``entropy`` and ``explained_variance``. Terms that were not asked for
        are absent.

    Raises:
        RuntimeError: the rewards carry no gradient.
        KeyError: an entry is missing.
        ValueError: an argument is out of range or unknown.

    Examples:
        >>> from hpo_torchrl.collectors import straight_through_rollout
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy, make_value_network
        >>> from hpo_torchrl.objectives import PathwiseLoss
        >>> env = InventoryEnv(batch_size=8, initial_state="random")
        >>> policy, critic = HybridPolicy.for_env(env), make_value_network(env)
        >>> loss = PathwiseLoss(policy, critic)
        >>> _ = loss.make_value_estimator(gamma=0.99, lmbda=0.95)
        >>> terms = loss(straight_through_rollout(env, policy, 10, discount=0.99))
        >>> sum(value for key, value in terms.items() if key.startswith("loss_")).backward()
    """

    _schedulable_buffers = frozenset({"entropy_coeff", "critic_coeff"})

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
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            actor_network,
            critic_network,
            baseline=baseline,
            functional=functional,
            reduction=reduction,
        )
        self.entropy_in_advantage_units = entropy_in_advantage_units
        self.loss_critic_type = check_choice("loss_critic_type", loss_critic_type, _DISTANCES)
        if device is None:
            device = next((parameter.device for parameter in actor_network.parameters()), None)
        self._coefficient("entropy_coeff", entropy_coeff, device)
        self._coefficient(
            "critic_coeff", critic_coeff if critic_network is not None else None, device
        )

    def _coefficient(
        self, name: str, value: float | Tensor | None, device: object, *, strict: bool = False
    ) -> None:
        """Check a coefficient and register it as a buffer."""
        if value is not None:
            number = value.item() if isinstance(value, Tensor) else value
            check_float(name, number, minimum=0.0, strict=strict)
        self.register_coeff_buffer(name, value, device=device)

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries that the loss returns: the terms, then the diagnostics."""
        if not self._out_keys:
            critic = self.critic_coeff is not None
            self._out_keys = [
                "loss_pathwise",
                *(["loss_critic"] if critic else []),
                *(["loss_entropy"] if self.entropy_coeff is not None else []),
                "entropy",
                *(["explained_variance"] if critic else []),
            ]
        return self._out_keys

    @out_keys.setter
    def out_keys(self, value: list[NestedKey]) -> None:
        self._out_keys = value

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the terms; the input is not changed.

        Args:
            tensordict: a differentiable rollout of shape ``(*B, T)``.
        """
        return self.evaluate(tensordict, self.add_advantage(tensordict))[0]

    def evaluate(
        self, tensordict: TensorDictBase, held: TensorDictBase, value: Tensor | None = None
    ) -> tuple[TensorDict, Tensor]:
        """Do what :meth:`forward` does for a caller that has done some of it already.

        Args:
            tensordict: see :meth:`forward`.
            held: what :meth:`add_advantage` makes of it.
            value: the critic's values of its states, ``(*B, T, 1)``, with a graph that ends at
                the critic's parameters; by default they are computed.

        Returns:
            What :meth:`forward` returns, and the normalised log-probabilities of all options at
            the visited states, ``(*B, T, M)``.
        """
        terms = {"loss_pathwise": -self._pathwise(tensordict)}
        logits = self._logits(held)
        return self._finish(terms, {}, held, logits, value), logits

    def _finish(
        self,
        terms: dict[str, Tensor],
        notes: dict[str, Tensor],
        held: TensorDictBase,
        logits: Tensor,
        value: Tensor | None,
    ) -> TensorDict:
        """Add what every loss has, critic and entropy, reduce the terms and detach the rest.

        Args:
            terms: the loss's own terms, ``(*B, T)``.
            notes: its own diagnostics.
            held: the detached data with advantages.
            logits: normalised log-probabilities of the options at detached states.
            value: the critic's values of these states, if they are known.
        """
        if self.critic_coeff is not None:
            target = self.entry(held, self.tensor_keys.value_target)
            value = self._value(held) if value is None else value
            distance = distance_loss(value, target, loss_function=self.loss_critic_type)
            terms["loss_critic"] = self.critic_coeff * distance.squeeze(-1)
            spread = self._variance(target.squeeze(-1), held).clamp_min(1e-12)
            residual = self._variance((target - value.detach()).squeeze(-1), held)
            notes["explained_variance"] = 1.0 - residual / spread
        entropy = over_heads(entropy_of(logits), held.ndim)
        if self.entropy_coeff is not None:
            unit: Tensor | float = 1.0
            if self.entropy_in_advantage_units:
                advantage = held.get(self.tensor_keys.advantage).squeeze(-1)
                unit = self._variance(advantage, held).sqrt()
            terms["loss_entropy"] = -self.entropy_coeff * unit * entropy
        notes["entropy"] = self._mean(entropy, held)
        out = {key: self._reduce_loss(term, held) for key, term in terms.items()}
        out |= {key: note.detach() for key, note in notes.items()}
        return TensorDict({key: out[key] for key in self.out_keys})

    def _pathwise(self, tensordict: TensorDictBase) -> Tensor:
        """Rewards, and beyond the end of a window the value of its last state: ``(*B, T)``."""
        reward = self.entry(tensordict, ("next", self.tensor_keys.reward))
        if not reward.requires_grad:
            raise RuntimeError(_NO_GRADIENT.format(key=("next", self.tensor_keys.reward)))
        if self.critic_network is None:
            return reward.squeeze(-1)
        after = tensordict.get("next")
        ends = after.get(self.tensor_keys.done).squeeze(-1).clone()
        ends[..., -1] = True
        ends &= ~after.get(self.tensor_keys.terminated).squeeze(-1)
        if not bool(ends.any()):
            return reward.squeeze(-1)
        beyond = self._value_where(ends, after.select(*self.critic_network.in_keys))
        return reward.squeeze(-1) + self.discount * beyond

    def _value_where(self, ends: Tensor, after: TensorDictBase) -> Tensor:
        """The value of states, the critic's parameters held, where ``ends``, 0 elsewhere."""
        value = self._value(after[ends], held=True).squeeze(-1)
        return value.new_zeros(ends.shape).masked_scatter(ends, value)

    def _mean(self, value: Tensor, held: TensorDictBase) -> Tensor:
        """Mean over the steps that count: TorchRL's loss mask is honoured."""
        return self._reduce_loss(value, held, reduction="mean")

    def _variance(self, value: Tensor, held: TensorDictBase) -> Tensor:
        """Population variance over the steps that count; 0 for a single one."""
        return self._mean((value - self._mean(value, held)) ** 2, held)
