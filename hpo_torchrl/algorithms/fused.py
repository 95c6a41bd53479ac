"""What XLA computes of an update beside rollouts: evaluations, the loss of a batch, passes."""

from __future__ import annotations

import contextlib
import copy
import itertools
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
from hpo_torchrl.core.categorical import ACTION_MASK, unsqueeze_like
from hpo_torchrl.core.finite import all_finite
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
    """Whether XLA may compute a loss, as far as can be told beforehand: networks have one dtype."""
    if not isinstance(loss, HybridLossModule):
        return False
    networks = (loss.actor_network, loss.critic_network)
    return len({value.dtype for part in networks if part for value in part.parameters()}) == 1


class _Fused:
    """A loss whose data are plain tensors by number."""

    def __init__(self, loss: HybridLossModule, compiled: ByXla) -> None:
        self.loss, self._settings_of = loss, compiled.settings_of
        self._remembers: bool | None = None
        self._names_all = False
        read = [*loss.in_keys, *vars(loss.tensor_keys).values(), ACTION_MASK, ("collector", "mask")]
        self.keys = [key for key in read if isinstance(key, str) or key[0] not in read]

    def entries(self, data: TensorDictBase) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
        """Return what the loss reads of the data, by number, and the keys."""
        return _entries(data.select(*self.keys, strict=False) if self._names_all else data)

    def remembers(self, data: TensorDictBase) -> bool:
        """Return whether the loss changes when it is called: a trace would forget what it learned.

        Copies of the loss tell that, once, and whether it reads other entries than it names.
        """
        if self._remembers is None:
            probe, other = copy.deepcopy(self.loss), copy.deepcopy(self.loss)
            before = self._state_of(probe)
            with torch.no_grad():
                found = probe(data)
                with contextlib.suppress(KeyError):
                    named = other(data.select(*self.keys, strict=False))
                    self._names_all = all(torch.equal(v, named[k]) for k, v in found.items())
            # An adaptive cross term learns from gradients alone.
            adaptive = getattr(probe, "cross_term_weight", None) is not None
            self._remembers = adaptive or before != self._state_of(probe)
        return self._remembers

    def _state_of(self, loss: HybridLossModule) -> Any:
        return self._settings_of(loss), [buffer._version for buffer in loss.buffers()]


