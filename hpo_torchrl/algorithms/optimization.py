"""The optimizers: one Adam for each seed, with a learning-rate multiplier for each component."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from hpo_torchrl.algorithms.base import NonFiniteError
from hpo_torchrl.core.checks import check_choice, check_float
from hpo_torchrl.objectives.base import unsqueeze_like

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
# The warm-up: the learning-rate multiplier of a policy's nets at first, its least, and its steps.
_FIRST_MULTIPLIER, _LEAST_MULTIPLIER, _FACTOR = 0.02, 1e-3, 1.5


class Optimization:
    r"""Adam on the components of a policy and a critic, for one seed or several.

    The learning rate of a component is :math:`\eta\, f(p)\, m`, with the rate :math:`\eta`, the
    schedule's factor f at progress p, and the component's multiplier m in (0, 1], which
    :meth:`adapt_lr` lets follow how far an update changed the policy.

    Args:
        members: each seed's policy and critic; in an ordinary run, the one pair.
        policy: the policy in training; with seeds that of all, with parameters ``(S, ...)``.
        critic: the critic, likewise.
        seeds: the seeds; ``None`` in an ordinary run.
        learning_rate: Adam's step size at the start.
        adam_betas: Adam's decay rates of the mean and the square of the gradient.
        schedule: ``"constant"``, ``"linear"`` or ``"cosine"``.
        final: fraction of the learning rate that is left at the end.
        max_grad_norm: gradient-norm clip of each component.

    Attributes:
        groups: parameters by name, by component; with seeds ``(S, ...)``.
        optimizers: one Adam for each seed.
        factor: the schedule's factor now.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        members: Sequence[tuple[Any, nn.Module]],
        policy: Any,
        critic: nn.Module,
        *,
        seeds: Sequence[int] | None,
        learning_rate: float,
        adam_betas: Sequence[float],
        schedule: str,
        final: float,
        max_grad_norm: float,
    ) -> None:
        self.policy, self.seeds, self.factor = policy, seeds, 1.0
        self.learning_rate = check_float("learning_rate", learning_rate, minimum=0.0, strict=True)
        self.schedule = SCHEDULES[check_choice("learning_rate_schedule", schedule, SCHEDULES)]
        self.final = check_float("learning_rate_final", final, minimum=0.0, maximum=1.0)
        self.max_grad_norm = check_float("max_grad_norm", max_grad_norm, minimum=0.0, strict=True)
        betas = _check_betas(adam_betas)
        self.groups = _groups(policy, critic)
        # A group holds its learning-rate multiplier, so that a checkpoint has it.
        self.optimizers = [
            torch.optim.Adam(
                [
                    {"params": list(named.values()), "lr_multiplier": 1.0}
                    for named in _groups(*member).values()
                ],
                lr=learning_rate,
                betas=betas,
                eps=1e-5,
                fused=True,
            )
            for member in members
        ]

    def anneal(self, progress: float) -> None:
        """Set the learning rates for ``progress`` in [0, 1] of the run."""
        self.factor = self.final + (1.0 - self.final) * self.schedule(progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["lr_multiplier"] * self.learning_rate * self.factor

    def learning_rates(self) -> dict[str, Tensor]:
        """Return each component's learning rate of now, a scalar or ``(S,)``, by its log name."""
        lead = () if self.seeds is None else (len(self.seeds),)
        groups = zip(*(optimizer.param_groups for optimizer in self.optimizers), strict=True)
        rates = [[group["lr"] for group in own] for own in groups]
        return {
            f"learning_rate/{name}": torch.tensor(own, dtype=torch.float64).reshape(lead)
            for name, own in zip(self.groups, rates, strict=True)
        }

    def lr_multiplier(self, component: str, value: float | None = None) -> list[float]:
        """Return a component's learning-rate multiplier by seed; set it first if one is given."""
        place = list(self.groups).index(component)
        groups = [optimizer.param_groups[place] for optimizer in self.optimizers]
        for group in groups if value is not None else ():
            group["lr_multiplier"] = value
        return [group["lr_multiplier"] for group in groups]

    def warm_up(self) -> None:
        """Let the policy's nets begin with a small learning-rate multiplier.

        Where the observation has many entries, the same step of every weight changes a policy much
        more than where it has few.
        """
        for component in self.policy.parameter_groups():
            self.lr_multiplier(component, _FIRST_MULTIPLIER)

    def adapt_lr(self, component: str, ratio: Tensor | float) -> None:
        """Let a component's learning-rate multiplier follow how far it changed the policy.

        Args:
            component: its name in :attr:`groups`.
            ratio: how far the last update changed the policy, in units of the target; a number, or
                one for each seed. Above 2 the multiplier falls, below 1/2 it grows, up to 1. The
                target shrinks with the schedule of the learning rate: the multiplier would undo
                that one otherwise.
        """
        if component not in self.groups:  # a network of the user's own may have no such part
            return
        place = list(self.groups).index(component)
        ratios = torch.as_tensor(ratio).reshape(-1).tolist()
        for optimizer, own in zip(self.optimizers, ratios, strict=True):
            group = optimizer.param_groups[place]
            own /= self.factor
            factor = 1.0 / _FACTOR if own > 2.0 else _FACTOR if own < 0.5 else 1.0
            group["lr_multiplier"] = min(
                1.0, max(_LEAST_MULTIPLIER, group["lr_multiplier"] * factor)
            )

    def step(
        self, terms: TensorDictBase | Mapping[str, Tensor], active: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Descend the sum of the ``loss_*`` terms once; return the gradient norms by component.

        Args:
            terms: losses and metrics, scalars or ``(S,)``.
            active: which seeds make the step, bool ``(S,)``; ``None`` lets all.

        Raises:
            NonFiniteError: a term or a gradient is not finite; no parameter has changed.
        """
        places: list[int] = [0] if self.seeds is None else list(range(len(self.seeds)))
        if active is not None and self.seeds is not None:
            places = active.nonzero().flatten().tolist()
        check_finite(terms, seeds=self.seeds, active=places)
        for parameter in self._parameters():
            parameter.grad = None
        losses = [value for key, value in terms.items() if key.startswith("loss_")]
        torch.stack(losses).sum().backward()
        norms = clip_gradients(self.groups, self.max_grad_norm, seeds=self.seeds, active=places)
        for at in places:
            if self.seeds is not None:  # each optimizer steps on its own rows of the stack
                own = [p for group in self.optimizers[at].param_groups for p in group["params"]]
                for parameter, stack in zip(own, self._parameters(), strict=True):
                    parameter.grad = None if stack.grad is None else stack.grad[at]
            self.optimizers[at].step()
        return {f"grad_norm/{name}": norm for name, norm in norms.items()}

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for named in self.groups.values() for parameter in named.values())


def clip_gradients(
    groups: Mapping[str, Mapping[str, nn.Parameter]],
    max_norm: float,
    *,
    seeds: Sequence[int] | None = None,
    active: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Clip the gradient of each component, of each seed, and return the norms before.

    Args:
        groups: parameters by name, by component; with seeds ``(S, ...)``.
        max_norm: largest norm of a component's gradient.
        seeds: the seeds on the leading axis; ``None`` without one.
        active: see :func:`check_finite`.

    Returns:
        Norms by component, scalars or ``(S,)``.

    Raises:
        NonFiniteError: a gradient is not finite; the message names component and parameters.
    """
    lead = () if seeds is None else (len(seeds),)
    norms = {}
    for component, parameters in groups.items():
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        if gradients:
            sizes = [torch.linalg.vector_norm(g.reshape(*lead, -1), dim=-1) for g in gradients]
            norms[component] = torch.linalg.vector_norm(torch.stack(sizes), dim=0)
    if norms and not bool(torch.stack(list(norms.values())).isfinite().all()):
        for component, norm in norms.items():
            for at, number in _rows(norm, seeds, active):
                if not number.isfinite():
                    found = (
                        (n, p.grad) for n, p in groups[component].items() if p.grad is not None
                    )
                    own = ((n, g if at is None else g[at]) for n, g in found)
                    bad = ", ".join(name for name, g in own if not g.isfinite().all())
                    raise NonFiniteError(
                        f"{_seed(at, seeds)}The gradient of the {component} network is not finite: "
                        f"{bad or 'its norm overflows'}.",
                        at,
                    )
    for component, norm in norms.items():
        factor = (max_norm / (norm + 1e-6)).clamp_max(1.0)
        for parameter in groups[component].values():
            if parameter.grad is not None:
                parameter.grad.mul_(unsqueeze_like(factor, parameter.grad))
    return norms


def check_finite(
    values: Mapping[str, Tensor] | TensorDictBase,
    *,
    seeds: Sequence[int] | None = None,
    active: Sequence[int] | None = None,
) -> None:
    """Raise a :class:`NonFiniteError` that names the first entry that is NaN or infinite.

    Args:
        values: what is checked, by name; with seeds ``(S, ...)``.
        seeds: the seeds on the leading axis; ``None`` without one.
        active: places of the seeds that count; ``None`` counts all.
    """
    if bool(torch.stack([value.isfinite().all() for value in values.values()]).all()):
        return
    for key, value in values.items():
        for at, row in _rows(value, seeds, active):
            if not bool(row.isfinite().all()):
                number = row.detach().mean().item()
                raise NonFiniteError(f"{_seed(at, seeds)}{key} is not finite: {number}.", at)


def _rows(
    value: Tensor, seeds: Sequence[int] | None, active: Sequence[int] | None
) -> list[tuple[int | None, Tensor]]:
    if seeds is None:
        return [(None, value)]
    return [(at, value[at]) for at in (range(len(seeds)) if active is None else active)]


def _seed(at: int | None, seeds: Sequence[int] | None) -> str:
    return "" if at is None or seeds is None else f"Seed {seeds[at]}: "


def _groups(policy: Any, critic: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    return policy.parameter_groups() | {"critic": dict(critic.named_parameters())}


def _check_betas(betas: Sequence[float]) -> tuple[float, float]:
    if isinstance(betas, str) or not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"adam_betas must be two numbers such as [0.9, 0.95], got {betas!r}.")
    first, second = (
        check_float(f"adam_betas[{i}]", beta, minimum=0.0, maximum=0.9999)
        for i, beta in enumerate(betas)
    )
    return first, second
