"""Statistics of a handful of training runs, with intervals that say how little a handful tells.

The measures are those of Agarwal, Schwarzer, Castro, Courville & Bellemare (2021), *Deep
reinforcement learning at the edge of the statistical precipice*, NeurIPS, and of their package
rliable: the interquartile mean and the probability of improvement, with 95 % percentile intervals
of a stratified bootstrap. Such intervals are too narrow with few runs: of normal scores, they cover
the truth in 50 % of all cases with two runs, 76 % with three, 91 % with five and 94 % with ten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from hpo_torchrl.core.reference import excess
from hpo_torchrl.reporting.groups import TIMES, Groups
from hpo_torchrl.reporting.published import published_costs
from hpo_torchrl.reporting.runs import FINISHED, MEASURES

_TAIL = 0.025
_SEED = 20210830
_PROBLEM = ["problem", "algorithm"]
Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """A number and its bootstrap interval; lists of them for a curve.

    Attributes:
        value: the estimate from all runs; NaN if there are none.
        low: lower end of the interval; NaN where a single run allows none.
        high: upper end of the interval, or NaN.
    """

    value: Any
    low: Any = math.nan
    high: Any = math.nan

    def columns(self, name: str) -> dict[str, Any]:
        """Return the columns of a table that hold it."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def estimate_iqm(*strata: ArrayLike) -> Estimate:
    """Estimate the interquartile mean over one or several problems, with a bootstrap interval.

    From the sorted scores ``x_(1) <= ... <= x_(N)`` the lowest and the highest ``k = floor(N / 4)``
    are left out: ``IQM = sum_{i = k + 1}^{N - k} x_(i) / (N - 2 k)``. Up to three scores it is the
    mean. Between mean and median, it is robust to a run that failed and yet uses half of the data
    (Agarwal et al. 2021, section 4.3). The bootstrap is stratified: runs are drawn anew, with
    replacement, within each problem, and the scores of all problems are then pooled (section 4.1).

    Args:
        strata: the scores of each problem, shape ``(*points, runs)``; the numbers of runs may
            differ. Points of a curve are estimated one by one, from the same resampled runs.

    Returns:
        The estimate, with lists of shape ``points`` if there are any; without an interval where a
        problem has a single run.

    Raises:
        ValueError: a score is NaN.

    Examples:
        >>> from hpo_torchrl.reporting.statistics import estimate_iqm
        >>> estimate = estimate_iqm([1.0, 2.0, 3.0, 4.0, 100.0])
        >>> estimate.value, estimate.low < 3.0 < estimate.high
        (3.0, True)
        >>> estimate_iqm([1.0])
        Estimate(value=1.0, low=nan, high=nan)
    """

    def pooled(*data: Array) -> Array:
        values = np.sort(np.concatenate(data, axis=-1), axis=-1)
        number = values.shape[-1]
        return values[..., number // 4 : number - number // 4].mean(-1)

    return _estimate(pooled, *strata)


def estimate_median(times: ArrayLike) -> Estimate:
    """Estimate the median of times, which are infinite for runs that never arrive.

    Args:
        times: shape ``(runs,)``.

    Returns:
        The estimate, all of which may be infinite; without an interval for a single run.

    Raises:
        ValueError: a time is NaN.

    Examples:
        >>> from hpo_torchrl.reporting.statistics import estimate_median
        >>> estimate_median([20.0, 30.0, float("inf")])
        Estimate(value=30.0, low=20.0, high=inf)
    """
    return _estimate(lambda sample: np.median(sample, axis=-1), times)


def estimate_improvement(first: Sequence[ArrayLike], second: Sequence[ArrayLike]) -> Estimate:
    """Estimate the probability that a run of the first algorithm costs less than one of the second.

    On each problem ``P = (#{x < y} + #{x = y} / 2) / (N_x N_y)`` over all pairs of runs, the
    Mann-Whitney statistic; then the mean over problems (Agarwal et al. 2021, section 4.3, with the
    sign turned: here lower is better). The bootstrap draws the runs of each algorithm and problem
    anew. Where all runs of one beat all of the other it can only return [1, 1], which is no
    certainty.

    Args:
        first: costs of the first algorithm on each problem, each of shape ``(runs,)``.
        second: costs of the second algorithm on the same problems.

    Returns:
        The estimate; without an interval where an algorithm has a single run on a problem.

    Raises:
        ValueError: the numbers of problems differ, or a cost is NaN.

    Examples:
        >>> from hpo_torchrl.reporting.statistics import estimate_improvement
        >>> estimate_improvement([[1.0, 2.0, 4.0]], [[3.0, 4.0]]).value
        0.75
    """

    def improvement(*data: Array) -> Array:
        pairs = zip(data[: len(first)], data[len(first) :], strict=True)
        signs = [np.sign(y[..., None, :] - x[..., :, None]).mean((-2, -1)) for x, y in pairs]
        return 0.5 + 0.5 * np.mean(signs, axis=0)

    return _estimate(improvement, *first, *second)


def compare_algorithms(groups: Groups) -> pd.DataFrame:
    """Return one row per problem and algorithm: costs, gaps and times to a target gap.

    Args:
        groups: the runs.

    Returns:
        The columns ``problem``, ``algorithm``, ``seeds`` (runs in all), ``finished``; ``cost_iqm``
        (per unit and period); ``reference`` (what the gap is to), ``reference_cost``, ``bound``
        (the lower bound); ``gap_iqm``, ``gap_worst``; ``reached`` (runs that reached the target),
        ``updates_to_target``, ``env_steps_to_target``, ``seconds_to_target`` (medians over all
        runs, infinite where half of them never did) and ``wall_seconds`` (median of the finished
        runs). The ends of an interval are in ``<column>_low`` and ``<column>_high``. After the
        algorithms of a problem come its rules, and last the gaps pooled over the problems that all
        algorithms share, if there are two, with intervals of a bootstrap stratified by problem.
    """
    rows = []
    for label, members in groups.counted.groupby("problem", sort=False):
        for algorithm, same in members.groupby("algorithm"):
            updates = same["updates_to_target"].dropna()
            row = {"problem": label, "algorithm": algorithm, "seeds": len(same)}
            row["finished"] = same["test_cost"].count()
            row |= estimate_iqm(same["test_cost"].dropna()).columns("cost_iqm")
            row |= dict(same.iloc[0][["reference", "reference_cost", "bound"]])
            row |= estimate_iqm(same["gap"].dropna()).columns("gap_iqm")
            row["gap_worst"] = same["gap"].max()
            row["reached"] = np.isfinite(updates).sum() if len(updates) else None
            row |= dict(same[[*TIMES, "wall_seconds"]].median())
            rows.append(row | estimate_median(updates).columns("updates_to_target"))
        rows += groups.rules[groups.rules["problem"] == label].to_dict("records")
    gaps = _by_problem(groups.counted, "gap").dropna()
    for algorithm, strata in gaps.items() if len(gaps) > 1 else ():
        row = {"problem": f"the {len(gaps)} problems that all share", "algorithm": algorithm}
        row["seeds"] = row["finished"] = strata.map(len).sum()
        row["reference"] = " or ".join(groups.runs["reference"].dropna().unique())
        row |= estimate_iqm(*strata).columns("gap_iqm")
        rows.append(row | {"gap_worst": strata.map(max).max()})
    return pd.DataFrame(rows).astype(dict.fromkeys(("seeds", "finished", "reached"), "Int64"))


def compare_tests(groups: Groups) -> pd.DataFrame:
    """Return one row per problem, test and algorithm: costs, gaps, and what others published.

    Two tests of a run may measure different objectives, as a window of a hundred periods and the
    long run do, so that costs are compared within a test only. In the test that a run is judged by
    the gap is to the reference of the problem; in another one it is to the cheapest of the rules
    that were run as algorithms, which is simulated in the same test.

    Args:
        groups: the runs.

    Returns:
        The columns ``problem``, ``test``, ``algorithm``, ``runs``, ``cost_iqm``, ``gap_iqm``, each
        with an interval, ``reference`` and ``reference_cost``. After the algorithms of a test come
        the simple rules, if none was run, and the published figures, without intervals.
    """
    counted = groups.counted[groups.counted["status"] == FINISHED]
    published, rows = published_costs(counted), list[dict[str, Any]]()
    for label, members in counted.groupby("problem", sort=False):
        first, known = members.iloc[0], published[published["problem"] == label]
        costs = pd.DataFrame([*members["costs"]], index=members.index).astype(float)
        for test in costs:
            found, own = costs[test].dropna(), test == first["primary"]
            best = found[members["updates"] == 0].min()
            level = {"reference": "best rule" if best == best else None, "reference_cost": best}
            if own:
                level = dict(first[["reference", "reference_cost"]])
            row = {"problem": label, "test": test, **level}
            for name, same in found.groupby(members["algorithm"]):
                gaps = excess(same, level["reference_cost"]).dropna()
                entry = row | {"algorithm": name, "runs": len(same)}
                entry |= estimate_iqm(same).columns("cost_iqm")
                rows.append(entry | estimate_iqm(gaps).columns("gap_iqm"))
            others = known[known["test"] == test][["algorithm", "cost_iqm"]]
            if own and best != best:  # no rule was run
                rules = groups.rules[groups.rules["problem"] == label]
                others = pd.concat([rules[["algorithm", "cost_iqm"]], others])
            gaps = excess(others["cost_iqm"], level["reference_cost"])
            rows += [row | one for one in others.assign(gap_iqm=gaps).to_dict("records")]
    found = pd.DataFrame(rows, columns=None if rows else [*_PROBLEM, "test", "runs"])
    return found.astype({"runs": "Int64"})


def compare_pairs(groups: Groups) -> pd.DataFrame:
    """Return the probability that one algorithm costs less than another, for every pair.

    Args:
        groups: the runs.

    Returns:
        The columns ``problem``, ``first``, ``second`` and ``probability`` with its interval; see
        :func:`estimate_improvement`. Last come the means over the problems on which both finished a
        run, if there are two.
    """
    costs, rows = _by_problem(groups.counted, "test_cost"), []
    for first, second in combinations(costs, 2):
        both = costs[[first, second]].dropna()
        parts = [both.loc[[label]] for label in both.index]
        for part in [*parts, both] if len(parts) > 1 else parts:
            label = part.index[0] if len(part) == 1 else f"{len(part)} problems"
            row = {"problem": label, "first": first, "second": second}
            row |= estimate_improvement(part[first], part[second]).columns("probability")
            rows.append(row)
    return pd.DataFrame(rows)


def compare_curves(groups: Groups) -> pd.DataFrame:
    """Return the learning curve of every problem and algorithm.

    Args:
        groups: the runs.

    Returns:
        The columns ``problem``, ``algorithm``, ``update``, ``env_steps`` and the interquartile
        means of ``gap`` and ``test_cost``, with intervals, over the finished runs, at the updates
        at which all of them were tested. The rules of a problem are lines on a level.
    """
    parts = []
    for place, tests in groups.tests.groupby(_PROBLEM, sort=False):
        steps = tests.groupby("update")["env_steps"].median()
        part = pd.DataFrame({"env_steps": steps})
        for column in ("gap", "test_cost"):
            known = tests[np.isfinite(tests[column])]
            runs = known.groupby(["update", "folder"])[column].last().unstack().dropna()
            line = estimate_iqm(runs.to_numpy()).columns(column)
            part = part.join(pd.DataFrame(line, index=runs.index))
        parts.append(part.reset_index().assign(**dict(zip(_PROBLEM, place, strict=True))))
    if not parts:
        return pd.DataFrame(columns=[*_PROBLEM, "gap", "test_cost"])
    curves = pd.concat(parts)
    rules = groups.rules.rename(columns={"gap_iqm": "gap", "cost_iqm": "test_cost"})
    places = curves[["problem", "update", "env_steps"]].drop_duplicates()
    return pd.concat([curves, rules.merge(places, on="problem")])


def compare_gradients(gradients: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """Return signal-to-noise and alignment of every estimator over the folders of a group.

    Args:
        gradients: as :class:`RunFolders` holds them; those of a run that was run again do not
            count.
        groups: the runs.

    Returns:
        The columns ``problem``, ``algorithm``, ``group`` (of parameters), ``estimator``, ``whole``,
        ``folders`` and, for ``signal_to_noise`` and ``alignment``, the interquartile mean over
        folders with a bootstrap interval over them; for a single folder, the report's own interval
        over its batches.
    """
    keys = [*_PROBLEM, "group", "estimator", "whole"]
    found = groups.counted[["folder", *_PROBLEM]].merge(gradients, on="folder")
    rows = []
    for place, same in found.groupby(keys, sort=False):
        row = dict(zip(keys, place, strict=True)) | {"folders": len(same)}
        for name in MEASURES:
            several = estimate_iqm(same[name][np.isfinite(same[name])])
            single = Estimate(*same.iloc[0][[name, f"{name}_low", f"{name}_high"]])
            row |= (several if len(same) > 1 else single).columns(name)
        rows.append(row)
    return pd.DataFrame(rows)


def _by_problem(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the known values of a column as lists, by problem and algorithm."""
    known = runs.dropna(subset=column).groupby(_PROBLEM, sort=False)
    return known[column].apply(list).unstack()


def _estimate(statistic: Callable[..., Array], *samples: ArrayLike) -> Estimate:
    """Apply a statistic, which reduces the last axis, to samples and to resamples of them."""
    data = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if any(np.isnan(sample).any() for sample in data):
        raise ValueError("scores must hold no NaN; leave out runs without a result.")
    sizes = [sample.shape[-1] for sample in data]
    if min(sizes, default=0) == 0:
        return Estimate(math.nan)
    number, generator = 1000 if data[0].ndim > 1 else 5000, np.random.default_rng(_SEED)
    ends = [statistic(*data)]
    if min(sizes) > 1:
        resamples = [
            sample[..., generator.integers(size, size=(number, size))]
            for sample, size in zip(data, sizes, strict=True)
        ]
        drawn = statistic(*resamples)
        # No interpolation, which infinite times would turn into NaN.
        ends.append(np.quantile(drawn, _TAIL, axis=-1, method="lower"))
        ends.append(np.quantile(drawn, 1.0 - _TAIL, axis=-1, method="higher"))
    return Estimate(*(np.asarray(end).tolist() for end in ends))
