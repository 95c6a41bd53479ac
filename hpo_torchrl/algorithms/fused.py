"""Minibatch steps of a loss, with Adam in them, as one function of XLA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.func import functional_call

from hpo_torchrl.algorithms.optimization import stop_unless_finite
from hpo_torchrl.collectors.compiling import Scanned
from hpo_torchrl.core.categorical import ACTION_MASK
from hpo_torchrl.objectives import HybridLossModule

if TYPE_CHECKING:
    from hpo_torchrl.algorithms.learner import Learner

_STATE = {"mean": "exp_avg", "square": "exp_avg_sq", "steps": "step"}


class _Held(nn.Module):
    """A loss as a plain module, whose weights can be exchanged; TorchRL names its own otherwise."""

    def __init__(self, loss: HybridLossModule) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, data: TensorDictBase) -> TensorDictBase:
        return self.loss(data)


class FusedSteps:
    """The steps of a pass over detached data: losses, gradients, clipping and Adam in one loop.

    It does what :meth:`Optimization.step` does for each minibatch in turn, to rounding; what it
    finds is checked once for all of them, and before anything has changed.

    Args:
        learner: has the optimizer and its settings; one seed.
        loss: a loss of detached data, with ``functional=False``.
        compiled: what its rollouts are compiled by.
    """

    def __init__(self, learner: Learner, loss: HybridLossModule, compiled: Scanned) -> None:
        self.learner, self.held = learner, _Held(loss)
        self.scan = compiled.another([], f"the passes of {type(learner).__name__}")
        keys = loss.tensor_keys
        self.keys = [*loss.in_keys, *vars(keys).values(), ACTION_MASK, ("collector", "mask")]

    def __call__(
        self, data: TensorDictBase, rows: Tensor, resting: str | None
    ) -> dict[str, Tensor]:
        """Make the steps; return the gradient norms and the terms of the last one.

        Args:
            data: the data, ``(N,)``.
            rows: the minibatches, ``(K, n)``.
            resting: the component that makes no steps.

        Raises:
            NonFiniteError: a term, a gradient or a weight is not finite; nothing has changed.
        """
        read = {key: data.get(key, None) for key in self.keys}
        inputs = {
            str(at): (value[rows], key)
            for at, (key, value) in enumerate(read.items())
            if value is not None
        }
        names = {at: key for at, (_, key) in inputs.items()}
        groups = self.learner.optimization.groups
        own = {id(value): name for name, value in self.held.named_parameters()}
        carried = {f"buffer {name}": value for name, value in self.held.named_buffers()}
        (optimizer,) = self.learner.optimization.optimizers
        for component, group in zip(groups, optimizer.param_groups, strict=True):
            carried[f"rate {component}"] = torch.tensor(group["lr"], dtype=torch.float64)
            for parameter in groups[component].values():
                name = own[id(parameter)]
                carried[f"weight {name}"] = parameter
                for kind, known in _STATE.items():
                    state = optimizer.state.get(parameter, {})
                    blank = torch.zeros(()) if kind == "steps" else torch.zeros_like(parameter)
                    carried[f"{kind} {name}"] = state.get(known, blank)
        members = {
            component: [own[id(parameter)] for parameter in parameters.values()]
            for component, parameters in groups.items()
            if component != resting
        }
        betas, eps = optimizer.defaults["betas"], optimizer.defaults["eps"]

        def step(carried: dict[str, Tensor], given: Any) -> Any:
            part = TensorDict({names[at]: value for at, value in given.items()}, [rows.shape[-1]])
            weights = {
                name: carried[f"weight {name}"].detach().requires_grad_() for name in own.values()
            }
            buffers = {
                name.removeprefix("buffer "): value
                for name, value in carried.items()
                if name.startswith("buffer ")
            }
            with torch.enable_grad():
                terms = dict(functional_call(self.held, {**weights, **buffers}, (part,)).items())
                losses = [value for key, value in terms.items() if key.startswith("loss_")]
                total = torch.stack(losses).sum()
                slopes = torch.autograd.grad(total, [*weights.values()], allow_unused=True)
            found = {key: value.detach() for key, value in terms.items()}
            known = dict(zip(weights, slopes, strict=True))
            after = dict(carried)
            for component, parts in members.items():
                gradients = {n: known[n] for n in parts if known[n] is not None}
                if not gradients:
                    continue
                sizes = [torch.linalg.vector_norm(g) for g in gradients.values()]
                norm = torch.linalg.vector_norm(torch.stack(sizes))
                found[f"grad_norm/{component}"] = norm
                factor = (self.learner.max_grad_norm / (norm + 1e-6)).clamp_max(1.0)
                for name, gradient in gradients.items():
                    after |= _adam(carried, name, gradient * factor, component, betas, eps)
            return after, found

        settings = (resting, self.learner.max_grad_norm, betas, eps, tuple(names.values()))
        given = {at: value for at, (value, _) in inputs.items()}
        with torch.no_grad():
            after, found = self.scan(step, carried, given, settings)
            self._check(found, after)
            for component, parameters in groups.items():
                for parameter in parameters.values() if component in members else ():
                    name = own[id(parameter)]
                    if bool(after[f"steps {name}"] > carried[f"steps {name}"]):
                        parameter.copy_(after[f"weight {name}"])
                        optimizer.state[parameter] = {  # which Adam will write to
                            known: after[f"{kind} {name}"].clone() for kind, known in _STATE.items()
                        }
        return {key: value[-1] for key, value in found.items()}

    def _check(self, found: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        losses = {key: value for key, value in found.items() if key.startswith("loss_")}
        norms = {key: value for key, value in found.items() if key.startswith("grad_norm/")}
        stop_unless_finite(losses)
        stop_unless_finite(norms, label="The gradient's norm, {},")
        weights = {key: value for key, value in after.items() if key.startswith("weight ")}
        stop_unless_finite(weights, label="After the optimizer's step {}")


def _adam(
    carried: Mapping[str, Tensor],
    name: str,
    gradient: Tensor,
    component: str,
    betas: tuple[float, float],
    eps: float,
) -> dict[str, Tensor]:
    """Return a weight and its moments after a step (Kingma & Ba 2015, algorithm 1)."""
    steps = carried[f"steps {name}"] + 1
    mean = carried[f"mean {name}"].lerp(gradient, 1 - betas[0])
    square = betas[1] * carried[f"square {name}"] + (1 - betas[1]) * gradient.square()
    first, second = (1 - beta ** steps.double() for beta in betas)
    size = (carried[f"rate {component}"] / first).to(gradient.dtype)
    spread = square.sqrt() / second.sqrt().to(gradient.dtype) + eps
    weight = carried[f"weight {name}"] - size * mean / spread
    return {
        f"weight {name}": weight,
        f"mean {name}": mean,
        f"square {name}": square,
        f"steps {name}": steps,
    }
