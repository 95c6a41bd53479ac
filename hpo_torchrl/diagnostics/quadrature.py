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
# Even strata of a coordinate in which it is asked what matters, and in which jumps are looked for;
# powers of 2 that each tail is halved beyond them, so that no event is too rare to be seen.
_STRATA, _QUANTILES, _TAIL = 32, 512, 19
# Jumps that are located of each state, halvings that take, and different ones up to which each is
# an edge of its own; how wrong a Gauss rule may be of a mean, in deviations.
_JUMPS, _HALVINGS, _EDGES, _STEEP = 12, 30, 15, 0.02
_PIECE = 2**12  # quantiles that stand for a piece between jumps
_RARE = 1e-4  # probability below which a test of a distribution refuses it


class Rule(NamedTuple):
    """Nodes ``(Q, *noise_shape)`` and weights ``(Q,)`` of an expectation over the noise."""

    nodes: Tensor
    weights: Tensor


Nodes = tuple[np.ndarray, np.ndarray]


class Noise:
    """The noise of an environment, sampled once and summed up as a rule.

    Args:
        env: the environment; its generator moves.

    Attributes:
        sample: draws, ``(D, noise size)``.
        moving, paying: coordinates that move the state, and those that only pay, other than
            linearly; known after :meth:`examine`.
        tied: whether any coordinates depend on each other.
        steep: rules of coordinates in which outcomes jump.
        sampled: whether the distribution of what matters is that of the draws.

    Raises:
        ValueError: the noise depends on the step of the episode.
    """

    def __init__(self, env: Any) -> None:
        self.shape, self.size = env.noise_shape, int(np.prod(env.noise_shape))
        self.sample, self.dtype = draws(env, _DRAWS), env.float_dtype
        columns = self.sample.double().numpy().T
        self.marginals = [Marginal(np.ascontiguousarray(column)) for column in columns]
        self.tied = _dependent(columns.T[:_TESTED])

    def examine(self, step: Callable[[Tensor], tuple[Tensor, ...]], num: int) -> None:
        """Find which coordinates matter, and how.

        Args:
            step: ``(noise) -> (next state (P, C), reward (P,), over (P,))`` from fixed random
                states and actions, one of each for each of P noises.
            num: the number P.
        """
        self.moving, self.paying, self.steep, self.sampled = [], [], {}, False
        self.step, generator = step, np.random.default_rng(0)
        self.base = self.sample[generator.integers(len(self.sample), size=num)]
        for j, marginal in enumerate(self.marginals):
            # Each state has draws of its own, in the same strata.
            x = marginal.quantile(_ladder(_STRATA, generator.random((_STRATA, num))))
            found = self._outcomes(j, x)
            self.sampled |= marginal.sampled and bool(np.ptp(found, 0).any())
            after, reward, a, b = found[..., :-1], found[..., -1], len(x) // 4, -(len(x) // 4)
            if not np.isclose(after, after[:1], rtol=1e-5, atol=1e-7, equal_nan=True).all():
                self.moving.append(j)
                continue
            slope = (reward[b] - reward[a]) / np.maximum(x[b] - x[a], 1e-30)
            bend = np.abs(reward - reward[a] - slope * (x - x[a]))
            least = 1e-5 * np.abs(reward).max(0) + 1e-3 * np.abs(slope).mean() * marginal.spread
            # The mean of a discrete set is none of its values, and may be on either side of a jump.
            discrete = marginal.known is not None and np.ptp(reward, 0).any()
            if discrete or (bend > least).any():
                self.paying.append(j)
        used = [*self.moving, *self.paying]
        self.dependent = bool(used) and _dependent(self.sample[:_TESTED, used].double().numpy())
        self.sampled |= self.dependent
        for j in used:
            if self.marginals[j].known is None and (rule := self._steep(j)) is not None:
                self.steep[j] = rule

    def _outcomes(self, j: int, x: np.ndarray) -> np.ndarray:
        """Return next states, ends and rewards, ``(K, P, E)``, with values of a coordinate."""
        found = []
        for values in x:
            noise = self.base.clone()
            noise[:, j] = torch.as_tensor(values)
            after, reward, over = self.step(noise.reshape(-1, *self.shape))
            found.append(torch.cat([after, over[:, None].double(), reward[:, None]], -1))
        return torch.stack(found).numpy()

    def _steep(self, j: int) -> Nodes | None:
        """Return a rule for a coordinate in which outcomes jump, as of a coin; ``None`` if not."""
        marginal, num = self.marginals[j], len(self.base)
        shares = _ladder(_QUANTILES, np.full((_QUANTILES, 1), 0.5))
        x = marginal.quantile(shares).repeat(num, 1)
        fine, weights = self._outcomes(j, x), np.gradient(shares[:, 0])
        mean = np.tensordot(weights / weights.sum(), fine, 1)
        scale = np.sqrt(np.tensordot(weights / weights.sum(), (fine - mean) ** 2, 1)).mean(0)
        nodes, own = marginal.rule(_MOST_ALONG[1] // 4)
        rough = np.tensordot(own, self._outcomes(j, nodes[:, None].repeat(num, 1)), 1)
        smooth = bool((np.abs(rough - mean).mean(0) <= _STEEP * scale + 1e-9).all())
        jumps, flat = self._jumps(j, x, fine)
        edges = marginal.share(jumps)
        if len(edges) and len(distinct := _distinct(edges)) <= _EDGES:
            return marginal.pieces(distinct, 1 if flat else _MOST_ALONG[1] // 4)
        if smooth:
            return None
        # Where jumps depend on state and action, strata are narrow where there are many.
        even = np.arange(1, _MOST_ALONG[1] // 2) / (_MOST_ALONG[1] // 2)
        dense = np.quantile(edges, even) if len(edges) else even - even[0] / 2
        return marginal.pieces(_distinct(np.concatenate([even, dense])), 1)

    def _jumps(self, j: int, x: np.ndarray, fine: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return values at which outcomes jump, by bisection, and whether nothing else happens."""
        unit = 1e-6 * np.abs(fine).max((0, 1)) + 1e-12
        spread = np.maximum(fine.std((0, 1)), unit)
        change = np.abs(np.diff(fine, axis=0))
        moved = ((change > unit).any(-1)) * (change / spread).max(-1)  # (K - 1, P)
        flat, found = bool(((moved > 0).sum(0) <= _JUMPS).all()), []
        for k in np.argsort(-moved, 0)[:_JUMPS]:
            rows, before = np.arange(len(k)), moved[k, np.arange(len(k))]
            if not before.any():
                break
            sides, ends = (np.stack([y[k, rows], y[k + 1, rows]]) for y in (x, fine))
            for _ in range(_HALVINGS):
                middle = torch.as_tensor(sides.mean(0), dtype=self.dtype).double().numpy()
                here = self._outcomes(j, middle[None])[0]
                like = (np.abs(here - ends) / spread).max(-1).argmin(0)
                sides[like, rows], ends[like, rows] = middle, here
            sudden = (np.abs(ends[1] - ends[0]) / spread).max(-1) > 0.5 * before
            found.append(sides[1, (before > 0) & sudden])
            flat &= bool(sudden[before > 0].all())
        return np.concatenate([*found, []]), flat

    def points(self, count: int, generator: np.random.Generator) -> Tensor:
        """Draw noise ``(2 count, *noise_shape)``, the second half mirrored at the medians.

        Each half has every coordinate once in each stratum (McKay, Beckman and Conover, 1979).
        Unlike a rule this takes nothing about the dynamics for granted. Noise whose coordinates
        depend on each other is drawn from the sample.
        """
        if self.tied:
            found = self.sample[generator.integers(len(self.sample), size=2 * count)]
        else:
            strata = generator.permuted(np.tile(np.arange(count), (self.size, 1)), axis=1)
            even = (strata + generator.random(strata.shape)) / count
            pairs = zip(self.marginals, np.concatenate([even, 1 - even], 1), strict=True)
            rows = [marginal.quantile(shares) for marginal, shares in pairs]
            found = torch.as_tensor(np.stack(rows, -1), dtype=self.dtype)
        return found.reshape(-1, *self.shape)

    def rule(self, count: int) -> Rule:
        """Return a rule with about ``count`` nodes for each coordinate that matters.

        Coordinates that only pay, and linearly, are at their mean; the others make a product of
        Gauss rules, or, if they are many or depend on each other, a fixed sample.
        """
        used = [*self.moving, *self.paying]
        if self.dependent or len(used) > _MOST_COORDINATES:
            drawn = self.points(_POINTS // 2, np.random.default_rng(0)).reshape(_POINTS, -1)
            own, weights = drawn[:, used].double().numpy(), np.full(_POINTS, 1 / _POINTS)
        else:
            least = min(count, _MOST_ALONG[max(len(used), 1)])
            rules = [self.steep.get(j) or self.marginals[j].rule(least) for j in used]
            own = np.array([[*row] for row in itertools.product(*(nodes for nodes, _ in rules))])
            weights = np.array([np.prod(row) for row in itertools.product(*(w for _, w in rules))])
            keep = weights > 1e-7
            own, weights = own[keep], weights[keep] / weights[keep].sum()
        means = np.array([[marginal.mean for marginal in self.marginals]])
        nodes = means.repeat(len(weights), 0)
        nodes[:, used] = own
        found = torch.as_tensor(nodes, dtype=self.dtype)
        return Rule(found.reshape(-1, *self.shape), torch.as_tensor(weights))


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


class Marginal:
    """The distribution of one coordinate: exact where it is recognised, else that of its draws.

    A small discrete set is taken as it is; a normal or uniform distribution gets its Gauss rule,
    any other the Gauss rule of the draws (Golub and Welsch, 1969, by Lanczos).

    Args:
        sample: the draws.

    Attributes:
        known: values and probabilities of a discrete set.
        law: the frozen normal or uniform distribution.
    """

    def __init__(self, sample: np.ndarray) -> None:
        from scipy.stats import kstest, norm, uniform  # slow to load

        self.sample, n = np.sort(sample), len(sample)
        self.mean, self.spread = float(sample.mean()), float(sample.std())
        self.known: Nodes | None = None
        self.law, self.sampled = None, True
        values, counts = np.unique(self.sample, return_counts=True)
        if len(values) <= _VALUES:
            even = n / len(values)
            self.sampled = bool(np.abs(counts - even).max() >= 4 * even**0.5)
            self.known = (
                values,
                counts / n if self.sampled else np.full(len(values), 1 / len(values)),
            )
            return
        error, some = self.spread / n**0.5, sample[:_TESTED]
        centre, deviation = _round(self.mean, error), _round(self.spread, error / 2**0.5)
        end = 10 * (self.sample[-1] - self.sample[0]) / n
        low, high = _round(self.sample[0], end), _round(self.sample[-1], end)
        for law in (norm(centre, deviation), uniform(low, high - low)):
            if kstest(some, law.cdf).pvalue > _RARE:
                self.law, self.mean, self.sampled = law, float(law.mean()), False
                break

    def quantile(self, share: np.ndarray) -> np.ndarray:
        """Return the values below which shares of the probability lie."""
        if self.law is not None:
            return self.law.ppf(share)
        if self.known is not None:
            values, weights = self.known
            return values[np.minimum(np.searchsorted(weights.cumsum(), share), len(values) - 1)]
        return np.interp(share * len(self.sample) - 0.5, np.arange(len(self.sample)), self.sample)

    def share(self, value: np.ndarray) -> np.ndarray:
        """Return the probability of less than a value."""
        if self.law is not None:
            return self.law.cdf(value)
        return np.searchsorted(self.sample, value) / len(self.sample)

    def rule(self, count: int) -> Nodes:
        """Return nodes and weights: a discrete set as it is, else a Gauss rule."""
        if self.known is not None:
            return self.known
        if self.law is None:
            return _lanczos(self.sample, count)
        centre, half = self.law.mean(), self.law.std()
        if self.law.dist.name == "norm":
            nodes, weights = np.polynomial.hermite_e.hermegauss(count)
        else:
            nodes, weights = np.polynomial.legendre.leggauss(count)
            half *= 3**0.5
        return centre + half * nodes, weights / weights.sum()

    def pieces(self, edges: np.ndarray, count: int) -> Nodes:
        """Return a rule of about ``count`` nodes whose pieces lie between edges.

        Args:
            edges: shares of the probability below the edges, ascending, between 0 and 1.
            count: nodes of all pieces; each has 3 at least, or with 1 its mean alone.
        """
        nodes, weights = [], []
        for low, high in itertools.pairwise([0.0, *edges, 1.0]):
            inside = low + (high - low) * (np.arange(_PIECE) + 0.5) / _PIECE
            values = self.quantile(inside)
            own = min(max(3, round(count * (high - low))), len(np.unique(values)))
            x, w = _lanczos(values, own) if min(own, count) > 1 else (values[:1], np.ones(1))
            nodes.append(x if len(x) > 1 else [values.mean()])
            weights.append((high - low) * w)
        return np.concatenate(nodes), np.concatenate(weights)


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
    """Return 0 or the number of few digits that a value is within its error, or the value."""
    if abs(value) < 3 * error:
        return 0.0
    for digits in (1, 2, 3):
        near = float(f"{value:.{digits}g}")
        if abs(near - value) < 3 * error:
            return near
    return float(value)


def _ladder(strata: int, within: np.ndarray) -> np.ndarray:
    """Return shares of a probability in ascending order: in even strata, and in halved tails."""
    tail = np.repeat(
        0.5 ** np.arange(_TAIL, int(np.log2(strata)) + 1, -1)[:, None], within.shape[1], 1
    )
    even = (np.arange(strata)[:, None] + within) / strata
    return np.sort(np.concatenate([tail, even, 1 - tail]), 0)


def _distinct(shares: np.ndarray) -> np.ndarray:
    """Return probabilities in ascending order without those that only rounding tells apart."""
    found = np.sort(shares)
    return found[np.diff(found, prepend=0.0) > 1e-6]


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
