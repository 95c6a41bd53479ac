"""Multilayer perceptrons, and the critics that are one each."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, dispatch
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.modules import MLP, ValueOperator

from hpo_torchrl.core.categorical import action_sizes
from hpo_torchrl.core.checks import check_choice, check_sizes, checked
from hpo_torchrl.core.data import Key
from hpo_torchrl.core.finite import vmapped
from hpo_torchrl.core.wrappers import plain, spec_of
from hpo_torchrl.modules.scales import ObservationScale, scales_of

_FEW_ENTRIES = 1 << 14  # below, one operation of torch's costs less than a function of Python's


class _QuickTanh(torch.autograd.Function):
    """The hyperbolic tangent by the logistic function, with the derivative of ``torch.tanh``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        result = torch.rsub(torch.sigmoid(value + value), -1.0, alpha=-2.0)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.ops.aten.tanh_backward(*gradients, *ctx.saved_tensors)


class Tanh(nn.Tanh):
    r"""The hyperbolic tangent as :math:`2 / (1 + e^{-2x}) - 1`.

    On a CPU torch's own takes twice the time of a linear layer of 64 units, this form less than
    half; compiled layers have it already. It is exact to the rounding of 1. Of few entries, and
    where a transform of ``torch.func`` is at work, torch's own takes its place.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the tangent of each entry."""
        if (
            torch.compiler.is_compiling()
            or input.device.type != "cpu"
            or input.dtype not in (torch.float32, torch.float64)
            or input.numel() < _FEW_ENTRIES
            or vmapped(input)
        ):
            return super().forward(input)
        return _QuickTanh.apply(input)


