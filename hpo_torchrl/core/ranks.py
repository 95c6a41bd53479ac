"""Ranks: processes that share one training, each with its part of every batch.

Without ranks each function returns at once what a single process computes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hpo_torchrl.core.checks import check_device, first_line, shown

Answer = TypeVar("Answer")

# What torchrun, or whoever starts processes that are to find each other, tells each of them.
_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# The longest wait for rank 0, which finds optima and tests policies while others wait. A rank that
# ends is noticed at once, by its closed connections.
_PATIENCE = timedelta(hours=12)
# Whether processes share trainings now; ``None`` where nobody has said so.
_sharing: bool | None = None


class OtherRankError(RuntimeError):
    """A rank cannot go on because another one has failed, whose own message says why."""


# -- who takes part ------------------------------------------------------------------------------


@contextmanager
def joined() -> Iterator[None]:
    """Share every training within the block with the other processes, if there are any.

    The group is that of ``torch.distributed`` if there is one, else the one that ``torchrun``
    describes: gloo on CPUs, nccl on GPUs. All ranks must run the same lines. Rank 0 speaks for all.

    Examples:
        >>> from hpo_torchrl.core import ranks
        >>> with ranks.joined():
        ...     ranks.size(), ranks.main()
        (1, True)
    """
    if _sharing is not None or _number() < 2:
        yield
        return
    own = not dist.is_initialized()
    if own:
        _start()
    try:
        with _mode(True), warnings.catch_warnings():
            if not main():
                warnings.simplefilter("ignore")
            yield
    finally:
        if own:
            dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Let this process compute for itself within the block, whatever others there are."""
    with _mode(False):
        yield


@contextmanager
def _mode(sharing: bool) -> Iterator[None]:
    global _sharing
    before, _sharing = _sharing, sharing
    try:
        yield
    finally:
        _sharing = before


def active() -> bool:
    """Whether processes share trainings now."""
    return bool(_sharing)


def size() -> int:
    """Return the number of ranks, 1 without any."""
    return dist.get_world_size() if _sharing else 1


def rank() -> int:
    """Return the number of this rank, 0 without any."""
    return dist.get_rank() if _sharing else 0


def main() -> bool:
    """Whether this process speaks and writes: rank 0, or the only one."""
    return rank() == 0


def check_joined() -> None:
    """Raise a ``RuntimeError`` in one of several processes that have not said what they share."""
    if _sharing is None and _number() > 1:
        raise RuntimeError(
            f"This is one of {_number()} processes (torchrun, or torch.distributed), and nothing "
            "says whether they share this training. Build and train within `with ranks.joined():` "
            "to share it, or within `with ranks.alone():` for a training of each process (from "
            "hpo_torchrl.core import ranks)."
        )


def local_device(device: Any) -> Any:
    """Return the device of this rank: of ``cuda`` the one whose number is that on the machine.

    Raises:
        ValueError: several ranks were given one GPU by its number.
    """
    place = check_device(device) if active() else None
    if place is None or place.type != "cuda" or not torch.cuda.is_available():
        return device
    if place.index is not None:
        raise ValueError(
            f"device={str(device)!r} is one GPU for {size()} ranks; use device=cuda, which gives "
            "each rank one of its own."
        )
    return torch.device("cuda", _number_here() % torch.cuda.device_count())


def _number() -> int:
    """Return the number of processes that could share a training."""
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _TOLD) else 1


def _number_here() -> int:
    return int(os.environ.get("LOCAL_RANK", dist.get_rank()))


def _start() -> None:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    # nccl takes one rank a GPU.
    several = torch.cuda.is_available() and here <= torch.cuda.device_count()
    backend = "cpu:gloo,cuda:nccl" if several else "gloo"
    if several:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group(backend, timeout=_PATIENCE)


# -- parts of a batch ----------------------------------------------------------------------------


