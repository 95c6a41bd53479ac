"""Value networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.modules import ValueOperator

from hpo_torchrl.core.checks import check_choice, check_sizes
from hpo_torchrl.modules.layers import ACTIVATIONS, mlp


def make_value_network(
    env: EnvBase,
    *,
    hidden: Sequence[int] = (64, 64),
    activation: str = "tanh",
    observation_key: str = "observation",
) -> ValueOperator:
    """Build the critic of an environment: ``observation`` to ``"state_value"``, ``(*B, 1)``.

    Args:
        env: the environment; its observation spec gives the input size, device and dtype.
        hidden: width of each hidden layer.
        activation: see :class:`HybridNetwork`. A critic that is linear far out (relu) invents
            slopes where there is no data, and the gradient through its value drives the policy
            there.
        observation_key: entry that the critic reads.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import make_value_network
        >>> critic = make_value_network(InventoryEnv(batch_size=4))
        >>> critic(InventoryEnv(batch_size=4).reset())["state_value"].shape
        torch.Size([4, 1])
    """
    check_choice("activation", activation, ACTIVATIONS)
    spec = env.observation_spec[observation_key]
    hidden = check_sizes("hidden", hidden)
    # The head starts at zero: slopes that mean nothing would steer the policy at once, and the more
    # the smaller each coordinate's own share of the reward is.
    net = mlp(spec.shape[-1], 1, hidden, activation, 0.0, device=spec.device, dtype=spec.dtype)
    return ValueOperator(net, in_keys=[observation_key])


class QNetwork(nn.Module):
    """Values of all discrete actions at an observation and a continuous action."""

    unit: Tensor

    def __init__(self, net: nn.Module, unit: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("unit", unit.clone())

    def forward(self, observation: Tensor, candidate: Tensor) -> Tensor:
        return self.net(torch.cat([observation, candidate / self.unit], -1))


def make_q_network(
    env: EnvBase, *, hidden: Sequence[int] = (64, 64), activation: str = "tanh"
) -> TensorDictModule:
    """Build a critic of actions: ``observation`` and ``candidate`` to ``"action_value"``.

    Args:
        env: the environment; its specs give the sizes, device and dtype.
        hidden: width of each hidden layer.
        activation: see :class:`HybridNetwork`.

    Returns:
        Module that reads ``"candidate"``, a continuous action ``(*B, n)``, and writes the values
        of the M discrete actions, ``(*B, M)``, each with that action.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import make_q_network
        >>> env = InventoryEnv(num_items=3, batch_size=4)
        >>> data = env.reset().set("candidate", torch.ones(4, 3))
        >>> make_q_network(env)(data)["action_value"].shape
        torch.Size([4, 2])
    """
    check_choice("activation", activation, ACTIVATIONS)
    spec = env.observation_spec["observation"]
    continuous = env.full_action_spec["action", "continuous"]
    options = env.full_action_spec["action", "discrete"].space.n
    place: dict[str, Any] = {"device": spec.device, "dtype": spec.dtype}
    inputs = spec.shape[-1] + continuous.shape[-1]
    net = mlp(inputs, options, check_sizes("hidden", hidden), activation, 0.0, **place)
    unit = getattr(env, "action_scale", None)
    unit = torch.ones(continuous.shape[-1], **place) if unit is None else unit.to(**place)
    return TensorDictModule(
        QNetwork(net, unit), in_keys=["observation", "candidate"], out_keys=["action_value"]
    )
