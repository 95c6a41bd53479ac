"""Several modules of one structure as one: many seeds in one computation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torchrl.modules import MLP

from hpo_torchrl.core.checks import checked, shown
from hpo_torchrl.core.finite import traced
from hpo_torchrl.modules.layers import Products, QNetwork, ScheduledGains
from hpo_torchrl.modules.network import HybridNetwork

# Rows of each member up to which one product for all is faster on a CPU than one for each: beyond,
# the hidden layers of all together no longer fit the cache.
_FEW_ROWS = 256
# Modules that work on a leading axis as soon as their parts do.
_TRANSPARENT = (nn.Sequential, MLP, HybridNetwork, QNetwork, Products, ScheduledGains)


@checked
def replicate(modules: Sequence[nn.Module]) -> Any:
    """Make one module of S separately initialised ones that have the same structure.

    It maps inputs ``(S, *B, ...)`` to outputs ``(S, *B, ...)``, row s by the parameters of module
    s. Its parameters are those of the members, stacked, ``(S, ...)``, under the same names (for a
    network of your own, which is evaluated by ``torch.func.vmap``, below ``network``). The members'
    own parameters become views of the stacks, so that each of them stays an ordinary module that is
    always current. Buffers are those of the first member, but for those named in a module's
    ``seed_buffers``, which are stacked too. A module of your own whose ``forward`` is at home with
    any leading axes says so by ``takes_leading_axes = True``; its parts alone are then stacked.

    Args:
        modules: the members: policies, critics (``TensorDictModule``), or any modules.

    Returns:
        A module of the same kind with the attributes ``num_seeds`` S and ``members``.

    Raises:
        ValueError: there are none.
        RuntimeError: parameters differ in shape.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.modules import replicate
        >>> nets = [torch.nn.Linear(2, 1) for _ in range(3)]
        >>> x = torch.randn(3, 5, 2)
        >>> together = replicate(nets)(x)
        >>> torch.allclose(together, torch.stack([net(x[i]) for i, net in enumerate(nets)]))
        True
    """
    if not modules:
        raise ValueError("modules must hold at least one module, got [].")
    kinds = {type(module) for module in modules}
    if len(kinds) > 1 or not issubclass(kinds.pop(), nn.Module):
        raise TypeError(f"modules must be nn.Modules of one kind, got {shown(modules)}.")
    if getattr(modules[0], "memory", None) is not None:
        raise ValueError(
            "modules must have no memory, whose sequences are not read side by side, got a policy "
            f"with a {type(modules[0].memory).__name__}; train its seeds one after another."
        )
    together = copy.deepcopy(modules[0])
    each = [_own(module) for module in modules]
    for name, stack in _own(together).items():
        members = [own[name] for own in each]
        stack.data = torch.stack([member.detach() for member in members])
        for member, row in zip(members, stack.data.unbind(0), strict=True):
            member.data = row
    together = _vectorised(together)
    together.num_seeds, together.members = len(modules), tuple(modules)
    return together


def _own(module: nn.Module) -> dict[str, Tensor]:
    """Return what every seed has of its own: parameters, and the buffers that change."""
    found: dict[str, Tensor] = dict(module.named_parameters())
    for path, part in module.named_modules():
        for name in getattr(part, "seed_buffers", ()):
            found[f"{path}.{name}" if path else name] = part.get_buffer(name)
    return found


def _vectorised(module: Any) -> Any:
    """Let a module whose parameters are stacked take inputs with a leading axis."""
    if type(module) is nn.Linear:
        module.__class__ = _Linear  # the same parameters, applied side by side
        return module
    transparent = type(module) in _TRANSPARENT or getattr(module, "takes_leading_axes", False)
    if transparent or isinstance(module, (TensorDictModuleBase, nn.ModuleList)):
        for name, child in list(module.named_children()):
            setattr(module, name, _vectorised(child))
        return module
    return _Vectorised(module) if any(True for _ in module.parameters()) else module


class _Linear(nn.Linear):
    """Linear layers side by side: weights ``(S, out, in)`` and biases ``(S, out)``."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the answers ``(S, *B, out)`` to inputs ``(S, *B, in)``."""
        rows = inputs.flatten(1, -2) if inputs.ndim != 2 else inputs.unsqueeze(1)
        if rows.shape[1] > _FEW_ROWS and rows.device.type == "cpu" and not traced():
            biases = [None] * len(rows) if self.bias is None else self.bias.unbind(0)
            # Unbound once: gradients come back in one piece, not as sums of padded ones.
            members = zip(rows.unbind(0), self.weight.unbind(0), biases, strict=True)
            answers = torch.stack([nn.functional.linear(*member) for member in members])
        elif self.bias is None:
            answers = torch.bmm(rows, self.weight.mT)
        else:
            answers = torch.baddbmm(self.bias.unsqueeze(1), rows, self.weight.mT)
        return answers.reshape(*inputs.shape[:-1], answers.shape[-1])


class _Vectorised(nn.Module):
    """Any module, by ``vmap``: for one that does not work on a leading axis by itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Any:
        """Return each member's answer to its own inputs, stacked."""
        # Read anew: under ``functional_call`` the parameters are others.
        parameters = _own(self.network)

        def answer(own: dict[str, Tensor], *own_inputs: Tensor) -> Any:
            found = functional_call(self.network, own, own_inputs)
            # A policy's network may have no scale, and vmap returns no ``None``.
            return found[:2] if isinstance(found, tuple) and found[-1] is None else found

        found = vmap(answer, randomness="different")(parameters, *inputs)
        return (*found, None) if isinstance(found, tuple) and len(found) == 2 else found
