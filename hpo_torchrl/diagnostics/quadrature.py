"""Quadrature of an environment's noise, found from its draws."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Draws that a rule is found from, those that are tested for a known distribution, and the values
# up to which noise counts as a discrete set.
_DRAWS, _TESTED, _VALUES = 2**19, 20_000, 64
# Nodes of a product of rules; coordinates that may make one, and what stands for more of them.
_MOST_ALONG, _MOST_COORDINATES, _POINTS = {1: 64, 2: 8, 3: 5}, 3, 256
# Quantiles that are looked at for jumps, in a power of 2, and how wrong a Gauss rule may be of a
# mean, in deviations.
_QUANTILES, _STEEP = 512, 0.02
_RARE = 1e-4  # probability below which a test of a distribution refuses it


class Rule(NamedTuple):
    """Nodes ``(Q, *noise_shape)`` and weights ``(Q,)`` of an expectation over the noise."""

    nodes: Tensor
    weights: Tensor


class Noise:
    """The noise of an environment, sampled once and summed up as a rule.

    Args:
        env: the environment; its generator moves.
        step: ``(noise) -> (next state (P, C), reward (P,), over (P,))`` from fixed random states
            and actions, one of each for each of P noises: which coordinates matter, and how.
        num: the number P.

    Raises:
        ValueError: the noise depends on the step of the episode.
    """

    def __init__(self, env: Any, step: Callable[[Tensor], tuple[Tensor, ...]], num: int) -> None:
        self.shape, self.size = env.noise_shape, int(np.prod(env.noise_shape))
        self.sample = draws(env, _DRAWS)  # (D, size)
        self.place = {"dtype": env.float_dtype}
        sample = self.sample.double().numpy()
        self.mean, self.spread = sample.mean(0), sample.std(0)
        self.moving, self.paying = self._what_matters(step, num)
        used = [*self.moving, *self.paying]
        self.steep = {j: fine for j in used if (fine := self._steep(step, num, j)) is not None}
        self.dependent = bool(used) and _dependent(sample[:_TESTED, used])

    def _what_matters(self, step: Any, num: int) -> tuple[list[int], list[int]]:
        """Coordinates that move the state, and those that only pay, other than linearly."""
        moving, paying = [], []
        base = self.sample[:num].repeat(-(-num // len(self.sample[:num])), 1)[:num]
        for j in range(self.size):
            found = []
            for z in (0.0, 1.0, -1.0, 2.5):
                noise = base.clone()
                noise[:, j] = float(self.mean[j] + z * self.spread[j])
                found.append(step(noise.reshape(-1, *self.shape)))
            other, extra = base.clone(), self.sample[-num:]
            other[: len(extra), j] = extra[:, j]
            found.append(step(other.reshape(-1, *self.shape)))
            (after, _, over), rewards = found[0], torch.stack([reward for _, reward, _ in found])
            if any(not (_same(a, after) and torch.equal(o, over)) for a, _, o in found[1:]):
                moving.append(j)
            slope = rewards[1] - rewards[0]
            bend = (rewards[1] + rewards[2] - 2 * rewards[0]).abs()
            far = (rewards[3] - rewards[0] - 2.5 * slope).abs()
            least = 1e-5 * rewards[0].abs() + 1e-3 * slope.abs().mean()
            if j not in moving and bool((torch.maximum(bend, far) > least).any()):
                paying.append(j)
        return moving, paying

    def _steep(self, step: Any, num: int, j: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a rule for a coordinate in which outcomes jump, as of a coin; ``None`` if not.

        Of many quantiles those stay that have another outcome, in some state, than the one before.
        """
        own = self.sample[:, j].double().numpy()
        nodes, weights = marginal_rule(own, max(_MOST_ALONG.values()) // 4)
        even = np.quantile(own, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)
        base = self.sample[: min(num, len(self.sample))]

        def outcomes(values: np.ndarray) -> np.ndarray:
            found = []
            for value in values:
                noise = base.repeat(-(-num // len(base)), 1)[:num]
                noise[:, j] = float(value)
                after, reward, over = step(noise.reshape(-1, *self.shape))
                found.append(torch.cat([after, reward[:, None], over[:, None].double()], -1))
            return torch.stack(found).numpy()

        fine = outcomes(even)
        error = np.abs(np.tensordot(weights, outcomes(nodes), 1) - fine.mean(0)).mean(0)
        if (error <= _STEEP * fine.std(0).mean(0) + 1e-9).all():
            return None
        scale = 1e-6 * np.abs(fine).max((0, 1)) + 1e-12
        new = np.concatenate([[True], (np.abs(np.diff(fine, axis=0)) > scale).any((1, 2))])
        starts = np.flatnonzero(new)
        shares = np.diff([*starts, _QUANTILES]) / _QUANTILES
        if len(starts) > _VALUES:
            return even[:: _QUANTILES // _VALUES], np.full(_VALUES, 1 / _VALUES)
        middle = (starts + np.array([*starts[1:], _QUANTILES]) - 1) // 2
        return even[middle], shares

    def rule(self, count: int) -> Rule:
        """Return a rule with about ``count`` nodes for each coordinate that matters.

        Coordinates that only pay, and linearly, are at their mean; the others make a product of
        Gauss rules, or, if they are many or depend on each other, a fixed sample.
        """
        used = [*self.moving, *self.paying]
        base = self.mean.copy()
        if not used:
            nodes, weights = base[None], np.ones(1)
        elif self.dependent or len(used) > _MOST_COORDINATES:
            nodes = np.repeat(base[None], _POINTS, 0)
            nodes[:, used] = self._points(used)
            weights = np.full(_POINTS, 1 / _POINTS)
        else:
            most = _MOST_ALONG[len(used)]
            rules = [
                self.steep.get(j) or marginal_rule(self.sample[:, j].double().numpy(), least)
                for j in used
                for least in [min(count, most)]
            ]
            nodes = np.array([[*row] for row in itertools.product(*(nodes for nodes, _ in rules))])
            weights = np.array([np.prod(row) for row in itertools.product(*(w for _, w in rules))])
            nodes, own = np.repeat(base[None], len(weights), 0), nodes
            nodes[:, used] = own
            keep = weights > 1e-7
            nodes, weights = nodes[keep], weights[keep] / weights[keep].sum()
        found = torch.as_tensor(nodes, **self.place)
        return Rule(found.reshape(-1, *self.shape), torch.as_tensor(weights))

    def _points(self, used: list[int]) -> np.ndarray:
        """A fixed sample: draws as they are, or of each coordinate by itself, evenly spread."""
        own = self.sample[:, used].double().numpy()
        if self.dependent:
            return own[:_POINTS]
        from scipy.stats import qmc  # slow to load

        even = qmc.Sobol(len(used), seed=0).random(_POINTS)
        return np.stack([np.quantile(own[:, k], even[:, k]) for k in range(len(used))], -1)


def draws(env: Any, count: int) -> Tensor:
    """Draw noise of all instances and many steps, ``(D, noise size)`` with D near ``count``.

    Raises:
        ValueError: the noise depends on the step of the episode.
    """
    size = max(env.batch_size.numel(), 1)
    found = []
    for step in (0, 17):
        env.set_seed(0)
        state = env.fresh_state()
        env.set_seed(1)
        state["step"] = torch.full_like(state["step"], step)
        found.append(env.sample_noise(3, state))
    if not torch.equal(*found):
        raise ValueError(
            f"grid_optimum needs noise that is the same in every step, but that of "
            f"{type(env).__name__} depends on the step of the episode; use reference=yardsticks."
        )
    steps = max(1, min(-(-count // size), count // 8))
    drawn = env.sample_noise(steps, state)
    return drawn.reshape(size * steps, -1)[:count] if env.noise_shape else drawn.reshape(-1, 1)


def marginal_rule(sample: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of one coordinate: exact where its distribution is recognised.

    A small discrete set is taken as it is; a normal or uniform distribution gets its Gauss rule,
    any other the Gauss rule of the draws (Golub and Welsch, 1969, by Lanczos).
    """
    from scipy.stats import kstest  # slow to load

    n, (values, counts) = len(sample), np.unique(sample, return_counts=True)
    if len(values) <= _VALUES:
        even = n / len(values)
        if np.abs(counts - even).max() < 4 * even**0.5:
            return values, np.full(len(values), 1 / len(values))
        return values, counts / n
    mean, spread, some = sample.mean(), sample.std(), sample[:_TESTED]
    centre = 0.0 if abs(mean) < 4 * spread / n**0.5 else _round(mean, spread / n**0.5)
    deviation = _round(spread, spread / (2 * n) ** 0.5)
    if kstest(some, "norm", (centre, deviation)).pvalue > _RARE:
        nodes, weights = np.polynomial.hermite_e.hermegauss(count)
        return centre + deviation * nodes, weights / weights.sum()
    low, high = sample.min(), sample.max()
    end = 10 * (high - low) / n
    low, high = _round(low, end), _round(high, end)
    if kstest(some, "uniform", (low, high - low)).pvalue > _RARE:
        nodes, weights = np.polynomial.legendre.leggauss(count)
        return (low + high) / 2 + (high - low) / 2 * nodes, weights / 2
    return _lanczos(sample, count)


def _lanczos(sample: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss rule of the draws themselves: exact for their moments up to 2 count - 1."""
    mean, spread = sample.mean(), sample.std()
    x, basis = (sample - mean) / spread, [np.full(len(sample), len(sample) ** -0.5)]
    diagonal, beside = [], []
    for _ in range(count):
        moved = x * basis[-1]
        diagonal.append(float(moved @ basis[-1]))
        for known in basis:  # in full: three terms lose their orthogonality
            moved = moved - (moved @ known) * known
        beside.append(float(np.linalg.norm(moved)))
        basis.append(moved / beside[-1])
    jacobi = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
    nodes, vectors = np.linalg.eigh(jacobi)
    return mean + spread * nodes, vectors[0] ** 2


def _round(value: float, error: float) -> float:
    """Return the number of two or three digits that a value is within its error, or the value."""
    for digits in (1, 2, 3):
        near = float(f"{value:.{digits}g}")
        if abs(near - value) < 3 * error:
            return near
    return float(value)


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def _dependent(sample: np.ndarray) -> bool:
    """Whether coordinates are correlated, in themselves or in their sizes."""
    if sample.shape[1] < 2:
        return False
    varying = sample[:, sample.std(0) > 0]
    return any(
        np.abs(np.corrcoef(kind, rowvar=False) - np.eye(kind.shape[1])).max() > 5 / len(kind) ** 0.5
        for kind in (varying, np.abs(varying - varying.mean(0)))
        if kind.shape[1] > 1
    )
