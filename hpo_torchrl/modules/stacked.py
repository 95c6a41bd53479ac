"""Several networks of one structure, evaluated as one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torchrl.modules import MLP

from hpo_torchrl.modules.layers import ACTIVATIONS, hooked
from hpo_torchrl.modules.network import HybridNetwork
from hpo_torchrl.modules.policy import HybridPolicy

# Rows of each network up to which one product for all is faster on a CPU than one for each: beyond,
# the hidden layers of all together no longer fit the cache.
_FEW_ROWS = 256


class ModuleStack:
    """S modules of one structure as a single one, on inputs whose first dimension is S.

    Its parameters are copies of the members' own, stacked, in the order of theirs. :meth:`load`
    renews them, and the gradients that land on them are the members' gradients, stacked. Buffers
    are those of the first member at the start and must stay as they are: a network that changes
    its own, such as batch normalisation in training, is not for stacks.

    Args:
        modules: the members.

    Attributes:
        module: the module that stands for all: a :class:`HybridPolicy` of policies, a
            ``TensorDictModule`` of such, else a module.

    Raises:
        ValueError: there are none, their structures or sizes differ, or a buffer does, or one has
            hooks, of modules or parameters.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.modules.stacked import ModuleStack
        >>> nets = [torch.nn.Linear(2, 1) for _ in range(3)]
        >>> x = torch.randn(3, 5, 2)
        >>> together = ModuleStack(nets).module(x)
        >>> torch.allclose(together, torch.stack([net(x[i]) for i, net in enumerate(nets)]))
        True
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        _check_alike(modules)
        self.module: Any = _stacked(copy.deepcopy(modules[0]))
        self._places: list[list[tuple[nn.Module, str]]] = [
            [
                (owner, name)
                for owner in self.module.modules()
                for name, found in owner.named_parameters(recurse=False)
                if found is parameter  # one that is tied stands in several places
            ]
            for parameter in self.module.parameters()
        ]
        # In the members' own memory: what is loaded later is as it is then.
        self._own = [[p.detach() for p in module.parameters()] for module in modules]
        self._shapes = [p.shape for p in modules[0].parameters()]
        self._learn = [p.requires_grad for p in modules[0].parameters()]
        self.load(range(len(modules)))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The stacks of parameters, each ``(S, ...)``, in the order of the members' own."""
        return [getattr(*places[0]) for places in self._places]

    def load(self, members: Sequence[int]) -> None:
        """Take the parameters of some members as they are now; S is then their number."""
        rows = torch.cat([own.reshape(-1) for at in members for own in self._own[at]])
        columns = rows.view(len(members), -1).split([shape.numel() for shape in self._shapes], 1)
        stacks = zip(self._places, columns, self._shapes, self._learn, strict=True)
        for places, column, shape, learns in stacks:
            # New ones: a graph that is still held may remember the sizes of the old.
            stacked = nn.Parameter(column.unflatten(1, shape), requires_grad=learns)
            for owner, name in places:
                setattr(owner, name, stacked)


def _check_alike(modules: Sequence[nn.Module]) -> None:
    if not modules:
        raise ValueError("A stack needs at least one module, got none.")
    first, expected = modules[0], _structure(modules[0])
    for i, module in enumerate(modules):
        _check_unhooked(i, module)
        found = _structure(module)
        if str(module) != str(first) or found != expected:
            pairs = itertools.zip_longest(found, expected, fillvalue="nothing")
            differing = (f"\n{pair[0]} against {pair[1]}" for pair in pairs if pair[0] != pair[1])
            raise ValueError(
                f"Modules that are stacked must have one structure, but module {i} differs from "
                f"module 0:\n{module}\nagainst\n{first}{next(differing, '')}"
            )
        buffers = zip(first.named_buffers(), module.buffers(), strict=True)
        for (name, one), other in buffers:
            if not torch.equal(one, other):
                raise ValueError(
                    f"Modules that are stacked share their buffers, but {name!r} of module {i} "
                    "differs from that of module 0."
                )


def _structure(module: nn.Module) -> list[tuple]:
    """What tells one structure from another, of each parameter and buffer."""
    return [
        (kind, name, tuple(value.shape), value.dtype, str(value.device), value.requires_grad)
        for kind, named in (
            ("parameter", module.named_parameters()),
            ("buffer", module.named_buffers()),
        )
        for name, value in named
    ]


def _check_unhooked(number: int, module: nn.Module) -> None:
    """Raise if something is to happen at a call or to a gradient that a stack would leave out."""
    hooks = [(name, hooked(part)) for name, part in module.named_modules()]
    hooks += [
        (name, bool(value._backward_hooks or value._post_accumulate_grad_hooks))
        for name, value in module.named_parameters()
    ]
    for name, found in hooks:
        if found:
            raise ValueError(
                f"Modules that are stacked are evaluated without hooks, but {name or 'itself'!r} "
                f"of module {number} ({type(module).__name__}) has some: remove them, or use each "
                "module alone."
            )


def _stacked(module: Any) -> Any:
    """Make a module one that evaluates stacks; its parameters are not stacked yet."""
    if isinstance(module, HybridPolicy):
        return _policy(module)
    if isinstance(module, TensorDictModule):
        module.module = _stacked(module.module)
        return module
    if type(module) is HybridNetwork and not list(module.parameters(recurse=False)):
        for name, child in list(module.named_children()):
            setattr(module, name, _stacked(child))
        return module
    if not list(module.parameters()):
        return module
    layers = _layers(module)
    return _AnyStack(module) if layers is None else _LayerStack(layers)


