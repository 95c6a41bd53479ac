"""A policy as a file of Python that needs NumPy alone: each operation of its graph as a line."""

from __future__ import annotations

import inspect
import operator
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.exported_program import default_decompositions
from torch.fx import Node

from hpo_torchrl.modules import numpy_ops

# By name of the operation: an expression in the names of its arguments. Words before a bracket that
# are functions of ``numpy_ops`` are copied to the file.
_SAME = "alias detach clone contiguous lift_fresh_copy lift_fresh"
_UNARY = "abs exp log log1p expm1 sqrt tanh sin cos floor ceil round sign isfinite isnan isinf"
_BINARY = {"mul": "*", "div": "/", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">"}
_BINARY |= {"ge": ">=", "bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^"}
_REDUCED = "mean sum amax amin any all prod"
_EXPRESSIONS: dict[str, str] = {
    **dict.fromkeys(_SAME.split(), "{self}"),
    **{name: f"np.{name}({{self}})" for name in _UNARY.split()},
    **{name: f"{{self}} {sign} {{other}}" for name, sign in _BINARY.items()},
    **{name: f"reduced(np.{name}, {{self}}, {{dim}}, {{keepdim}})" for name in _REDUCED.split()},
    "add": "{self} + {alpha}{other}",
    "sub": "{self} - {alpha}{other}",
    "rsub": "{other} - {alpha}{self}",
    "neg": "-{self}",
    "square": "{self} * {self}",
    "reciprocal": "1 / {self}",
    "rsqrt": "1 / np.sqrt({self})",
    "pow": "{self} ** {exponent}",
    "minimum": "np.minimum({self}, {other})",
    "maximum": "np.maximum({self}, {other})",
    "logical_and": "np.logical_and({self}, {other})",
    "logical_or": "np.logical_or({self}, {other})",
    "logical_not": "np.logical_not({self})",
    "bitwise_not": "~{self}",
    "relu": "np.maximum({self}, 0)",
    "sigmoid": "sigmoid({self})",
    "silu": "{self} * sigmoid({self})",
    "elu": "elu({self}, {alpha}, {scale}, {input_scale})",
    "softplus": "softplus({self}, {beta}, {threshold})",
    "log_softmax": "log_softmax({self}, {dim})",
    "_log_softmax": "log_softmax({self}, {dim})",
    "softmax": "softmax({self}, {dim})",
    "_softmax": "softmax({self}, {dim})",
    "clamp": "clamp({self}, {min}, {max})",
    "clamp_min": "clamp({self}, {min})",
    "clamp_max": "clamp({self}, None, {max})",
    "where": "np.where({condition}, {self}, {other})",
    "masked_fill": "np.where({mask}, {value}, {self})",
    "linear": "linear({input}, {weight}, {bias})",
    "addmm": "addmm({self}, {mat1}, {mat2}, {beta}, {alpha})",
    "mm": "{self} @ {mat2}",
    "bmm": "{self} @ {mat2}",
    "matmul": "{self} @ {other}",
    "t": "{self}.T",
    "permute": "np.transpose({self}, {dims})",
    "transpose": "np.swapaxes({self}, {dim0}, {dim1})",
    "reshape": "np.reshape({self}, {shape})",
    "view": "np.reshape({self}, {size})",
    "_unsafe_view": "np.reshape({self}, {size})",
    "expand": "expand({self}, {size})",
    "unsqueeze": "np.expand_dims({self}, {dim})",
    "squeeze": "squeeze({self}, {dim})",
    "cat": "np.concatenate({tensors}, {dim})",
    "stack": "np.stack({tensors}, {dim})",
    "flip": "np.flip({self}, {dims})",
    "gather": "gather({self}, {dim}, {index})",
    "select": "np.take({self}, {index}, {dim})",
    "slice": "slice_({self}, {dim}, {start}, {end}, {step})",
    "split_with_sizes": "split_with_sizes({self}, {split_sizes}, {dim})",
    "argmax": "np.argmax({self}, {dim})",
    "full": "np.full({size}, {fill_value}, {dtype})",
    "full_like": "np.full_like({self}, {fill_value})",
    "scalar_tensor": "np.array({s}, {dtype})",
    "_to_copy": "{self}.astype({dtype})",
    "sym_size": "{self}.shape[{dim}]",
}
# Operations that are kept though torch could take them apart, and those that change nothing.
_KEPT = "linear softplus log_softmax relu silu elu sigmoid reshape matmul square softmax"
_CHECKS = ("_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range_for_size")
_PYTHON: dict[Any, str] = {
    operator.getitem: "{}[{}]",
    operator.mul: "{} * {}",
    operator.add: "{} + {}",
    operator.sub: "{} - {}",
    operator.floordiv: "{} // {}",
}

