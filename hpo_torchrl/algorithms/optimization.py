"""Steps of one size: a running scale of the rewards, and Adam with a rate for each component."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from hpo_torchrl.core import ranks
from hpo_torchrl.core.categorical import unsqueeze_like
from hpo_torchrl.core.checks import check_choice, check_float
from hpo_torchrl.core.finite import NonFiniteError, all_finite, leaves, not_finite

if TYPE_CHECKING:
    from hpo_torchrl.algorithms.learner import Learner

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
_LEAST_MULTIPLIER, _FACTOR = 1e-3, 1.5  # the least learning-rate multiplier, and its steps
_CAUTION = 4.0  # beyond 1 the multiplier aims at a change so many times smaller


class Optimization:
    r"""Adam on the components of a policy and a critic, for one seed or several.

    The learning rate of a component is :math:`\eta\, f(p)\, m`, with the rate :math:`\eta`, the
    schedule's factor f at progress p, and the component's multiplier m, which :meth:`adapt_lr` lets
    follow how far an update changed the policy.

    Args:
        learner: has the networks, the seeds and the settings: ``learning_rate``, its schedule and
            final fraction, ``adam_betas``, ``adam_eps`` and ``max_grad_norm``.

    Attributes:
        groups: parameters by name, by component; with seeds ``(S, ...)``.
        members: those of each seed.
        optimizers: one Adam for each seed.
        factor: the schedule's factor now.

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner, self.seeds, self.factor = learner, learner.seeds, 1.0
        check_choice("learning_rate_schedule", learner.learning_rate_schedule, SCHEDULES)
        betas = learner.adam_betas
        if isinstance(betas, str) or not isinstance(betas, Sequence) or len(betas) != 2:
            raise ValueError(f"adam_betas must be two numbers such as [0.9, 0.95], got {betas!r}.")
        first, second = (
            check_float(f"adam_betas[{i}]", beta, minimum=0.0, maximum=0.9999)
            for i, beta in enumerate(betas)
        )
        self.groups = _groups(learner.policy, learner.critic)
        self.members = [_groups(*member) for member in learner.members()]
        # A group holds its learning-rate multiplier, so that a checkpoint has it.
        self.optimizers = [
            torch.optim.Adam(
                [
                    {"params": list(named.values()), "lr_multiplier": 1.0}
                    for named in member.values()
                ],
                lr=learner.learning_rate,
                betas=(first, second),
                eps=learner.adam_eps,
                fused=True,
            )
            for member in self.members
        ]

    def anneal(self, progress: float) -> None:
        """Set the learning rates for ``progress`` in [0, 1] of the run."""
        share = SCHEDULES[self.learner.learning_rate_schedule](progress)
        final = self.learner.learning_rate_final
        self.factor = final + (1.0 - final) * share
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["lr_multiplier"] * self.learner.learning_rate * self.factor

    def param_groups(self, component: str) -> list[dict[str, Any]]:
        """Return the parameter group of a component in the optimizer of each seed."""
        place = list(self.groups).index(component)
        return [optimizer.param_groups[place] for optimizer in self.optimizers]

    def learning_rates(self) -> dict[str, Tensor]:
        """Return each component's learning rate of now, a scalar or ``(S,)``, by its log name."""
        rates = [[group["lr"] for group in self.param_groups(name)] for name in self.groups]
        table = zip(self.groups, torch.tensor(rates, dtype=torch.float64), strict=True)
        return {f"learning_rate/{n}": row[0] if self.seeds is None else row for n, row in table}

    def adapt_lr(self, component: str, ratio: Tensor | float, most: float = 1.0) -> None:
        """Let a component's learning-rate multiplier follow how far it changed the policy.

        Args:
            component: its name in :attr:`groups`.
            ratio: how far the last update changed the policy, in units of the target; a number, or
                one for each seed. Above 2 the multiplier falls, below 1/2 it grows; beyond 1 it
                falls above 1/2, and grows below 1/8. The target shrinks with the schedule of the
                learning rate: the multiplier would undo that one otherwise.
            most: what the multiplier grows to at most.

        Raises:
            NonFiniteError: the ratio is not finite: nothing says that the step was small.
        """
        if component not in self.groups:  # a network of the user's own may have no such part
            return
        change = {component: torch.as_tensor(ratio)}
        stop_unless_finite(
            change, seeds=self.seeds, label="The change of the {} actions by the update"
        )
        ratios = (torch.as_tensor(ratio).double() / self.factor).reshape(-1).tolist()
        for group, own in zip(self.param_groups(component), ratios, strict=True):
            multiplier = group["lr_multiplier"]
            falls = own > (2.0 if multiplier <= 1.0 else 2.0 / _CAUTION)
            grows = own < (0.5 if multiplier < 1.0 else 0.5 / _CAUTION)
            factor = 1.0 / _FACTOR if falls else _FACTOR if grows else 1.0
            group["lr_multiplier"] = min(most, max(_LEAST_MULTIPLIER, multiplier * factor))

    def step(
        self,
        terms: TensorDictBase | Mapping[str, Tensor],
        active: Tensor | None = None,
        *,
        resting: str | None = None,
    ) -> dict[str, Tensor]:
        """Descend the sum of the ``loss_*`` terms once, by the gradients of all ranks.

        Args:
            terms: losses and metrics, scalars or ``(S,)``.
            active: which seeds make the step, bool ``(S,)``; ``None`` lets all.
            resting: the component that makes none.

        Returns:
            The gradient norms by component, and the terms.

        Raises:
            NonFiniteError: a term or a gradient is not finite, and no parameter has changed; or
                the step made a parameter so.
        """
        places = list(range(len(self.optimizers)))
        if active is not None and self.seeds is not None:
            places = active.nonzero().flatten().tolist()
        losses = {key: value for key, value in terms.items() if key.startswith("loss_")}
        parameters = [p for named in self.groups.values() for p in named.values()]
        for parameter in parameters:
            parameter.grad = None
        torch.stack(list(losses.values())).sum().backward()
        ranks.sum_gradients(parameters)
        limit = self.learner.max_grad_norm
        norms = clip_gradients(self.groups, limit, seeds=self.seeds, active=places, losses=losses)
        for parameter in self.groups.get(resting or "", {}).values():
            parameter.grad = None
        for at in places:
            if self.seeds is not None:  # each optimizer steps on its own rows of the stack
                own = [p for group in self.optimizers[at].param_groups for p in group["params"]]
                for parameter, stack in zip(own, parameters, strict=True):
                    parameter.grad = None if stack.grad is None else stack.grad[at]
            self.optimizers[at].step()
        if not all_finite(parameters):
            bad = not_finite(self.groups) or "their norm"
            raise NonFiniteError(f"The optimizer's step spoilt the weights: {bad} is not finite.")
        return {f"grad_norm/{name}": norm for name, norm in norms.items()} | {
            name: value.detach() for name, value in terms.items()
        }