def _layers(module: nn.Module) -> list[nn.Module] | None:
    """The layers of a plain chain, in order; ``None`` for anything else."""
    if type(module) in (nn.Linear, nn.Identity, *ACTIVATIONS.values()):
        return [module]
    if type(module) is not nn.Sequential and not _is_plain(module):
        return None
    found: list[nn.Module] = []
    for child in module.children():
        layers = _layers(child)
        if layers is None:
            return None
        found += layers
    return found


def _is_plain(module: nn.Module) -> bool:
    return type(module) is MLP and isinstance(module.out_features, int)


def _policy(policy: HybridPolicy) -> HybridPolicy:
    policy[0].network = _stacked(policy.network)
    return policy


# A linear layer of all members: weights (S, in, out), and biases (S, out) if there are any.
_Linear = tuple[Tensor, "Tensor | None"]


class _LayerStack(nn.Module):
    r"""Linear layers and activations, one after another.

    The hyperbolic tangent is computed as :math:`\tanh z = 2\,\sigma(2 z) - 1`, in a fifth of the
    time on a CPU; what is linear in that is left to the layers around it.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer for layer in layers if type(layer) is not nn.Identity)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the answers ``(S, *B, out)`` to inputs ``(S, *B, in)``."""
        rows = inputs.flatten(1, -2) if inputs.ndim != 2 else inputs.unsqueeze(1)
        steps = [step for at in range(len(self.layers)) for step in self._steps(at)]
        if rows.shape[1] <= _FEW_ROWS or rows.device.type != "cpu":
            for step in steps:
                rows = step(rows) if callable(step) else _apply(torch.baddbmm, rows, *step)
        else:
            # Unbound once: gradients come back in one piece, not as sums of padded ones.
            members = zip(rows.unbind(0), *map(_unbound, steps), strict=False)
            rows = torch.stack([_one_after_another(*member) for member in members])
        return rows.reshape(*inputs.shape[:-1], rows.shape[-1])

    def _steps(self, at: int) -> list[Any]:
        """What a layer has to do: linear ones, and functions."""
        layer = self.layers[at]
        if isinstance(layer, nn.Linear):
            return [_linear(layer, self._is_logistic(at - 1), self._is_logistic(at + 1))]
        if self._is_logistic(at):
            last = not self._is_linear(at + 1)
            return [torch.sigmoid_, _from_logistic] if last else [torch.sigmoid_]
        # In place: a linear layer does not need its answer again.
        in_place = type(layer) is nn.ReLU and self._is_linear(at - 1)
        return [torch.relu_ if in_place else layer]

    def _is_linear(self, at: int) -> bool:
        return 0 <= at < len(self.layers) and isinstance(self.layers[at], nn.Linear)

    def _is_logistic(self, at: int) -> bool:
        """Whether a layer is a tanh that the one before it can prepare for."""
        there = 0 < at < len(self.layers)
        return there and type(self.layers[at]) is nn.Tanh and self._is_linear(at - 1)


def _linear(layer: nn.Linear, shifted: bool, doubled: bool) -> _Linear:
    """A linear layer, after one that leaves (1 + tanh) / 2, and before one that wants 2 z."""
    weight: Tensor = layer.weight.mT
    bias: Tensor | None = layer.bias
    if shifted:
        bias = -weight.sum(1) if bias is None else bias - weight.sum(1)
    if shifted or doubled:
        weight = (4.0 if shifted and doubled else 2.0) * weight
    if doubled and bias is not None:
        bias = 2.0 * bias
    if layer.in_features < layer.out_features:
        # By its layout torch chooses how to compute the weight's gradient: the narrow side first
        # takes a sixth of the time.
        weight = weight.contiguous()
    return weight, bias


def _from_logistic(value: Tensor) -> Tensor:
    return 2.0 * value - 1.0


def _unbound(step: Any) -> Iterable[Any]:
    """A step of each member."""
    if callable(step):
        return itertools.repeat(step)
    weight, bias = step
    biases = [None] * len(weight) if bias is None else bias.unbind(0)
    return zip(weight.unbind(0), biases, strict=True)


def _one_after_another(rows: Tensor, *steps: Any) -> Tensor:
    for step in steps:
        rows = step(rows) if callable(step) else _apply(torch.addmm, rows, *step)
    return rows


def _apply(product: Callable[..., Tensor], rows: Tensor, weight: Tensor, bias: Any) -> Tensor:
    if bias is None:
        return rows @ weight
    return product(bias.unsqueeze(-2), rows, weight)


class _AnyStack(nn.Module):
    """Any network, by ``vmap``: for what :class:`_LayerStack` does not know."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # What a policy asks of its network.
        self.stochastic = getattr(network, "stochastic", True)
        self.num_heads = getattr(network, "num_heads", None)

    def forward(self, *inputs: Tensor) -> Any:
        """Return what each network answers to its own inputs, stacked."""
        # Read anew: under ``functional_call`` the parameters are others.
        parameters: dict[str, Tensor] = dict(self.network.named_parameters())
        absent: list[bool] = []

        def answer(own: dict[str, Tensor], *own_inputs: Tensor) -> Any:
            found = functional_call(self.network, own, own_inputs)
            if not isinstance(found, tuple):
                return found
            absent[:] = [value is None for value in found]  # which vmap does not return
            return tuple(value for value in found if value is not None)

        found = vmap(answer, randomness="different")(parameters, *inputs)
        if not isinstance(found, tuple):
            return found
        values = iter(found)
        return tuple(None if missing else next(values) for missing in absent)