ACTIVATIONS = {"tanh": Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


class Products(nn.Module):
    r"""Products of two linear maps: :math:`(Ax + a)(Bx + b) / \sqrt{1 + \overline{x^2}}`.

    In linear-quadratic problems values are quadratic, and so is what decides between discrete
    actions: which part of the state is largest. A hidden layer needs several units for each square;
    here a unit has one. The root lets products grow no faster than x: with quadratic controls an
    untrained policy would drive a state that is far out ever further. At first b = 1.

    Source: Y. N. Dauphin, A. Fan, M. Auli and D. Grangier (2017), "Language modeling with gated
    convolutional networks", ICML, section 3, the bilinear layer.

    Args:
        left: the linear map A, with its bias a.
    """

    def __init__(self, left: nn.Linear) -> None:
        super().__init__()
        self.left, self.right = left, copy.deepcopy(left)
        nn.init.orthogonal_(self.right.weight)
        nn.init.ones_(self.right.bias)

    def forward(self, value: Tensor) -> Tensor:
        """Multiply the two maps of ``value``."""
        size = (1.0 + value.square().mean(-1, keepdim=True)).rsqrt()
        return self.left(value) * self.right(value) * size


class Direction(nn.Module):
    r"""Split an observation into a size and what stays the same as the state is scaled.

    In a linear-quadratic problem without noise a state that is c times as large has inputs c times
    and costs c^2 times as large, and the same order of discrete actions. A net of the direction
    has learned about all sizes what it has learned about one; a net of the state learns of small
    ones, which cost little, last.

    Args:
        entries: number of leading entries of the observation that scale with the state, divided
            here by their root mean square; 0 leaves the observation as it is.
    """

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries = entries

    def forward(self, observation: Tensor) -> tuple[Tensor | float, Tensor]:
        """Return the root mean square ``(*B, 1)``, and the observation with it taken out."""
        if not self.entries:
            return 1.0, observation
        state, rest = observation[..., : self.entries], observation[..., self.entries :]
        # Far below what float32 tells apart from 0 in a control that has settled.
        size = state.square().mean(-1, keepdim=True).clamp_min(1e-20).sqrt()
        return size, torch.cat([state / size, rest], -1)


class HomogeneousValue(nn.Module):
    """A net of the direction of a state times its squared size: values that are homogeneous.

    Args:
        direction: splits the observation.
        net: the net.
    """

    def __init__(self, direction: Direction, net: nn.Module) -> None:
        super().__init__()
        self.direction, self.net = direction, net

    def forward(self, observation: Tensor) -> Tensor:
        """Return the values, ``(*B, 1)``."""
        size, observation = self.direction(observation)
        return size**2 * self.net(observation)


class ScheduledGains(nn.Module):
    r"""Add a linear control whose gains depend on the state: :math:`z + C \tanh(k)\,D x`.

    The optimum of a switched linear problem is linear as long as the plan stays the same, with
    other gains for each plan. The net says z and k. The tanh bounds the gains.

    Args:
        inputs: length of the observation x.
        outputs: number of outputs z.
        products: length of k.
        place: device and dtype.
    """

    def __init__(self, inputs: int, outputs: int, products: int, **place: Any) -> None:
        super().__init__()
        self.outputs = outputs
        self.inner = nn.Linear(inputs, products, bias=False, **place)
        self.outer = nn.Linear(products, outputs, bias=False, **place)
        for layer in (self.inner, self.outer):
            nn.init.orthogonal_(layer.weight)

    def forward(self, raw: Tensor, observation: Tensor) -> Tensor:
        """Return the outputs of a net that says z and k, ``raw``, with the linear control added."""
        gains = raw[..., self.outputs :].tanh()
        return raw[..., : self.outputs] + self.outer(gains * self.inner(observation))


def mlp(
    inputs: int,
    outputs: int,
    hidden: int | Sequence[int],
    activation: str,
    gain: float,
    products: bool = False,
    **place: Any,
) -> MLP:
    """Build a TorchRL ``MLP``: orthogonal layers, zero biases, ``gain`` on the last layer.

    Args:
        inputs: number of inputs.
        outputs: number of outputs.
        hidden: width of each hidden layer.
        activation: a name of :data:`ACTIVATIONS`.
        gain: size of the last layer's weights.
        products: whether the first hidden layer is one of :class:`Products`.
        place: device and dtype.
    """
    cells = check_sizes("hidden", hidden)
    net = MLP(
        in_features=inputs,
        out_features=outputs,
        num_cells=cells,
        depth=len(cells),
        activation_class=ACTIVATIONS[check_choice("activation", activation, ACTIVATIONS)],
    ).to(**place)
    *inner, last = (module for module in net if isinstance(module, nn.Linear))
    for layer in (*inner, last):
        nn.init.orthogonal_(layer.weight, gain=gain if layer is last else math.sqrt(2))
        nn.init.zeros_(layer.bias)
    if products and cells:
        net[0], net[1] = Products(inner[0]), nn.Identity()
    return net


def homogeneous_entries(env: Any) -> int:
    """Return how many leading entries of an environment's observation scale with its state.

    Where its costs then scale with the square; 0 where they do not.
    """
    return int(getattr(plain(env), "homogeneous_entries", 0))


def direct(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what calling a net does, without torch's search for hooks at each call of a layer.

    For small layers that search takes a good part of the time. A net that has hooks is returned
    itself.
    """
    layers = list(net.children()) if type(net) in (MLP, nn.Sequential) else [net]
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    if any(getattr(layer, f"_{kind}") for layer in (net, *layers) for kind in kinds):
        return net
    calls = [layer.forward for layer in layers if type(layer) is not nn.Identity]

    def call(value: Tensor) -> Tensor:
        for forward in calls:
            value = forward(value)
        return value

    return calls[0] if len(calls) == 1 else call


@checked
def make_value_network(
    env: EnvBase,
    *,
    hidden: int | Sequence[int] = (64, 64),
    activation: str = "tanh",
    products: bool = False,
    homogeneous: bool = False,
    observation_key: Key = "observation",
    find_scales: bool = True,
) -> ValueOperator:
    """Build the critic of an environment: ``observation`` to ``"state_value"``, ``(*B, 1)``.

    Args:
        env: the environment; its observation spec gives the input size, device and dtype.
        hidden: width of each hidden layer.
        activation: see :class:`HybridNetwork`. A critic that is linear far out (relu) invents
            slopes where there is no data, and the gradient through its value drives the policy
            there.
        products: whether the first hidden layer multiplies, for values that are quadratic; see
            :class:`Products`.
        homogeneous: whether values grow with the square of the state by their form, in an
            environment whose ``homogeneous_entries`` say so; see :class:`Direction`.
        observation_key: entry that the critic reads.
        find_scales: whether a simulation may say how the observation is scaled; see
            :func:`scales_of`.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import make_value_network
        >>> critic = make_value_network(InventoryEnv(batch_size=4))
        >>> critic(InventoryEnv(batch_size=4).reset())["state_value"].shape
        torch.Size([4, 1])
    """
    spec = spec_of(env, "observation_key", observation_key)
    # The head starts at zero: slopes that mean nothing would steer the policy at once, and the more
    # the smaller each coordinate's own share of the reward is.
    place = {"device": spec.device, "dtype": spec.dtype}
    net = mlp(spec.shape[-1], 1, hidden, activation, 0.0, products, **place)
    observations = ObservationScale(spec.shape[-1], **place)
    if find_scales:
        observations.use(scales_of(env), observation_key)
    layers: Any = net
    if homogeneous and (entries := homogeneous_entries(env)):
        layers = [HomogeneousValue(Direction(entries), net)]
    return ValueOperator(nn.Sequential(observations, *layers), in_keys=[observation_key])


class QNetwork(nn.Module):
    """Values at an observation and a continuous action, or what else is judged."""

    unit: Tensor

    def __init__(self, net: nn.Module, observations: nn.Module, unit: Tensor) -> None:
        super().__init__()
        self.net, self.observations = net, observations
        self.register_buffer("unit", unit.clone())

    def forward(self, observation: Tensor, judged: Tensor) -> Tensor:
        return self.net(torch.cat([self.observations(observation), judged / self.unit], -1))


class ActionCritic(TensorDictModule):
    """A critic that judges what a loss proposes, which no data hold."""

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase, *args: Any, **kwargs: Any) -> TensorDictBase:
        """Write the values of what is proposed.

        Raises:
            KeyError: nothing is.
        """
        judged = self.in_keys[-1]
        if tensordict.get(judged, None) is None:
            raise KeyError(
                f"A critic of make_q_network judges {judged!r}, which only LearnedCriticLoss "
                "proposes. TorchRL's DDPGLoss, TD3Loss and SACLoss propose 'action' and send no "
                "gradient to a discrete choice: use LearnedCriticLoss, or algorithm=ddpg; where "
                "only the continuous action is to be learned, give them a critic of your own that "
                "reads ('action', 'discrete') and ('action', 'continuous')."
            )
        return super().forward(tensordict, *args, **kwargs)


@checked
def make_q_network(
    env: EnvBase,
    *,
    hidden: int | Sequence[int] = (64, 64),
    activation: str = "tanh",
    find_scales: bool = True,
    judges: str = "candidate",
) -> TensorDictModule:
    """Build a critic of actions: ``observation`` and ``candidate`` to ``"action_value"``.

    Args:
        env: the environment; its specs give the sizes, device and dtype.
        hidden: width of each hidden layer.
        activation: see :class:`HybridNetwork`.
        find_scales: as in :func:`make_value_network`; the unit of the actions too.
        judges: ``"candidate"``, or ``"parameters"``: those of the policy's distribution.

    Returns:
        Module that reads ``"candidate"``, a continuous action ``(*B, n)``, and writes the values
        of the M discrete actions, ``(*B, M)``, each with that action; or reads ``"parameters"``,
        ``(*B, M + 2 M n)``, and writes their value, ``(*B, 1)``. See :class:`LearnedCriticLoss`.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import make_q_network
        >>> env = InventoryEnv(num_items=3, batch_size=4)
        >>> data = env.reset().set("candidate", torch.ones(4, 3))
        >>> make_q_network(env)(data)["action_value"].shape
        torch.Size([4, 2])
    """
    spec = spec_of(env, "observation", "observation")
    num_discrete, dimension, _ = action_sizes(env)
    place: dict[str, Any] = {"device": spec.device, "dtype": spec.dtype}
    found = scales_of(env) if find_scales else None
    unit = getattr(plain(env), "action_scale", None) if found is None else found.action
    unit = torch.ones(dimension) if unit is None else unit
    if check_choice("judges", judges, ("candidate", "parameters")) == "parameters":
        unit = torch.cat([torch.ones(num_discrete).to(unit), unit.repeat(2 * num_discrete)])
    outputs = num_discrete if judges == "candidate" else 1
    net = mlp(spec.shape[-1] + len(unit), outputs, hidden, activation, 0.0, **place)
    observations = ObservationScale(spec.shape[-1], **place)
    if find_scales:
        observations.use(found, "observation")
    return ActionCritic(
        QNetwork(net, observations, unit.to(**place)),
        in_keys=["observation", judges],
        out_keys=["action_value"],
    )