def _entries(data: TensorDictBase) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
    """Return the entries of a tensordict by number, and their keys."""
    keys = tuple(data.keys(True, True))
    return {str(at): data.get(key) for at, key in enumerate(keys)}, keys


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
        entries, keys = _entries(data)
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
        learner: has the networks.
        loss: the loss, with ``functional=False``.
        compiled: what XLA compiles by.
    """

    def __init__(self, learner: Learner, loss: HybridLossModule, compiled: ByXla) -> None:
        super().__init__(loss, compiled)
        networks, name = [learner.policy, learner.critic], type(loss).__name__
        self.scan = compiled.another(networks, f"the {name} of a batch")

    def __call__(self, batch: TensorDictBase) -> Mapping[str, Tensor]:
        """Return the terms, with their graph.

        Args:
            batch: the batch, ``(*B, T)``, with its graph.
        """
        if self.remembers(batch):
            return dict(self.loss(batch).items())
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
        learner: has the optimizers and their settings.
        loss: a loss of detached data, with ``functional=False``.
        compiled: what XLA compiles by.
    """

    def __init__(self, learner: Learner, loss: HybridLossModule, compiled: ByXla) -> None:
        super().__init__(loss, compiled)
        self.learner, self.held = learner, _Held(learner, loss)
        self.adam = _FlatAdam(learner.optimization)
        self.scan = compiled.another([], f"the passes of {type(learner).__name__}")

    def __call__(
        self,
        data: TensorDictBase,
        rows: Tensor,
        active: Tensor | None = None,
        resting: str | None = None,
    ) -> dict[str, Tensor]:
        """Make the steps; return gradient norms and terms of all of them, ``(K,)`` or ``(K, S)``.

        Args:
            data: the data, ``(N,)``, of several seeds ``(S, N)``.
            rows: the minibatches, ``(K, n)`` or ``(K, S, n)``.
            active: which seeds make the steps, bool ``(S,)``; ``None`` lets all.
            resting: the component that makes no steps.

        Raises:
            NonFiniteError: a term, a gradient or a weight is not finite; nothing has changed.
        """
        entries, keys = self.entries(data)
        masks, adam, limit = self.loss.masks(data), self.adam, self.learner.max_grad_norm
        seeds = (torch.arange(number).unsqueeze(-1) for number in data.shape[:-1])
        places: Any = (*seeds, rows)
        moving = torch.ones(data.shape[:-1], dtype=torch.bool) if active is None else active
        inputs = (
            {at: value[places] for at, value in entries.items()},
            {name: _places(mask, mask[places]) for name, mask in masks.items()},
            adam.corrections(len(rows)),
        )
        names = {id(value): name for name, value in self.held.named_parameters()}
        buffers = {f"buffer {name}": value for name, value in self.held.named_buffers()}

        def step(carried: dict[str, Tensor], given: Any) -> Any:
            entries, places, corrections = given
            weights = [value.requires_grad_() for value in adam.split(carried["weight"])]
            own = {name.removeprefix("buffer "): carried[name] for name in buffers}
            own |= {names[id(p)]: w for p, w in zip(adam.parameters, weights, strict=True)}
            part = _data(keys, entries, rows.shape[1:])
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
            carried = buffers | adam.state() | {"moving": moving}
            after, found = self.scan(step, carried, inputs, settings)
            self._check(found, moving)
            adam.keep(after, found.pop(_MOVED)[-1], len(rows), moving)
        return found

    def _check(self, found: Mapping[str, Tensor], moving: Tensor) -> None:
        if all_finite(value for key, value in found.items() if key != _MOVED):
            return
        seeds = self.learner.seeds
        place: dict[str, Any] = {"seeds": seeds}
        place["active"] = None if seeds is None else moving.nonzero().flatten().tolist()
        values = {key: value.movedim(0, -1) for key, value in found.items()}
        stop_unless_finite({k: v for k, v in values.items() if k.startswith("loss_")}, **place)
        norms = {key: value for key, value in values.items() if key.startswith("grad_norm/")}
        stop_unless_finite(norms, label="The gradient's norm, {},", **place)


