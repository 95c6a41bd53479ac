"""Seconds by interleaved rounds, and peak memory in a process of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Call = Callable[[], object]
LEAST_ROUNDS = 3
_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
_M_MMAP_THRESHOLD = -3  # of glibc's mallopt
_LARGE = 16_384  # bytes


class Clock:
    """Time calls on a device.

    Args:
        device: the device.
        cpu: count the processor time of this process instead of the time on the wall: what other
            processes take from it is not counted. Not on a GPU.
    """

    def __init__(self, device: torch.device, *, cpu: bool = False) -> None:
        self.cuda = device.type == "cuda"
        self.read = time.process_time if cpu else time.perf_counter

    def seconds(self, call: Call) -> float:
        """Return how long a call takes, until the device has done its work."""
        if not self.cuda:
            start = self.read()
            call()
            return self.read() - start
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1000.0


def keep_to_one_core() -> None:
    """Keep this process to one core, whatever threads a library starts, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def first_calls(calls: Mapping[Any, Call]) -> dict[Any, float]:
    """Make every call once, and return its seconds on the wall: what compiles does so here."""
    seconds = {}
    for name, call in calls.items():
        begin = time.perf_counter()
        call()
        seconds[name] = time.perf_counter() - begin
    return seconds


def interleaved(
    calls: Mapping[Any, Call], clock: Clock, *, rounds: int, limit: float
) -> dict[Any, list[float]]:
    """Time all calls once in each round, so that a noisy machine disturbs all alike.

    Args:
        calls: what is timed, by name; each has been called before.
        clock: how.
        rounds: number of rounds.
        limit: seconds after which no further round is begun, once there are three.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() - begin > limit:
            break
        for name, call in calls.items():
            seconds[name].append(clock.seconds(call))
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Return median and quartiles."""
    if len(values) < 2:
        return {"median": values[0], "lower": values[0], "upper": values[0]}
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "lower": lower, "upper": upper}


def ratios(seconds: list[float], base: list[float]) -> list[float]:
    """Return the ratio of each round."""
    return [mine / other for mine, other in zip(seconds, base, strict=True)]


def peak_memory(make: Callable[[], Call], device: torch.device, limit: int) -> int | None:
    """Return by how many bytes a call raises the peak of the memory; ``None`` if it fails.

    Args:
        make: makes the call, after whatever allocates once and for all.
        device: on a GPU, PyTorch's own count; else the resident memory of a forked process, which
            should be forked before this one has used and freed much: what is free already does not
            raise the peak.
        limit: bytes that the process may use on a CPU; a call that needs more fails.
    """
    if device.type == "cuda":
        return _peak_on_gpu(make)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_peak_in_fork, args=(make, limit, send))
    child.start()
    send.close()
    try:
        found = receive.recv()
    except EOFError:
        found = None  # it was killed
    child.join()
    return found


def _peak_on_gpu(make: Callable[[], Call]) -> int | None:
    try:
        call = make()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    except torch.cuda.OutOfMemoryError:
        return None


def _peak_in_fork(make: Callable[[], Call], limit: int, send: Any) -> None:
    # Beyond the limit allocations fail here, before the machine runs out and ends other processes.
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    # Large tensors apart from the heap, where glibc leaves a hole for each aligned one that was
    # freed: what is counted is then what a call needs, not how it happened to lie.
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
    try:
        call = make()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        send.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _UNIT)
    except (RuntimeError, MemoryError) as error:
        # Allocators say so in different words; anything else is a fault of the benchmark.
        if "alloc" not in str(error) and not isinstance(error, MemoryError):
            raise
        send.send(None)
