"""Trained policies leave: as ONNX, as a program of torch, or as NumPy; checked before they go."""

from __future__ import annotations

import copy
import logging
import math
import runpy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from hpo_torchrl.core.categorical import action_sizes, finite
from hpo_torchrl.core.checks import check_choice, first_line
from hpo_torchrl.modules import DeterministicPolicy, HybridPolicy
from hpo_torchrl.modules.deterministic import traced
from hpo_torchrl.modules.numpy_code import numpy_source

FORMATS = ("onnx", "pt2", "numpy")
_STATES = 1000  # that an export is checked on
# Differences that pass; how often what the policy itself errs by rounding; and at most.
_CLOSE, _ROUNDING, _MOST = 1e-6, 4.0, 1e-3
# Random observations: spreads around the middle of those that the policy meets.
_SPREADS = 3.0

Call = Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]


class ExportError(RuntimeError):
    """What was exported does not act as the policy does."""


class Exported(NamedTuple):
    """Files of an exported policy.

    Attributes:
        files: the files; the first is the one to open.
        states: number of states that it was compared with the policy on.
        ties: in how many the discrete action is another one that is equally probable.
        error: largest difference of a continuous action, relative to it or to its natural size.
    """

    files: list[Path]
    states: int
    ties: int
    error: float


class States(NamedTuple):
    """Observations ``(b, k)``, and masks ``(b, M)`` or ``(b, H, M)`` if the policy reads any."""

    observation: Tensor
    mask: Tensor | None


def export_policy(policy: Any, format: str, folder: str | Path) -> Exported:
    """Write a policy to files that need neither this library nor TorchRL, and compare it with them.

    Its inputs are ``observation``, ``(batch, k)``, and ``action_mask`` where the problem has masks;
    its outputs the ``discrete`` action that is most probable, the ``continuous`` action without
    noise, and the ``logits`` (log-probabilities).

    Args:
        policy: a :class:`~hpo_torchrl.experiments.api.TrainedPolicy`.
        format: ``"onnx"``: ``policy.onnx``; ``"pt2"``: ``policy.pt2``, for ``torch.export.load``;
            ``"numpy"``: ``policy.py`` with its weights in ``policy.npz``.
        folder: where the files go.

    Raises:
        ValueError: the format is unknown, its packages are missing, or the policy cannot be
            expressed in it.
        TypeError: the policy is a rule.
        ExportError: what was written acts differently; it is removed.
    """
    check_choice("format", format, FORMATS)
    module = policy.module
    if not isinstance(module, HybridPolicy):
        raise TypeError(
            f"{type(module).__name__} is a rule, which has no network and reads the state: only a "
            "policy that was trained can be exported."
        )
    states = states_of(policy)
    example = states.observation[:2], None if states.mask is None else states.mask[:2]
    program = traced(module, *example)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"onnx": _to_onnx, "pt2": _to_pt2, "numpy": _to_numpy}[format](program, folder)
    try:
        return check_export(files, module, states)
    except ExportError:  # nobody is to take it for the policy
        for file in files:
            file.unlink()
        raise


def states_of(policy: Any, number: int = _STATES, seed: int = 0) -> States:
    """Return what a policy meets, and as many random observations around it.

    Args:
        policy: a :class:`~hpo_torchrl.experiments.api.TrainedPolicy`. Where its environment cannot
            be simulated, all observations are random ones.
        number: how many.
        seed: of the random ones.
    """
    module, env, half = policy.module, copy.deepcopy(policy.env), number // 2
    spec = env.observation_spec[module.observation_key]
    generator = torch.Generator().manual_seed(seed)
    size, dtype = spec.shape[-1], spec.dtype
    try:
        steps = math.ceil(half / env.batch_size.numel())
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            env.set_seed(seed)
            # Sampled actions: the states beyond those that the best actions lead to.
            seen = env.rollout(steps, module, break_when_any_done=False).flatten()[:half].cpu()
        met = seen[module.observation_key]
        masks = None if module.mask_key is None else seen[module.mask_key]
    except NotImplementedError:  # the spaces of an environment that was built elsewhere
        met = torch.randn(half, size, generator=generator).to(dtype)
        masks = None
    noise = torch.randn(number - len(met), size, generator=generator).to(dtype)
    spread = met.std(0, correction=0).clamp_min(1e-3)
    observation = torch.cat([met, met.mean(0) + _SPREADS * spread * noise])
    if module.mask_key is None:
        return States(observation, None)
    known = 0 if masks is None else len(masks)
    choices, _, heads = action_sizes(env)
    shape = (number - known, *(() if heads is None else (heads,)), choices)
    random = torch.rand(shape, generator=generator)
    allowed = (random < 0.5) | (random == random.amax(-1, keepdim=True))  # one at least
    return States(observation, allowed if masks is None else torch.cat([masks, allowed]))