class _FlatAdam:
    """The weights of all components, and what Adam remembers of them, as one tensor each.

    They are ``(N,)``, of several seeds ``(S, N)``; what is said of the P parameters is ``(P,)`` or
    ``(S, P)``.

    Args:
        optimization: has the parameters and the optimizers.
    """

    def __init__(self, optimization: Optimization) -> None:
        self.optimizers, self.seeds = optimization.optimizers, optimization.seeds
        self.groups = optimization.groups
        self.lead = () if self.seeds is None else (len(self.seeds),)
        self.parameters = [p for own in self.groups.values() for p in own.values()]
        self.names = [name for own in self.groups.values() for name in own]
        self.components = [component for component, own in self.groups.items() for _ in own]
        self.sizes = [p.numel() // math.prod(self.lead) for p in self.parameters]
        # Which parameter a weight is of.
        self.place = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))
        defaults = self.optimizers[0].defaults
        self.settings = defaults["betas"], defaults["eps"]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return what a flat tensor says of each parameter."""
        parts = zip(flat.detach().split(self.sizes, -1), self.parameters, strict=True)
        return [part.reshape(parameter.shape) for part, parameter in parts]

    def flat(self, values: Sequence[Tensor]) -> Tensor:
        """Return tensors of the shapes of all parameters as one."""
        return torch.cat([value.detach().reshape(*self.lead, -1) for value in values], -1)

    def state(self) -> dict[str, Tensor]:
        """Return weights and moments."""
        moments = {kind: self._remembered(known) for kind, known in _MOMENTS.items()}
        return {"weight": self.flat(self.parameters)} | moments

    def corrections(self, number: int) -> tuple[Tensor, Tensor]:
        """Return what the moments are divided by in the steps to come, ``(number, P)``.

        They are powers, which XLA would compute for each weight anew.

        Returns:
            The learning rate over what the first moment has of its weight in the end, and the root
            of what the second has.
        """
        rates = [
            [group["lr"] for group in optimizer.param_groups for _ in group["params"]]
            for optimizer in self.optimizers
        ]
        ahead = torch.arange(1, number + 1).view(-1, *(1 for _ in self.lead), 1)
        ahead = ahead + self._remembered("step").double()
        first, second = (1.0 - beta**ahead for beta in self.settings[0])
        dtype = self.parameters[0].dtype
        own = torch.tensor(rates, dtype=torch.float64).reshape(*self.lead, -1)
        return (own / first).to(dtype), second.sqrt().to(dtype)

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
            carried: the state, and which seeds are ``"moving"``.
            slopes: the gradients of the parameters; ``None`` makes no step.
            corrections: those of the step.
            limit: largest norm of a component's gradient.
            resting: the component that makes no step.

        Returns:
            The state after the step; gradient norms, and which parameters have one.
        """
        known = zip(self.components, slopes, strict=True)
        gradients = [None if component == resting else slope for component, slope in known]
        found, factors = {}, {}
        for component in self.groups:
            own = zip(self.components, gradients, strict=True)
            sizes = [
                torch.linalg.vector_norm(slope.reshape(*self.lead, -1), dim=-1)
                for owner, slope in own
                if owner == component and slope is not None
            ]
            if sizes:
                norm = torch.linalg.vector_norm(torch.stack(sizes), dim=0)
                found[f"grad_norm/{component}"] = norm
                factors[component] = (limit / (norm + 1e-6)).clamp_max(1.0)
        rows = zip(self.parameters, gradients, self.components, strict=True)
        gradient = self.flat(
            [
                torch.zeros_like(parameter)
                if slope is None
                else slope * unsqueeze_like(factors[component], slope)
                for parameter, slope, component in rows
            ]
        )
        (first, second), eps = self.settings
        moved = torch.tensor([slope is not None for slope in gradients])
        moves = moved[self.place] & carried["moving"].unsqueeze(-1)
        size, root = (value[..., self.place] for value in corrections)
        mean = carried["mean"].lerp(gradient, 1 - first)
        square = second * carried["square"] + (1 - second) * gradient.square()
        weight = carried["weight"] - size * mean / (square.sqrt() / root + eps)
        after = {"weight": weight, "mean": mean, "square": square}
        after = {name: torch.where(moves, value, carried[name]) for name, value in after.items()}
        return after, found | {_MOVED: moved}

    def keep(self, after: Mapping[str, Tensor], moved: Tensor, number: int, moving: Tensor) -> None:
        """Write what a number of steps have led to into parameters and optimizers.

        Args:
            after: the state.
            moved: which parameters have a gradient, bool ``(P,)``.
            number: the number of steps.
            moving: which seeds have made them.

        Raises:
            NonFiniteError: a weight is not finite; nothing has changed.
        """
        weights, *moments = (self.split(after[kind]) for kind in ("weight", *_MOMENTS))
        if not all_finite([after["weight"]]):
            label = "After the optimizer's step the weight {}"
            named = dict(zip(self.names, weights, strict=True))
            stop_unless_finite(named, seeds=self.seeds, label=label)
        places, values, counts = list[Tensor](), list[Tensor](), list[Tensor]()
        moves = moved.tolist()
        places += itertools.compress(self.parameters, moves)
        values += itertools.compress(weights, moves)
        seeds: list[Any] = [...] if self.seeds is None else moving.nonzero().flatten().tolist()
        for at in seeds:
            optimizer = self.optimizers[0 if at is ... else at]
            rows = zip(_parameters(optimizer), *moments, strict=True)
            for parameter, *own in itertools.compress(rows, moves):
                state = optimizer.state[parameter]
                for known in ("step", *_MOMENTS.values()):
                    if known not in state:
                        state[known] = _blank(parameter, known)
                counts.append(state["step"])
                places += [state[known] for known in _MOMENTS.values()]
                values += [value[at] for value in own]
        torch._foreach_copy_(places, values)
        torch._foreach_add_(counts, number)

    def _remembered(self, name: str) -> Tensor:
        """Return what Adam remembers under a name, zeros at first."""
        found = []
        for optimizer in self.optimizers:
            for parameter in _parameters(optimizer):
                known = optimizer.state.get(parameter, {}).get(name)
                found.append((_blank(parameter, name) if known is None else known).reshape(-1))
        return torch.cat(found).reshape(*self.lead, -1)


def _blank(parameter: Tensor, name: str) -> Tensor:
    """Return what Adam remembers of a parameter, under a name, before its first step."""
    return torch.zeros(()) if name == "step" else torch.zeros_like(parameter)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