_FUNCTIONS = {
    name: function
    for name, function in inspect.getmembers(numpy_ops, inspect.isfunction)
    if function.__module__ == numpy_ops.__name__
}

_FILE = '''"""A policy trained by hpo_torchrl, in NumPy alone; its weights lie in {weights}.

    from policy import Policy

    discrete, continuous, logits = Policy()({inputs})
"""

from pathlib import Path

import numpy as np

{functions}
class Policy:
    """The most probable discrete action, and the continuous action that belongs to it.

    Args:
        path: the file of the weights; by default {weights} beside this file.
    """

    def __init__(self, path=None):
        with np.load(path or Path(__file__).with_name("{weights}")) as found:
            self.weights = {{name: found[name] for name in found.files}}

    def __call__(self, {inputs}):
        """Return discrete actions, continuous actions and log-probabilities.

        Args:
{arguments}
        """
        w = self.weights
{checks}
{lines}
        return {outputs}
'''


def numpy_source(
    program: ExportedProgram, weights: str = "policy.npz"
) -> tuple[str, dict[str, np.ndarray]]:
    """Return the source of a module with a class ``Policy``, and the arrays that it reads.

    Args:
        program: the graph of a policy, see :func:`~hpo_torchrl.modules.deterministic.traced`.
        weights: name of the file that the arrays will be in.

    Raises:
        ValueError: NumPy cannot express an operation; the message names it and where it is from.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> from hpo_torchrl.modules.deterministic import traced
        >>> from hpo_torchrl.modules.numpy_code import numpy_source
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> env = InventoryEnv(batch_size=4)
        >>> program = traced(HybridPolicy.for_env(env), env.reset()["observation"], None)
        >>> source, arrays = numpy_source(program)
        >>> "class Policy" in source, "torch." in source
        (True, False)
    """
    program = _in_known_operations(program)
    names, arrays = _arrays(program)
    inputs = [str(name) for name in program.graph_signature.user_inputs]
    lines, outputs = list[str](), ""
    for node in program.graph.nodes:
        if node.op == "placeholder":
            names.setdefault(node.name, node.name)
        elif node.op == "output":
            outputs = ", ".join(_rendered(one, names) for one in node.args[0])
        elif not _ignored(node):
            expression = _expression(node, names)
            if expression.isidentifier():  # a value that has a name
                names[node.name] = expression
                continue
            # No name of a function is taken for a value.
            names[node.name] = f"{node.name}_0" if node.name in _FUNCTIONS else node.name
            lines.append(f"{names[node.name]} = {expression}")
    used = [
        inspect.getsource(function)
        for name, function in _FUNCTIONS.items()
        if any(re.search(rf"(?<!\w){name}\(", line) for line in lines)
    ]
    examples = {n.name: n.meta["val"] for n in program.graph.nodes if n.name in inputs}
    source = _FILE.format(
        weights=weights,
        functions="".join(f"\n{text}\n" for text in used),
        inputs=", ".join(inputs),
        arguments=_indented(_described(name, one) for name, one in examples.items()),
        checks=_indented(line for name, one in examples.items() for line in _checked(name, one)),
        lines=_indented(lines),
        outputs=outputs,
    )
    return source, arrays


