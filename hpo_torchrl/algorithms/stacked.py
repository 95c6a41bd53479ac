"""The networks of several learners as one, and the gradient steps of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor

from hpo_torchrl.algorithms.base import NonFiniteError
from hpo_torchrl.algorithms.learner import Learner
from hpo_torchrl.modules.stacked import ModuleStack


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
        norms = self._clip(active)
        for at in active:
            self.members[at].optimizer.step()
        self.load(active)
        return norms

    def _clip(self, active: Sequence[int]) -> dict[str, list[float]]:
        """Clip each component of each member, and hand the gradients to the members."""
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
        for place, whole in enumerate(gradients):
            for row, at in enumerate(active):
                self._own[at][place].grad = None if whole is None else whole[row]
        return norms

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


def beside(value: Tensor, like: Tensor) -> Tensor:
    """Give ``(S,)`` the dimensions of what it is multiplied with."""
    return value.reshape(-1, *(1,) * (like.ndim - 1))
