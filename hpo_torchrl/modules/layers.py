"""Multilayer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
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
