"""The networks of several learners as one, and the gradient steps of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.optim.adam import adam

from hpo_torchrl.algorithms.base import NonFiniteError
from hpo_torchrl.algorithms.learner import Learner
from hpo_torchrl.modules.stacked import ModuleStack

# What Adam remembers of a parameter, in the order of its functional form.
_STATE = ("exp_avg", "exp_avg_sq", "step")
# What a group of its parameters says that is read, or has nothing to do with a step.
_SETTINGS = ("params", "lr", "betas", "eps", "fused", "share")


class NonFiniteMemberError(NonFiniteError):
    """A :class:`NonFiniteError` of one member, the one of number ``member``."""

    def __init__(self, message: str, member: int) -> None:
        super().__init__(message)
        self.member = member


class StackedNetworks:
    """Policies and critics of S learners as one of each, with the steps of all their optimizers.

    Args:
        members: the learners, of one configuration.
        seeds: what they are called in errors.

    Attributes:
        policy: the policies as one, on inputs whose first dimension is S; see
            :class:`~hpo_torchrl.modules.stacked.ModuleStack`.
        critic: the critics, likewise.
    """

    def __init__(self, members: Sequence[Learner], seeds: Sequence[int]) -> None:
        self.members, self.seeds = members, seeds
        self._policies = ModuleStack([member.policy for member in members])
        self._critics = ModuleStack([member.critic for member in members])
        self.policy, self.critic = self._policies.module, self._critics.module
        self._own = [
            [*member.policy.parameters(), *member.critic.parameters()] for member in members
        ]
        places = {id(parameter): at for at, parameter in enumerate(self._own[0])}
        self._components = {
            component: [places[id(parameter)] for parameter in named.values()]
            for component, named in members[0].groups.items()
        }

    def load(self, active: Sequence[int]) -> None:
        """Let the networks stand for these members, as they are now."""
        self._policies.load(active)
        self._critics.load(active)

    def step(self, active: Sequence[int], terms: TensorDictBase) -> dict[str, list[float]]:
        """Descend each member's sum of ``loss_*`` once; return gradient norms by component.

        Raises:
            NonFiniteError: a term or a gradient is not finite; no parameter has changed.
        """
        self.check({key: value.detach() for key, value in terms.items()}, active)
        losses = [value for key, value in terms.items() if key.startswith("loss_")]
        torch.stack(losses).sum().backward()
        norms, gradients = self._clip(active)
        for row, at in enumerate(active):
            for parameter, stacked in zip(self._own[at], gradients, strict=True):
                parameter.grad = None if stacked is None else stacked[row]
        step_together([self.members[at].optimizer for at in active])
        self.load(active)
        return norms

    def _clip(
        self, active: Sequence[int]
    ) -> tuple[dict[str, list[float]], list[Sequence[Tensor] | None]]:
        """Clip each component of each member; return the norms before, and all gradients."""
        limit = self.members[0].max_grad_norm
        stacks = (*self._policies.parameters, *self._critics.parameters)
        gradients = [parameter.grad for parameter in stacks]
        norms = {}
        for component, places in self._components.items():
            found = [g for g in map(gradients.__getitem__, places) if g is not None]
            if not found:
                continue
            norm = torch.stack([g.flatten(1).square().sum(1) for g in found]).sum(0).sqrt()
            self.check({f"the gradient of the {component} network": norm}, active)
            factor = (limit / (norm + 1e-6)).clamp_max(1.0)
            for gradient in found:
                gradient.mul_(beside(factor, gradient))
            norms[component] = norm.tolist()
        return norms, [None if g is None else g.unbind(0) for g in gradients]

    def check(self, values: Mapping[str, Tensor], active: Sequence[int]) -> None:
        """Raise a :class:`NonFiniteError` that names the first value ``(S, ...)`` that is not."""
        finite = torch.stack(
            [value.isfinite().reshape(len(active), -1).all(1) for value in values.values()]
        )
        if bool(finite.all()):
            return
        for key, row in zip(values, finite.tolist(), strict=True):
            for at, good in zip(active, row, strict=True):
                if not good:
                    raise NonFiniteMemberError(
                        f"Of seed {self.seeds[at]}, {key} is not finite.", at
                    )


def step_together(optimizers: Sequence[torch.optim.Adam]) -> None:
    """Let all optimizers make their step, those of one learning rate in one call.

    Their state is theirs, as after a step of each. One that has made no step yet makes it itself,
    as does one that is more than plain Adam.
    """
    together: dict[tuple, list[list[Any]]] = {}
    for optimizer in optimizers:
        groups = optimizer.param_groups
        held = [p for group in groups for p in group["params"] if p.grad is not None]
        if not (_is_plain(optimizer) and all(optimizer.state.get(p) for p in held)):
            optimizer.step()
            continue
        for group in groups:
            kind = (group["lr"], *group["betas"], group["eps"], group["fused"])
            lists = together.setdefault(kind, [[] for _ in range(5)])
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = optimizer.state[parameter]
                    row = (parameter, parameter.grad, *(state[name] for name in _STATE))
                    for values, value in zip(lists, row, strict=True):
                        values.append(value)
    for (rate, beta1, beta2, eps, fused), lists in together.items():
        parameters, gradients, means, squares, steps = lists
        with torch.no_grad():
            adam(
                parameters,
                gradients,
                means,
                squares,
                [],
                steps,
                fused=fused,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=rate,
                weight_decay=0.0,
                eps=eps,
                maximize=False,
            )


def _is_plain(optimizer: torch.optim.Adam) -> bool:
    """Whether an optimizer's step is Adam with the settings that are read of its groups."""
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    others = (
        value
        for group in optimizer.param_groups
        for name, value in group.items()
        if name not in _SETTINGS  # weight_decay, amsgrad, maximize, ...: all off by default
    )
    return type(optimizer) is torch.optim.Adam and not hooked and not any(others)


def beside(value: Tensor, like: Tensor) -> Tensor:
    """Give ``(S,)`` the dimensions of what it is multiplied with."""
    return value.reshape(-1, *(1,) * (like.ndim - 1))
