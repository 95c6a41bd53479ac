"""Multilayer perceptrons."""

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


def direct(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what calling a net does, without torch's search for hooks at each call of a layer.

    For small layers that search takes a good part of the time. A net that has hooks is returned
    itself.
    """
    layers: list[nn.Module] = [net]
    if isinstance(net, nn.Sequential) and type(net) in (MLP, nn.Sequential):
        layers = list(net)
    for layer in (net, *layers):
        hooks = (layer._forward_hooks, layer._forward_pre_hooks)
        if any(hooks) or layer._backward_hooks or layer._backward_pre_hooks:
            return net
    calls = [layer.forward for layer in layers if type(layer) is not nn.Identity]

    def call(value: Tensor) -> Tensor:
        for forward in calls:
            value = forward(value)
        return value

    return calls[0] if len(calls) == 1 else call
