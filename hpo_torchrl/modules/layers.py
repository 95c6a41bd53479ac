"""Multilayer perceptrons, and how to call them fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchrl.modules import MLP

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


def mlp(
    inputs: int,
    outputs: int,
    hidden: Sequence[int],
    activation: str,
    gain: float,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> MLP:
    """Build a TorchRL ``MLP``: orthogonal layers, zero biases, ``gain`` on the last layer."""
    net = MLP(
        in_features=inputs,
        out_features=outputs,
        num_cells=list(hidden),
        depth=len(hidden),
        activation_class=ACTIVATIONS[activation],
        device=device,
    ).to(dtype)
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    for layer in layers:
        last = layer is layers[-1]
        nn.init.orthogonal_(layer.weight, gain=gain if last else math.sqrt(2))
        nn.init.zeros_(layer.bias)
    return net


def bare(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that computes what a net does, without looking for hooks at every call.

    Of small layers that search takes a good part of the time. A net that has hooks, or is no plain
    sequence, is returned itself.
    """
    layers = list(net) if isinstance(net, nn.Sequential) else [net]
    plain = (nn.Linear, nn.Identity, *ACTIVATIONS.values())
    usual = type(net) in (MLP, nn.Sequential, *plain) and all(type(x) in plain for x in layers)
    if not usual or any(map(hooked, (net, *layers))):
        return net
    calls = [layer.forward for layer in layers]

    def call(value: Tensor) -> Tensor:
        for layer in calls:
            value = layer(value)
        return value

    return calls[0] if len(calls) == 1 else call


def hooked(module: nn.Module) -> bool:
    """Whether calling a module does more than its ``forward``."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
