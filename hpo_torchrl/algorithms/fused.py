"""What XLA computes of an update beside rollouts: evaluations, the loss of a batch, passes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from hpo_torchrl.algorithms.optimization import Optimization, stop_unless_finite
from hpo_torchrl.collectors.compiling import ByXla
from hpo_torchrl.core.categorical import ACTION_MASK
from hpo_torchrl.objectives import HybridLossModule

if TYPE_CHECKING:
    from hpo_torchrl.algorithms.learner import Learner
    from hpo_torchrl.collectors.scan import Scan

_MOVED = "which parameters have moved"
_MOMENTS = {"mean": "exp_avg", "square": "exp_avg_sq"}  # as torch's Adam calls them


class _Held(nn.Module):
    """A loss as a function of the networks, which it may hold more than once."""

    def __init__(self, learner: Learner, loss: HybridLossModule) -> None:
        super().__init__()
        self.policy, self.critic, self.called = learner.policy, learner.critic, [loss]

    def forward(self, data: TensorDictBase) -> TensorDictBase:
        (loss,) = self.called
        return loss(data)


def computable(loss: Any) -> bool:
    """Whether a loss is a function of its data and networks, of one dtype: it remembers nothing."""
    if (
        not isinstance(loss, HybridLossModule)
        or getattr(loss, "cross_term_weight", None) is not None
    ):
        return False
    networks = (loss.actor_network, loss.critic_network)
    return len({value.dtype for part in networks if part for value in part.parameters()}) == 1


class _Fused:
    """A loss whose data are plain tensors by number."""

    def __init__(self, loss: HybridLossModule) -> None:
        self.loss = loss
        keys = loss.tensor_keys
        self.keys = [*loss.in_keys, *vars(keys).values(), ACTION_MASK, ("collector", "mask")]

    def entries(self, data: TensorDictBase) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
        """Return what the loss reads of the data, by number, and the keys."""
        read = {key: data.get(key, None) for key in self.keys}
        found = {key: value for key, value in read.items() if value is not None}
        return {str(at): value for at, value in enumerate(found.values())}, tuple(found)


def _data(keys: Sequence[Any], entries: Mapping[str, Tensor], shape: Sequence[int]) -> TensorDict:
    """Return the tensordict of entries by the number of their key."""
    return TensorDict({keys[int(at)]: value for at, value in entries.items()}, shape)


@contextlib.contextmanager
def _known(loss: HybridLossModule, places: Mapping[str, Tensor]) -> Iterator[None]:
    """Tell a loss where its masks are true."""
    loss.places = places
    try:
        yield
    finally:
        loss.places = None


def _places(whole: Tensor, parts: Tensor) -> Tensor:
    """Return the places where masks are true, and then others: of each ``(K, size)``.

    Sizes are few, since each is compiled, and the same for all parts of one mask, drawn at random.

    Args:
        whole: the mask.
        parts: K parts of it, ``(K, n)``.
    """
    size, share = parts.shape[-1], float(whole.double().mean())
    most = int(parts.sum(-1).max())
    if len(parts) > 1:  # beyond six standard deviations none lies
        most = max(most, round(size * share + 6.0 * math.sqrt(size * share * (1.0 - share))))
    sizes = [
        math.ceil(part * size / 2**k) for k in range(size.bit_length() + 1) for part in (1.0, 0.75)
    ]
    enough = min(each for each in sizes if each >= min(most, size))
    order = parts.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return order[..., :enough]


class Evaluations:
    """Functions of networks and data, one after another, without a graph.

    Args:
        modules: the networks.
        compiled: what XLA compiles by.
    """

    def __init__(self, modules: Sequence[nn.Module], compiled: ByXla) -> None:
        self.modules, self.compiled = modules, compiled
        self.scans: dict[Any, Scan] = {}

    @torch.no_grad()
    def __call__(
        self, function: Callable[..., Tensor], data: TensorDictBase, *given: Any
    ) -> Tensor:
        """Return ``function(data, *given)``.

        Args:
            function: of a module, so that it is known again; what it returns depends on its
                arguments and on the networks.
            data: a tensordict, all of which is read.
            given: further tensors.
        """
        keys = tuple(data.keys(True, True))
        entries = {str(at): data.get(key) for at, key in enumerate(keys)}
        name = function.__qualname__
        if name not in self.scans:
            self.scans[name] = self.compiled.another(self.modules, name)

        def step(_: Any, given: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            own, others = given
            return {}, {"found": function(_data(keys, own, data.shape), *others)}

        once = tree_map(lambda value: value.unsqueeze(0), (entries, given))
        return self.scans[name](step, {}, once, (data.shape, keys))[1]["found"][0]


class FusedLoss(_Fused):
    """The terms of a loss of a whole batch, and their gradients, as two functions of XLA.

    Terms and gradients agree with those of the loss itself to rounding.

    Args:
        learner: has the networks; one seed.
        loss: the loss, with ``functional=False``.
        compiled: what XLA compiles by.
    """

    def __init__(self, learner: Learner, loss: HybridLossModule, compiled: ByXla) -> None:
        super().__init__(loss)
        networks, name = [learner.policy, learner.critic], type(loss).__name__
        self.scan = compiled.another(networks, f"the {name} of a batch")

    def __call__(self, batch: TensorDictBase) -> Mapping[str, Tensor]:
        """Return the terms, with their graph.

        Args:
            batch: the batch, ``(*B, T)``, with its graph.
        """
        self.loss.share_discount(batch)
        entries, keys = self.entries(batch)
        attached = {at: value for at, value in entries.items() if value.requires_grad}
        others = {at: value.unsqueeze(0) for at, value in entries.items() if at not in attached}
        masks = self.loss.masks(batch)
        places = {name: _places(mask, mask.unsqueeze(0)) for name, mask in masks.items()}

        def step(attached: dict[str, Tensor], given: Any) -> Any:
            others, places = given
            with _known(self.loss, places):
                terms = self.loss(_data(keys, {**attached, **others}, batch.shape))
            return attached, dict(terms.items())

        _, terms = self.scan(step, attached, (others, places), (batch.shape, keys))
        return {key: value[0] for key, value in terms.items()}


class FusedSteps(_Fused):
    """The steps of a pass over detached data: losses, gradients, clipping and Adam in one loop.

    It does what :meth:`Optimization.step` does for each minibatch in turn, to rounding; what it
    finds is checked once for all of them, and before anything has changed.

    Args:
        learner: has the optimizer and its settings; one seed.
        loss: a loss of detached data, with ``functional=False``.
        compiled: what XLA compiles by.
    """

    def __init__(self, learner: Learner, loss: HybridLossModule, compiled: ByXla) -> None:
        super().__init__(loss)
        self.learner, self.held = learner, _Held(learner, loss)
        self.adam = _FlatAdam(learner.optimization)
        self.scan = compiled.another([], f"the passes of {type(learner).__name__}")

    def __call__(
        self, data: TensorDictBase, rows: Tensor, resting: str | None = None
    ) -> dict[str, Tensor]:
        """Make the steps; return gradient norms and terms of all of them, ``(K,)`` each.

        Args:
            data: the data, ``(N,)``.
            rows: the minibatches, ``(K, n)``.
            resting: the component that makes no steps.

        Raises:
            NonFiniteError: a term, a gradient or a weight is not finite; nothing has changed.
        """
        entries, keys = self.entries(data)
        masks, adam, limit = self.loss.masks(data), self.adam, self.learner.max_grad_norm
        inputs = (
            {at: value[rows] for at, value in entries.items()},
            {name: _places(mask, mask[rows]) for name, mask in masks.items()},
            adam.corrections(len(rows)),
        )
        names = {id(value): name for name, value in self.held.named_parameters()}
        buffers = {f"buffer {name}": value for name, value in self.held.named_buffers()}

        def step(carried: dict[str, Tensor], given: Any) -> Any:
            entries, places, corrections = given
            weights = [value.requires_grad_() for value in adam.split(carried["weight"])]
            own = {name.removeprefix("buffer "): carried[name] for name in buffers}
            own |= {names[id(p)]: w for p, w in zip(adam.parameters, weights, strict=True)}
            part = _data(keys, entries, rows.shape[-1:])
            with torch.enable_grad(), _known(self.loss, places):
                terms = dict(functional_call(self.held, own, (part,)).items())
                losses = [value for key, value in terms.items() if key.startswith("loss_")]
                total = torch.stack(losses).sum()
                slopes = torch.autograd.grad(total, weights, allow_unused=True)
            found = {key: value.detach() for key, value in terms.items()}
            after, norms = adam.step(carried, slopes, corrections, limit, resting)
            return carried | after, found | norms

        with torch.no_grad():
            settings = (resting, limit, adam.settings, keys)
            after, found = self.scan(step, buffers | adam.state(), inputs, settings)
            stop_unless_finite({key: v for key, v in found.items() if key.startswith("loss_")})
            norms = {key: value for key, value in found.items() if key.startswith("grad_norm/")}
            stop_unless_finite(norms, label="The gradient's norm, {},")
            adam.keep(after, found.pop(_MOVED)[-1], len(rows))
        return found


class _FlatAdam:
    """The weights of all components, and what Adam remembers of them, as one tensor each.

    Args:
        optimization: has the parameters and the optimizer; one seed.
    """

    def __init__(self, optimization: Optimization) -> None:
        (self.optimizer,) = optimization.optimizers
        self.groups = optimization.groups
        self.parameters = [p for own in self.groups.values() for p in own.values()]
        self.names = [name for own in self.groups.values() for name in own]
        self.components = [component for component, own in self.groups.items() for _ in own]
        self.sizes = [parameter.numel() for parameter in self.parameters]
        # Which parameter a weight is of.
        self.place = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))
        self.settings = self.optimizer.defaults["betas"], self.optimizer.defaults["eps"]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return what a flat tensor says of each parameter."""
        parts = zip(flat.detach().split(self.sizes), self.parameters, strict=True)
        return [part.view_as(parameter) for part, parameter in parts]

    def state(self) -> dict[str, Tensor]:
        """Return weights and moments, ``(N,)`` each."""
        moments = {kind: self._remembered(known) for kind, known in _MOMENTS.items()}
        return {"weight": _flat(self.parameters)} | moments

    def corrections(self, number: int) -> tuple[Tensor, Tensor]:
        """Return what the moments are divided by in the steps to come, ``(number, P)``.

        They are powers, which XLA would compute for each weight anew.

        Returns:
            The learning rate over what the first moment has of its weight in the end, and the root
            of what the second has.
        """
        groups = zip(self.groups.values(), self.optimizer.param_groups, strict=True)
        rates = [group["lr"] for own, group in groups for _ in own]
        ahead = torch.arange(1, number + 1).unsqueeze(-1) + self._remembered("step").double()
        first, second = (1.0 - beta**ahead for beta in self.settings[0])
        found = torch.tensor(rates, dtype=torch.float64) / first, second.sqrt()
        return found[0].to(self.parameters[0].dtype), found[1].to(self.parameters[0].dtype)

    def step(
        self,
        carried: Mapping[str, Tensor],
        slopes: Sequence[Tensor | None],
        corrections: Sequence[Tensor],
        limit: float,
        resting: str | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Clip gradients and make a step (Kingma & Ba 2015, algorithm 1).

        Args:
            carried: the state.
            slopes: the gradients of the parameters; ``None`` makes no step.
            corrections: those of the step.
            limit: largest norm of a component's gradient.
            resting: the component that makes no step.

        Returns:
            The state after the step; gradient norms, and which parameters have moved.
        """
        gradients = [
            None if component == resting else slope
            for component, slope in zip(self.components, slopes, strict=True)
        ]
        found, factors = {}, {}
        for component in self.groups:
            own = zip(self.components, gradients, strict=True)
            norms = [
                torch.linalg.vector_norm(g) for c, g in own if c == component and g is not None
            ]
            if norms:
                norm = torch.linalg.vector_norm(torch.stack(norms))
                found[f"grad_norm/{component}"] = norm
                factors[component] = (limit / (norm + 1e-6)).clamp_max(1.0)
        gradient = _flat(
            [
                torch.zeros_like(parameter) if slope is None else slope * factors[component]
                for parameter, slope, component in zip(
                    self.parameters, gradients, self.components, strict=True
                )
            ]
        )
        (first, second), eps = self.settings
        moved = torch.tensor([slope is not None for slope in gradients])
        moves, size, root = (value[self.place] for value in (moved, *corrections))
        mean = carried["mean"].lerp(gradient, 1 - first)
        square = second * carried["square"] + (1 - second) * gradient.square()
        weight = carried["weight"] - size * mean / (square.sqrt() / root + eps)
        after = {"weight": weight, "mean": mean, "square": square}
        after = {name: torch.where(moves, value, carried[name]) for name, value in after.items()}
        return after, found | {_MOVED: moved}

    def keep(self, after: Mapping[str, Tensor], moved: Tensor, number: int) -> None:
        """Write what a number of steps have led to into parameters and optimizer.

        Raises:
            NonFiniteError: a weight is not finite; nothing has changed.
        """
        weights, *moments = (self.split(after[kind]) for kind in ("weight", *_MOMENTS))
        label = "After the optimizer's step the weight {}"
        stop_unless_finite(dict(zip(self.names, weights, strict=True)), label=label)
        rows = zip(self.parameters, weights, *moments, moved.tolist(), strict=True)
        for parameter, weight, *remembered, moves in rows:
            if moves:
                parameter.copy_(weight)
                state = self.optimizer.state[parameter]
                state.setdefault("step", torch.zeros(())).add_(number)
                for known, value in zip(_MOMENTS.values(), remembered, strict=True):
                    state.setdefault(known, torch.empty_like(parameter)).copy_(value)

    def _remembered(self, name: str) -> Tensor:
        """Return what Adam remembers under a name, zeros at first."""
        known = [self.optimizer.state.get(p, {}).get(name) for p in self.parameters]
        if name == "step":
            return torch.stack([torch.zeros(()) if value is None else value for value in known])
        pairs = zip(self.parameters, known, strict=True)
        return _flat([torch.zeros_like(p) if value is None else value for p, value in pairs])


def _flat(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.detach().reshape(-1) for value in values])
