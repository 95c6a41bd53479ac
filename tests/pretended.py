"""A pretended accelerator: values are on the CPU, tensors say otherwise, and a mix raises.

Control flow sees real values, and a run gives the numbers of one on the CPU.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import torch
import torchrl._utils
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Torch knows this kind of device, which needs no driver and whose backward passes stay in the
# thread that asks for them. As with "cuda", a tensor names its number though its maker did not.
DEVICE = torch.device("lazy")
_NUMBERED = torch.device(DEVICE.type, 0)

# What may be given tensors of two devices: moves, and what takes indices, which may be on the host.
_MOVES = ("_to_copy", "copy_")
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")


class DeviceMixError(RuntimeError):
    """An operation was given tensors, or a generator, of two devices."""


class PretendedTensor(torch.Tensor):
    """A tensor that says that it is on the pretended device; ``host`` has its values."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=_NUMBERED,
        )

    def __init__(self, host):
        self.host = host

    def __repr__(self, **how):
        return f"{self.host!r} on {_NUMBERED}"

    def __deepcopy__(self, memo):
        memo[id(self)] = copied = type(self)(self.host.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied._is_param = True
        return copied

    def __reduce_ex__(self, protocol):
        return self.host.__reduce_ex__(protocol)

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _called(function, args, kwargs or {})


class _Generator(torch.Generator):
    """A generator of the CPU that says where it is meant to be."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        self.place = torch.device(device)
        return self

    def __init__(self, device="cpu"):
        super().__init__()

    @property
    def device(self):
        return self.place

    def __deepcopy__(self, memo):
        memo[id(self)] = copied = type(self)(self.place)
        copied.set_state(self.get_state())
        return copied


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _called(function, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Refuse draws on one device by a generator of another; follow assignments of ``.data``."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function == torch.Tensor.data.__set__ and isinstance(args[0], PretendedTensor):
            args[0].host = args[1].host.detach()
        generator = (kwargs or {}).get("generator")
        if generator is not None and generator.device.type != found.device.type:
            raise DeviceMixError(
                f"{function.__name__} on {found.device} got a generator on {generator.device}."
            )
        return found


def _called(function, args, kwargs):
    """Call an operation on the values of its arguments; its results are where a GPU's would be."""
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    there = {id(value.host): value for value in given if isinstance(value, PretendedTensor)}
    asked = kwargs.get("device")
    if not there and (asked is None or asked.type != DEVICE.type):
        return function(*args, **kwargs)
    name = function._schema.name.removeprefix("aten::")
    if there and name not in _MOVES:
        bound = given if name not in _INDEXED else tree_leaves((args[0], args[2:]))
        _check(name, bound, scalars=torch.Tag.pointwise in function.tags)
    args, kwargs = tree_map_only(PretendedTensor, lambda value: value.host, (args, kwargs))
    if asked is not None:
        kwargs["device"] = torch.device("cpu")
    found = function(*args, **kwargs)
    if torch.Tag.inplace_view in function.tags:  # such as ``t_``, which changes the shape
        for value in there.values():
            value.data = PretendedTensor(value.host)
    if asked is not None and asked.type != DEVICE.type:
        return found.clone() if found is args[0] else found

    def sent(value):
        return there[id(value)] if id(value) in there else PretendedTensor(value)

    return tree_map_only(torch.Tensor, sent, found)


def _check(name, given, scalars):
    """Refuse tensors on the host, but for a number in a pointwise operation."""
    for value in given:
        if type(value) is torch.Tensor and not (scalars and value.ndim == 0):
            raise DeviceMixError(
                f"{name} got a tensor of shape {tuple(value.shape)} on {value.device} beside one "
                f"on {_NUMBERED}."
            )


def _numbered(device, original=torchrl._utils._make_ordinal_device):
    return _NUMBERED if device is not None and torch.device(device) == DEVICE else original(device)


@contextlib.contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Have the pretended accelerator, and yield its device."""
    fused = "torch.optim.optimizer._get_fused_kernels_supported_devices"
    name, lift = _numbered.__defaults__[0].__name__, torch._C._set_only_lift_cpu_tensors
    with contextlib.ExitStack() as stack:
        for module in list(sys.modules.values()):
            if vars(module).get(name) is _numbered.__defaults__[0]:
                stack.enter_context(mock.patch.object(module, name, _numbered))
        stack.enter_context(mock.patch("torch.Generator", _Generator))
        stack.enter_context(mock.patch(fused, return_value=["cpu", DEVICE.type]))
        # Where ``torch.utils.checkpoint`` looks for states of generators.
        stack.enter_context(mock.patch(f"torch.{DEVICE.type}", SimpleNamespace(), create=True))
        # ``torch.tensor`` then moves what it makes by an operation of its own.
        lift(True)
        stack.callback(lift, False)
        stack.enter_context(_Operations())
        stack.enter_context(_Calls())
        yield DEVICE