def share(number: int, of: int | None = None) -> slice:
    """Return the rows that a rank has of so many.

    Args:
        number: of the rows of the whole batch.
        of: the rank; by default this one.

    Raises:
        ValueError: there are fewer rows than ranks.
    """
    many, own = size(), rank() if of is None else of
    if number < many:
        raise ValueError(
            f"{many} ranks cannot share a batch of {number} instances: give each one at least "
            f"(collect.batch_size={many} or more), or start fewer ranks."
        )
    return slice(number * own // many, number * (own + 1) // many)


def gathered(part: Tensor, number: int) -> Tensor:
    """Return the whole of which each rank has its :func:`share` along the first axis.

    Args:
        part: this rank's rows.
        number: number of all rows.
    """
    return gathered_all({"": part}, number)[""] if active() else part


@torch.no_grad()
def gathered_all(parts: Mapping[Any, Tensor], number: int) -> dict[Any, Tensor]:
    """Return :func:`gathered` of several entries, by one exchange."""
    if not active():
        return dict(parts)
    rows = [share(number, of) for of in range(size())]
    longest = max(own.stop - own.start for own in rows)
    # As bytes, whatever the types.
    flat = [part.contiguous().reshape(len(part), -1).view(torch.uint8) for part in parts.values()]
    sent = torch.cat(flat, 1)
    sent = torch.nn.functional.pad(sent, (0, 0, 0, longest - len(sent)))
    sent = _on_wire(sent)
    received = [torch.empty_like(sent) for _ in rows]
    _exchange(dist.all_gather, received, sent)
    pieces = [got[: own.stop - own.start] for got, own in zip(received, rows, strict=True)]
    columns = torch.cat(pieces).split([one.shape[1] for one in flat], 1)
    return {
        key: column.contiguous().to(part.device).view(part.dtype).reshape(number, *part.shape[1:])
        for (key, part), column in zip(parts.items(), columns, strict=True)
    }


def total(value: Tensor) -> Tensor:
    """Return the sum over the ranks; its gradient is that of this rank's part.

    Gradients of parameters are summed over the ranks as well (:func:`sum_gradients`): together
    they are those of the sum.
    """
    if not active():
        return value
    summed = _summed(value.detach())
    return summed + (value - value.detach()) if value.requires_grad else summed


def mean(value: Tensor) -> Tensor:
    """Return the mean over all ranks' entries; its gradient is that of this rank's part."""
    if not active():
        return value.mean()
    own = value.sum().double()
    sums = total(torch.stack([own, torch.full_like(own, value.numel())]))
    return (sums[0] / sums[1]).to(value.dtype)


def moments(value: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number of all ranks' entries, their mean and their population variance.

    The variance is that of the ranks' own variances and means, which rounds little.

    Args:
        value: this rank's entries, without a graph.
        counts: which of them count, 1 or 0; ``None`` is all.
    """
    weight = torch.ones_like(value) if counts is None else counts
    number = weight.sum()
    own = (value * weight).sum() / number.clamp_min(1)
    known = torch.stack([number, own, ((value - own) ** 2 * weight).sum()])
    parts = gathered(known.unsqueeze(0), size()) if active() else known.unsqueeze(0)
    numbers, means, squares = parts.unbind(-1)
    number = numbers.sum()
    mean = (numbers * means).sum() / number
    return number, mean, (squares + numbers * (means - mean) ** 2).sum() / number


def count(number: int) -> int:
    """Return the sum of a number over the ranks."""
    return int(_summed(torch.tensor(number))) if active() else number


def place(number: int) -> tuple[int, int]:
    """Return where this rank's entries begin in those of all, and the number of all.

    Args:
        number: of this rank's entries.
    """
    if not active():
        return 0, number
    counts = torch.zeros(size(), dtype=torch.int64)
    counts[rank()] = number
    counts = _summed(counts)
    return int(counts[: rank()].sum()), int(counts.sum())


def anywhere(flag: Any) -> bool:
    """Whether something is true in any rank: a bool, or a tensor in any of its entries."""
    own = bool(flag.any() if isinstance(flag, Tensor) else flag)
    return count(own) > 0 if active() else own


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Add up the gradients of all ranks, in place; that of nobody stays ``None``."""
    if not active() or not parameters:
        return
    known = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    there = known[0].new_tensor([p.grad is not None for p in parameters])
    summed = _summed(torch.cat([*(gradient.reshape(-1) for gradient in known), there]))
    sizes = [gradient.numel() for gradient in known]
    *parts, there = summed.split([*sizes, len(sizes)])
    for parameter, part, has in zip(parameters, parts, there.tolist(), strict=True):
        parameter.grad = part.view_as(parameter).clone() if has else None


# -- one process for all -------------------------------------------------------------------------


def from_main(function: Callable[[], Answer]) -> Answer:
    """Let rank 0 alone call a function, and return its answer, or raise its error, in every rank.

    Raises:
        OtherRankError: it failed, in the other ranks; a ``ValueError`` is raised as it is.
    """
    if not active():
        return function()
    answer: Any = None
    failure: BaseException | None = None
    if main():
        try:
            with alone():
                answer = function()
        except BaseException as error:  # an interrupt too: others would wait
            failure = error
        said = failure if isinstance(failure, ValueError) else failure and first_line(failure)
        _broadcast((answer, said))
        if failure is not None:
            raise _common(failure)
        return answer
    answer, said = _broadcast(None)
    if isinstance(said, ValueError):
        raise _common(said)
    if said is not None:
        raise _common(OtherRankError(f"Rank 0 failed: {said}"))
    return answer


@contextmanager
def agreeing() -> Iterator[None]:
    """Let a ``ValueError`` or ``TypeError`` of one rank, raised in the block, be that of all.

    Nothing within the block may exchange anything.
    """
    failure: ValueError | TypeError | None = None
    try:
        yield
    except (ValueError, TypeError) as error:
        failure = error
        if not active():
            raise
    if anywhere(failure is not None):
        found: list[Any] = [None] * size()
        _exchange(dist.all_gather_object, found, failure)
        raise _common(failure or next(error for error in found if error is not None))


def in_common(error: BaseException) -> bool:
    """Whether every rank has met an error, so that it may be caught."""
    return not active() or _marked(error)


def launched_as() -> int:
    """Return the number of this process among those that were started together, 0 without any."""
    return int(os.environ["RANK"]) if _number() > 1 and "RANK" in os.environ else 0


def told_by_main(error: BaseException) -> bool:
    """Whether this process need not tell of an error, because rank 0 does."""
    if launched_as() == 0:
        return False
    return isinstance(error, KeyboardInterrupt) or _marked(error)


def check_same(what: str, value: Any) -> None:
    """Raise a ``ValueError`` unless every rank has the same value, a plain one."""
    if active():
        found: list[Any] = [None] * size()
        _exchange(dist.all_gather_object, found, value)
        for other, its in enumerate(found):
            if its != found[0]:
                raise _common(
                    ValueError(
                        f"Ranks share one training, so {what} must be the same in all, got "
                        f"{shown(found[0])} in rank 0 and {shown(its)} in rank {other}."
                    )
                )


def _marked(error: BaseException | None) -> bool:
    while error is not None and not getattr(error, "of_all_ranks", False):
        error = error.__cause__
    return error is not None


def _common(error: BaseException) -> BaseException:
    error.of_all_ranks = True  # type: ignore[attr-defined]
    return error


def _broadcast(value: Any) -> Any:
    held = [value]
    _exchange(dist.broadcast_object_list, held, src=0, device=_wire("cpu"))
    return held[0]


def _summed(value: Tensor) -> Tensor:
    sent = _on_wire(value.clone())
    _exchange(dist.all_reduce, sent)
    return sent.to(value.device)


def _on_wire(value: Tensor) -> Tensor:
    """Return a tensor where the group can send it from."""
    return value.contiguous().to(_wire(value.device.type))


def _wire(kind: str) -> torch.device:
    """Return where the group sends from what lies on a kind of device: gloo from the CPU."""
    backends = dict(each.split(":") for each in dist.get_backend_config().split(","))
    by_gpu = backends.get("cuda") == "nccl" and (kind == "cuda" or "cpu" not in backends)
    return torch.device("cuda" if by_gpu else "cpu")


def _exchange(function: Callable[..., Any], *given: Any, **how: Any) -> None:
    try:
        function(*given, **how)
    except RuntimeError as error:  # a connection was closed, or nothing came in time
        raise OtherRankError(
            f"Rank {rank()} has lost another one ({first_line(error)[:120]}). The run can go on "
            "from its newest checkpoint by resume=FOLDER, with as many ranks as you like."
        ) from error
