"""Signal, noise, alignment and bias of gradient estimators, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torch import Tensor

from hpo_torchrl._checks import check_float, check_int
from hpo_torchrl.diagnostics.estimators import ESTIMATORS, GradientSampler

MEASURES = ("signal", "noise", "signal_to_noise", "alignment", "bias")
_RESAMPLES = 1000


@dataclass(frozen=True)
class GradientReport:
    """What :func:`gradient_report` measured.

    Attributes:
        rows: one dict per parameter group and estimator: ``group``, ``estimator``, ``whole`` (an
            estimator of the gradient, not one of its terms), ``known_bias`` (in words), and each of
            ``signal``, ``noise``, ``signal_to_noise``, ``alignment`` and ``bias`` with its interval
            in ``<measure>_low`` and ``<measure>_high``.
        ceiling: by group, the alignment that a perfect estimator would show: the reference has
            noise of its own.
        num_batches: gradients per estimator.
        batch_frames: environment steps in a batch.
        num_reference: batches behind the reference gradient.
    """

    rows: list[dict[str, Any]]
    ceiling: dict[str, float]
    num_batches: int
    batch_frames: int
    num_reference: int

    def value(self, estimator: str, measure: str, group: str = "continuous") -> float:
        """Return one figure of the report.

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
      the noise of both means taken off; 0 where it is within that noise.

    Intervals are percentiles of a bootstrap over batches; the reference is held.

    Args:
        sampler: draws the gradients.
        num_batches: number G of batches.
        num_reference: batches behind the reference.
        confidence: of the intervals.
        progress: wraps the loop over batches, for example ``tqdm``.

    Raises:
        ValueError: a number is out of range.

    Examples:
        >>> from hpo_torchrl.collectors import DifferentiableCollector
        >>> from hpo_torchrl.diagnostics import GradientSampler, gradient_report
        >>> from hpo_torchrl.envs import InventoryEnv
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
    check_float("confidence", confidence, minimum=0.0, maximum=1.0, strict=True)
    reference: list[dict[str, Tensor]] = []
    draws: list[dict[str, dict[str, Tensor]]] = []
    for number in progress(iter(range(num_reference + num_batches))):
        if number < num_reference:
            reference.append(sampler.sample_mixed())
        else:
            draws.append(sampler.sample())
    rows: list[dict[str, Any]] = []
    ceiling: dict[str, float] = {}
    for group in sampler.groups:
        stacked = torch.stack([gradient[group] for gradient in reference])
        target = _Reference.of(stacked)
        ceiling[group] = target.ceiling
        for name in draws[0]:
            gradients = torch.stack([draw[name][group] for draw in draws])
            if bool(gradients.any()):  # an estimator that does not reach a group has no row in it
                known = ESTIMATORS[name]
                row = {"group": group, "estimator": name, "whole": known.whole}
                rows.append(
                    row | {"known_bias": known.bias} | _measure(gradients, target, confidence)
                )
    frames = sampler.collector.frames_per_batch
    return GradientReport(rows, ceiling, num_batches, frames, num_reference)


@dataclass(frozen=True)
class _Reference:
    mean: Tensor
    squared_signal: float

    @classmethod
    def of(cls, gradients: Tensor) -> _Reference:
        mean = gradients.mean(0)
        variance = float(gradients.var(0).sum())
        return cls(mean, float(mean.square().sum()) - variance / len(gradients))

    @property
    def ceiling(self) -> float:
        """Cosine between the expected gradient and its estimate here."""
        square = float(self.mean.square().sum())
        return math.sqrt(max(0.0, self.squared_signal) / square) if square else math.nan


def _measure(gradients: Tensor, reference: _Reference, confidence: float) -> dict[str, float]:
    gram = (gradients @ gradients.T).numpy()
    inner = (gradients @ reference.mean).numpy()
    norms = np.sqrt(np.diag(gram)) * float(reference.mean.norm())
    cosine = inner / np.maximum(norms, 1e-300)

    def statistics(index: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
        # Drawn twice, a batch must not count as two independent ones: only true pairs do.
        counts = (index[..., None] == np.arange(len(gram))).sum(axis - 1).astype(float)
        total = counts.sum(-1)
        own = (counts**2) @ np.diag(gram)
        pairs = np.einsum("...i,ij,...j->...", counts, gram, counts) - own
        squared_signal = pairs / np.maximum(total**2 - (counts**2).sum(-1), 1.0)
        variance = counts @ np.diag(gram) / total - squared_signal
        signal = np.sqrt(np.maximum(squared_signal, 0.0))
        noise = np.sqrt(np.maximum(variance, 0.0))
        distance = squared_signal - 2 * counts @ inner / total + reference.squared_signal
        scale = max(reference.squared_signal, 1e-300)
        bias = np.sqrt(np.maximum(distance, 0.0) / scale)
        ratio = signal / np.maximum(noise, 1e-300)
        return np.stack([signal, noise, ratio, counts @ cosine / total, bias])

    index = np.arange(len(gram))
    # An exploding estimator (the straight-through one does) is measured as such, without warnings.
    with np.errstate(over="ignore", invalid="ignore"):
        found = statistics(index)
        interval = bootstrap(
            (index,),
            statistics,
            n_resamples=_RESAMPLES,
            confidence_level=confidence,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(0),
        ).confidence_interval
    row: dict[str, float] = {}
    for name, value, low, high in zip(MEASURES, found, *interval, strict=True):
        row |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    return row
