"""Signal, noise, alignment and bias of gradient estimators, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo_torchrl.core.checks import check_int
from hpo_torchrl.diagnostics.sampler import GradientSampler

_RESAMPLES = 1000
# An exploding estimator (the straight-through one does) is measured without warnings.
_quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")


@dataclass(frozen=True)
class GradientReport:
    """The figures that :func:`gradient_report` measured.

    Attributes:
        rows: one dict per parameter group and estimator: ``group``, ``estimator``, ``whole`` (an
            estimator of the gradient, not one of its terms), ``known_bias`` (in words), and each of
            ``signal``, ``noise``, ``signal_to_noise``, ``alignment`` and ``bias`` with its interval
            in ``<measure>_low`` and ``<measure>_high``.
        ceiling: by group, the alignment that a perfect estimator would show, with its interval
            ``(estimate, low, high)``: the reference has noise of its own.
        num_reference: batches behind the reference gradient.
    """

    rows: list[dict[str, Any]]
    ceiling: dict[str, tuple[float, float, float]]
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

    Intervals are 95 % percentiles of a bootstrap over the batches and those of the reference.

    Args:
        sampler: draws the gradients.
        num_batches: number G of batches.
        num_reference: batches behind the reference.
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
    loop = iter(progress(iter(range(num_reference + num_batches))))
    reference = [sampler.sample(["mixed"])["mixed"] for _ in islice(loop, num_reference)]
    draws = [sampler.sample() for _ in loop]
    rows: list[dict[str, Any]] = []
    ceiling: dict[str, tuple[float, float, float]] = {}
    for group in sampler.groups:
        target = _Batches([gradient[group] for gradient in reference], seed=1)
        ceiling[group] = _interval(target.ceiling())
        for name in draws[0]:
            batches = _Batches([draw[name][group] for draw in draws], seed=0)
            if not batches.gradients.any():
                continue  # what does not reach a group has no row in it
            known = sampler.describe(name)
            row = {"group": group, "estimator": name, "whole": known.whole}
            row |= {"known_bias": known.bias}
            for measure, values in batches.measures(target).items():
                ends = ("", "_low", "_high")
                found = zip(ends, _interval(values), strict=True)
                row |= {f"{measure}{end}": value for end, value in found}
            rows.append(row)
    return GradientReport(rows, ceiling, num_reference)


class _Batches:
    """Gradients of independent batches, with what resampling them needs.

    Each figure is that of the batches themselves first, then of every bootstrap resample.
    """

    def __init__(self, gradients: list[Tensor], seed: int) -> None:
        self.gradients = torch.stack(gradients).cpu().numpy()
        gram = self.gradients @ self.gradients.T
        size = len(gram)
        drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), _RESAMPLES)
        # How often each resample holds each batch, (resamples, batches).
        self.counts = np.concatenate([np.ones((1, size)), drawn])
        self.power = np.diag(gram)
        pairs = np.einsum("ri,ij,rj->r", self.counts, gram, self.counts, optimize=True)
        # Squared norm of the mean gradient.
        self.squared_norm = pairs / size**2
        # Squared norm of the expected gradient, from pairs of different batches only: drawn twice,
        # a batch must not count as two independent ones.
        squares = self.counts**2
        different = np.maximum(size**2 - squares.sum(-1), 1.0)
        self.squared_signal = (pairs - squares @ self.power) / different

    @_quiet
    def ceiling(self) -> NDArray[np.float64]:
        """Cosine between the expected gradient and the mean of these."""
        return np.sqrt(np.maximum(self.squared_signal, 0.0) / self.squared_norm)

    @_quiet
    def measures(self, reference: _Batches) -> dict[str, NDArray[np.float64]]:
        """All measures; the reference is resampled as well."""
        size, target = len(self.power), reference.squared_signal
        inner = self.gradients @ reference.gradients.T @ reference.counts.T
        inner = inner.T / len(reference.power)  # (resamples, batches)
        norms = np.sqrt(self.power) * np.sqrt(reference.squared_norm)[:, None]
        cosine = inner / np.maximum(norms, 1e-300)
        signal = np.sqrt(np.maximum(self.squared_signal, 0.0))
        variance = self.counts @ self.power / size - self.squared_signal
        noise = np.sqrt(np.maximum(variance, 0.0))
        distance = self.squared_signal - 2 * (self.counts * inner).sum(-1) / size + target
        return {
            "signal": signal,
            "noise": noise,
            "signal_to_noise": signal / np.maximum(noise, 1e-300),
            "alignment": (self.counts * cosine).sum(-1) / size,
            "bias": np.sqrt(np.maximum(distance, 0.0) / np.maximum(target, 1e-300)),
        }


def _interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return an estimate with its 95 % percentile interval."""
    low, high = np.nanpercentile(np.nan_to_num(values[1:]), [2.5, 97.5])
    return float(values[0]), float(low), float(high)