def clip_gradients(
    groups: Mapping[str, Mapping[str, nn.Parameter]],
    max_norm: float,
    *,
    seeds: Sequence[int] | None = None,
    active: Sequence[int] | None = None,
    losses: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Clip the gradient of each component, of each seed, and return the norms before.

    Args:
        groups: parameters by name, by component; with seeds ``(S, ...)``.
        max_norm: largest norm of a component's gradient.
        seeds: the seeds on the leading axis; ``None`` without one.
        active: see :func:`stop_unless_finite`.
        losses: terms that the gradients are of, which are checked with them.

    Returns:
        Norms by component, scalars or ``(S,)``.

    Raises:
        NonFiniteError: a term or a gradient is not finite; the message names the first.
    """
    lead = () if seeds is None else (len(seeds),)
    gradients, norms = {}, {}
    for component, parameters in groups.items():
        own = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        if own:
            sizes = [torch.linalg.vector_norm(g.reshape(*lead, -1), dim=-1) for g in own.values()]
            norms[component] = torch.linalg.vector_norm(torch.stack(sizes), dim=0)
            gradients[component] = own
    found = [value.reshape(-1) for value in (*(losses or {}).values(), *norms.values())]
    if found and not bool(torch.cat(found).isfinite().all()):
        place: dict[str, Any] = {"seeds": seeds, "active": active}
        stop_unless_finite(losses or {}, **place)
        stop_unless_finite(gradients, label="The gradient of {}", **place)
        stop_unless_finite(norms, label="The gradient's norm of {}", **place)
    for component, norm in norms.items():
        factor = (max_norm / (norm + 1e-6)).clamp_max(1.0)
        for gradient in gradients[component].values():
            gradient.mul_(unsqueeze_like(factor, gradient))
    return norms


def stop_unless_finite(
    values: Mapping[str, Any],
    *,
    seeds: Sequence[int] | None = None,
    active: Sequence[int] | None = None,
    label: str = "{}",
) -> None:
    """Raise a :class:`NonFiniteError` that names the first entry that is NaN or infinite.

    Args:
        values: what is checked, by name, of any depth; with seeds ``(S, ...)``.
        seeds: the seeds on the leading axis; ``None`` without one.
        active: places of the seeds that count; ``None`` counts all.
        label: what an entry is called in the message.
    """
    if not_finite(values) is None:
        return
    every = range(len(seeds or ()))
    for at in [None] if seeds is None else every if active is None else active:
        rows = {name: value if at is None else value[at] for name, value in leaves(values)}
        if bad := not_finite(rows):
            raise NonFiniteError(f"{label.format(bad)} is not finite.", at)


def _groups(policy: Any, critic: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    return policy.parameter_groups() | {"critic": dict(critic.named_parameters())}


class RewardScaler(nn.Module):
    r"""Divide rewards by a running standard deviation.

    Advantages, value targets and the pathwise term inherit the scale. With :math:`m_b, v_b` the
    mean and variance of a batch, :math:`w \leftarrow \beta w + 1 - \beta` and
    :math:`\eta = (1 - \beta) / w`,

    .. math::
        v \leftarrow (1 - \eta)\, v + \eta\, (v_b + (1 - \eta) (m_b - m)^2), \qquad
        m \leftarrow m + \eta\, (m_b - m).

    Args:
        decay: weight :math:`\beta` of the past; 0 uses each batch alone.
        num_seeds: number S of runs on a leading axis, each with a scale of its own; ``None`` is a
            single run without that axis.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99, *, num_seeds: int | None = None) -> None:
        super().__init__()
        self.decay = decay
        shape = () if num_seeds is None else (num_seeds,)
        for name in ("mean", "variance", "weight"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, reward: Tensor) -> None:
        """Take a batch of rewards into the running moments."""
        rows = reward.detach().double().reshape(*self.mean.shape, -1)
        self.weight.mul_(self.decay).add_(1.0 - self.decay)
        share = (1.0 - self.decay) / self.weight
        if ranks.active():
            _, mean, spread = ranks.moments(rows)
        else:
            mean, spread = rows.mean(-1), rows.var(-1, correction=0)
        shift = mean - self.mean
        self.variance.lerp_(spread + (1.0 - share) * shift**2, share)
        self.mean.add_(share * shift)

    @property
    def scale(self) -> Tensor:
        """The running standard deviation; where rewards do not vary, their size."""
        deviation, size = self.variance.sqrt(), self.mean.abs()
        return torch.where(deviation <= 1e-6 * size, size, deviation).clamp_min(1e-8)

    def forward(self, reward: Tensor) -> Tensor:
        """Return the scaled rewards; gradients flow."""
        return reward / unsqueeze_like(self.scale.to(reward.dtype), reward)