def _in_known_operations(program: ExportedProgram) -> ExportedProgram:
    """Take apart what is not known, into the core operations of torch, which takes a second."""
    calls = (node for node in program.graph.nodes if node.op == "call_function")
    if all(_ignored(n) or n.target in _PYTHON or _short(n) in _EXPRESSIONS for n in calls):
        return program
    table, kept = default_decompositions(), {f"aten.{name}" for name in _KEPT.split()}
    for operation in [op for op in table if str(op).rpartition(".")[0] in kept]:
        del table[operation]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own parts
        return program.run_decompositions(table)


def _ignored(node: Node) -> bool:
    return any(check in str(node.target) for check in _CHECKS)


def _short(node: Node) -> str:
    """Return the name of an operation of torch: ``"add"`` of ``aten.add.Tensor``."""
    return str(node.target).split(".")[1] if hasattr(node.target, "_schema") else ""


def _described(name: str, example: Any) -> str:
    shape = ", ".join(["batch", *map(str, example.shape[1:])])
    return f"    {name}: array ({shape}) of {_dtype(example.dtype).removeprefix('np.')}."


def _checked(name: str, example: Any) -> list[str]:
    """Return the lines that bring an input into its type, and refuse another shape."""
    rest = tuple(example.shape[1:])
    shape = ", ".join(["batch", *map(str, rest)])
    return [
        f"{name} = np.asarray({name}, dtype={_dtype(example.dtype)})",
        f"if {name}.ndim != {1 + len(rest)} or {name}.shape[1:] != {rest}:",
        f'    raise ValueError(f"{name} must be ({shape}), got {{{name}.shape}}.")',
    ]


def _arrays(program: ExportedProgram) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return how the lines name parameters, buffers and constants, and their values."""
    signature = program.graph_signature
    full = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    known: Mapping[str, Any] = {**program.constants, **program.state_dict}
    short = {place: name.removeprefix("policy.module.0.network.") for place, name in full.items()}
    arrays = {short[place]: known[name].detach().cpu().numpy() for place, name in full.items()}
    return {place: f'w["{name}"]' for place, name in short.items()}, arrays


def _expression(node: Node, names: Mapping[str, str]) -> str:
    """Return the operation of a node in NumPy, with the names that its inputs have."""
    target: Any = node.target
    if target in _PYTHON:
        return _PYTHON[target].format(*(_rendered(one, names) for one in node.args))
    short = _short(node)
    if (form := _EXPRESSIONS.get(short)) is None:
        raise ValueError(_refusal(node))
    values = {one.name: one.default_value for one in target._schema.arguments}
    values |= dict(zip(values, node.args, strict=False)) | node.kwargs
    if values.get("rounding_mode") is not None:
        raise ValueError(_refusal(node))
    if short == "_to_copy" and values["dtype"] is None:
        form = "{self}"
    rendered = {name: _rendered(value, names) for name, value in values.items()}
    if short in ("add", "sub", "rsub"):
        rendered["alpha"] = "" if values.get("alpha", 1) == 1 else f"{values['alpha']} * "
    rendered = {"dim": "None", "keepdim": "False"} | rendered
    return form.format(**rendered)


def _refusal(node: Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    place = f" of {stack[-1][0]} ({stack[-1][1].rpartition('.')[2]})" if stack else ""
    return (
        f"NumPy cannot express {node.target}{place}: export this policy as onnx or pt2, which take "
        "every operation of torch."
    )


def _rendered(value: Any, names: Mapping[str, str]) -> str:
    if isinstance(value, Node):
        return names[value.name]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_rendered(one, names) for one in value)}]"
    if isinstance(value, torch.dtype):
        return _dtype(value)
    if isinstance(value, float) and not np.isfinite(value):
        return f"np.{value}" if value > 0 or value != value else "-np.inf"
    return repr(value)


def _dtype(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return "np.bool_" if name == "bool" else f"np.{name}"


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"        {line}" for line in lines)