def check_export(files: Sequence[Path], policy: HybridPolicy, states: States) -> Exported:
    """Compare the policy in a file with the original on given states.

    Each rounds in its own way. Continuous actions may differ by 1e-6 of their size, or by four
    times what the original itself errs, as a copy in float64 tells, up to 1e-3. Where two discrete
    actions are as probable as each other, up to rounding, either of them is right.

    Args:
        files: what was written; the first one is opened.
        policy: the original.
        states: on which they are compared.

    Raises:
        ExportError: a discrete action differs, or a continuous one by more than rounding.
    """
    own = _outputs(policy, states)
    answer = load_export(files[0])(*(part.numpy() for part in states if part is not None))
    found = [torch.as_tensor(part) for part in answer]
    shapes, others = ([tuple(part.shape) for part in parts] for parts in (own, found))
    if others != shapes:
        raise ExportError(f"{files[0]} returns the shapes {others}, the policy {shapes}.")
    unit = getattr(policy.network, "action_scale", torch.ones(())).detach().cpu()
    close = tie = _CLOSE
    with suppress(RuntimeError):  # of a network of one's own that is of one dtype
        same, value, logit = _differences(
            _outputs(copy.deepcopy(policy).double(), states), own, unit
        )
        rounding = float((value * same).amax()), float(logit.amax())
        close, tie = (min(max(_CLOSE, _ROUNDING * error), _MOST) for error in rounding)
    clear = torch.ones(len(own[0]), dtype=torch.bool)
    if own[2].shape[-1] > 1:
        best = own[2].topk(2, -1).values
        clear = _of_rows(best[..., 0] - best[..., 1]).amin(-1) > tie
    same, value, logit = _differences(found, own, unit)
    wrong, error = int((clear & ~same).sum()), float((value * same).amax())
    if wrong or not (error <= close and float(logit.amax()) <= tie):
        raise ExportError(
            f"{files[0]} does not act as the policy does: of {len(clear)} states {wrong} "
            f"have another discrete action, continuous actions differ by up to {error:.2g} of "
            f"their size (rounding is {close:.2g}), log-probabilities by "
            f"{float(logit.amax()):.2g} ({tie:.2g})."
        )
    return Exported([*files], len(clear), int((~same).sum()), error)


def _differences(
    found: Sequence[Tensor], own: Sequence[Tensor], unit: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return of each state whether discrete actions agree, and how far the rest is apart."""
    value = (found[1] - own[1]).abs() / (own[1].abs() + unit)
    logit = finite(found[2]) - finite(own[2])
    same = _of_rows(found[0] == own[0]).all(-1)
    return same, _of_rows(value).amax(-1), _of_rows(logit.abs()).amax(-1)


def _of_rows(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1)


@torch.no_grad()
def _outputs(policy: HybridPolicy, states: States) -> list[Tensor]:
    """Return what a policy says of states, in its own dtype and on its own device."""
    like = next(policy.parameters(), torch.empty(0))
    mask = None if states.mask is None else states.mask.to(like.device)
    return [part.cpu() for part in DeterministicPolicy(policy)(states.observation.to(like), mask)]


def load_export(path: str | Path) -> Call:
    """Return a function of arrays, ``observation`` and ``action_mask``, that an export is.

    Args:
        path: a file that :func:`export_policy` has written. One of another origin is to be trusted:
            opening ``.py`` and ``.pt2`` may run code.
    """
    path = Path(path)
    if path.suffix == ".py":
        return runpy.run_path(str(path))["Policy"](path.with_suffix(".npz"))
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda *inputs: tuple(
            part.detach().numpy() for part in program(*map(torch.from_numpy, inputs))
        )
    session = _package("onnxruntime").InferenceSession(path)
    names = [one.name for one in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def _to_onnx(program: ExportedProgram, folder: Path) -> list[Path]:
    for name in ("onnxscript", "onnxruntime"):
        _package(name)
    path = folder / "policy.onnx"
    floats = {value.dtype for value in program.state_dict.values()}
    with _quiet():
        if torch.float64 in floats:  # of which ONNX Runtime has no softplus
            program = program.run_decompositions()
        made: Any = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[str(name) for name in program.graph_signature.user_inputs],
            output_names=["discrete", "continuous", "logits"],
            external_data=False,
            verbose=False,
        )
    made.save(path)
    return [path]


def _to_pt2(program: ExportedProgram, folder: Path) -> list[Path]:
    path = folder / "policy.pt2"
    torch.export.save(program, path)
    return [path]


def _to_numpy(program: ExportedProgram, folder: Path) -> list[Path]:
    source, arrays = numpy_source(program)
    files = [folder / "policy.py", folder / "policy.npz"]
    files[0].write_text(source, encoding="utf-8")
    np.savez(files[1], allow_pickle=False, **arrays)
    return files


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch warns of its own parts, and of packages that nobody asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"format='onnx' needs the package {name} ({first_line(error)}): pip install "
            "'hpo-torchrl[export]'. numpy and pt2 need nothing besides."
        ) from error
