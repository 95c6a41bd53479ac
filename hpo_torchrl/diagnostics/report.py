"""Signal, noise, alignment and bias of gradient estimators, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.diagnostics.sampler import GradientSampler

_RESAMPLES = 1000


@dataclass(frozen=True)
class GradientReport:
    """What :func:`gradient_report` measured.

    Attributes:
        rows: one dict per parameter group and estimator: ``group``, ``estimator``, ``whole`` (an
            estimator of the gradient, not one of its terms), ``known_bias`` (in words), and each of
            ``signal``, ``noise``, ``signal_to_noise``, ``alignment`` and ``bias`` with its interval
            in ``<measure>_low`` and ``<measure>_high``.
        ceiling: by group, the alignment that a perfect estimator would show, with its interval
            ``(estimate, low, high)``: the reference has noise of its own.
        num_batches: gradients per estimator.
        batch_frames: environment steps in a batch.
        num_reference: batches behind the reference gradient.
    """

    rows: list[dict[str, Any]]
    ceiling: dict[str, tuple[float, float, float]]
    num_batches: int
    batch_frames: int
    num_reference: int

    def value(self, estimator: str, measure: str, group: str = "continuous") -> float:
        """Return one figure of the report.

        Args:
            estimator: its name, one of ``ESTIMATORS``.
            measure: ``"signal"``, ``"alignment_low"``, ...
            group: ``"discrete"`` or ``"continuous"``.

        Raises:
            KeyError: the report holds no such row.
        """
        for row in self.rows:
            if row["estimator"] == estimator and row["group"] == group:
                return row[measure]
        raise KeyError(f"The report has no row of {estimator!r} for the {group!r} parameters.")


def gradient_report(
    sampler: GradientSampler,
    *,
    num_batches: int = 40,
    num_reference: int = 160,
    confidence: float = 0.95,
    progress: Callable[[Iterator], Iterator] = iter,
) -> GradientReport:
    r"""Measure the gradient estimators on independent batches.

    With :math:`g_1, \dots, g_G` the gradients of G batches and :math:`\bar r` the mixed gradient
    of a large separate batch, for each estimator and group of parameters:

    * **signal**, the norm of the expected gradient: :math:`S^2` is the mean of
      :math:`g_i \cdot g_j` over :math:`i \ne j`, free of bias by noise;
    * **noise**, the root of the total variance of one batch's gradient:
      :math:`N^2 = \mathrm{mean}\,\lVert g_i \rVert^2 - S^2`;
    * **signal to noise**, S / N;
    * **alignment**, the mean cosine of :math:`g_i` and :math:`\bar r`: 1 points the way of the
      large-batch gradient, 0 anywhere;
    * **bias**, :math:`\lVert \mathbb E g - \mathbb E r \rVert / \lVert \mathbb E r \rVert`, with
      the noise of both means taken off; an interval that starts at 0 holds no evidence of any.

    Intervals are percentiles of a bootstrap over the batches and those of the reference.

    Args:
        sampler: draws the gradients.
        num_batches: number G of batches.
        num_reference: batches behind the reference.
        confidence: of the intervals.
        progress: wraps the loop over batches, for example ``tqdm``.

    Returns:
        The report.

    Raises:
        ValueError: a number is out of range.

    Examples:
        >>> from hpo_torchrl.collectors import DifferentiableCollector
        >>> from hpo_torchrl.diagnostics import GradientSampler, gradient_report
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=32, initial_state="random", seed=0)
        >>> policy = HybridPolicy.for_env(env, hidden=(8,))
        >>> collector = DifferentiableCollector(env, policy, frames_per_batch=32 * 5)
        >>> report = gradient_report(GradientSampler(collector), num_batches=4, num_reference=8)
        >>> report.value("pathwise", "noise") > 0
        True
    """
    check_int("num_batches", num_batches, minimum=2)
    check_int("num_reference", num_reference, minimum=2)
    check_float("confidence", confidence, minimum=0.0, maximum=0.999, strict=True)
    reference: list[dict[str, Tensor]] = []
    draws: list[dict[str, dict[str, Tensor]]] = []
    for number in progress(iter(range(num_reference + num_batches))):
        if number < num_reference:
            reference.append(sampler.sample_mixed())
        else:
            draws.append(sampler.sample())
    rows: list[dict[str, Any]] = []
    ceiling: dict[str, tuple[float, float, float]] = {}
    for group in sampler.groups:
        target = _Batches.of([gradient[group] for gradient in reference], seed=1)
        ceiling[group] = target.ceiling(confidence)
        for name in draws[0]:
            batches = _Batches.of([draw[name][group] for draw in draws], seed=0)
            if bool(batches.gradients.any()):  # what does not reach a group has no row in it
                known = sampler.describe(name)
                row = {"group": group, "estimator": name, "whole": known.whole}
                rows.append(row | {"known_bias": known.bias} | batches.measure(target, confidence))
    frames = sampler.collector.frames_per_batch
    return GradientReport(rows, ceiling, num_batches, frames, num_reference)


@dataclass(frozen=True)
class _Batches:
    """Gradients of independent batches, and what resampling them needs: their inner products."""

    gradients: NDArray[np.float64]
    gram: NDArray[np.float64]
    counts: NDArray[np.float64]  # how often each bootstrap resample holds each batch

    @classmethod
    def of(cls, gradients: list[Tensor], seed: int) -> _Batches:
        stacked = torch.stack(gradients).cpu().numpy()
        size = len(stacked)
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(size, np.full(size, 1.0 / size), _RESAMPLES).astype(float)
        # The first row is the sample itself: its figures are the estimates.
        return cls(stacked, stacked @ stacked.T, np.concatenate([np.ones((1, size)), drawn]))

    @property
    def squared_norm(self) -> NDArray[np.float64]:
        """Squared norm of the mean gradient."""
        pairs = np.einsum("ri,ij,rj->r", self.counts, self.gram, self.counts, optimize=True)
        return pairs / self.counts.sum(-1) ** 2

    @property
    def squared_signal(self) -> NDArray[np.float64]:
        """Squared norm of the expected gradient, from pairs of different batches only."""
        # Drawn twice, a batch must not count as two independent ones.
        total, squares = self.counts.sum(-1), self.counts**2
        own = squares @ np.diag(self.gram)
        pairs = self.squared_norm * total**2 - own
        return pairs / np.maximum(total**2 - squares.sum(-1), 1.0)

    def ceiling(self, confidence: float) -> tuple[float, float, float]:
        """Cosine between the expected gradient and the mean of these, with its interval."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            cosine = np.sqrt(np.maximum(self.squared_signal, 0.0) / self.squared_norm)
        return _interval(cosine, confidence)

    def measure(self, reference: _Batches, confidence: float) -> dict[str, float]:
        """All measures with their intervals; the reference is resampled as well."""
        # An exploding estimator (the straight-through one does) is measured without warnings.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            total, power = self.counts.sum(-1), np.diag(self.gram)
            inner = self.gradients @ reference.gradients.T @ reference.counts.T
            inner = (inner / reference.counts.sum(-1)).T  # (resamples, batches)
            norms = np.sqrt(power) * np.sqrt(reference.squared_norm)[:, None]
            cosine = inner / np.maximum(norms, 1e-300)
            squared = self.squared_signal
            target = reference.squared_signal
            signal = np.sqrt(np.maximum(squared, 0.0))
            noise = np.sqrt(np.maximum(self.counts @ power / total - squared, 0.0))
            distance = squared - 2 * (self.counts * inner).sum(-1) / total + target
            found = {
                "signal": signal,
                "noise": noise,
                "signal_to_noise": signal / np.maximum(noise, 1e-300),
                "alignment": (self.counts * cosine).sum(-1) / total,
                "bias": np.sqrt(np.maximum(distance, 0.0) / np.maximum(target, 1e-300)),
            }
        row: dict[str, float] = {}
        for name, values in found.items():
            keys = (name, f"{name}_low", f"{name}_high")
            row |= dict(zip(keys, _interval(values, confidence), strict=True))
        return row


def _interval(values: NDArray[np.float64], confidence: float) -> tuple[float, float, float]:
    """Estimate and percentile interval of ``(estimate, resample, ...)``."""
    tail = 50.0 * (1.0 - confidence)
    low, high = np.nanpercentile(np.nan_to_num(values[1:]), [tail, 100.0 - tail])
    return float(values[0]), float(low), float(high)
