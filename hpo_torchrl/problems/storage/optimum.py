r"""The optimum of one battery on a wandering price, and a bound on that of many.

A battery's content is put on a lattice and the price's deviation on nodes; both err on the side of
a higher profit, so that what the best policy of the lattice costs is a lower bound on the cost of
any policy:

* Moves between lattice points are between c - B and c + A, the ratings rounded up to whole steps.
  The reward of a step is concave in the move, but for the choice of the mode. A function above it
  that is linear between whole moves makes all candidates of the maximisation linear on each cell of
  the lattice; their maximum is convex there, hence at most what is interpolated between points. So
  values at the lattice points, with whole moves alone, bound those of all contents and moves.
* The value is convex in the deviation: a policy that follows the noise alone earns an amount that
  is linear in it, and the value is the best of these. Interpolation between nodes thus errs
  upwards, as the spread of Edmundson and Madansky does for an expectation (Madansky, 1959,
  "Bounds on the expectation of a convex function of a multivariate random variable", Annals of
  Mathematical Statistics 30). Beyond the last nodes the value grows as fast as it ever may.
* The gain of the chain is at most the largest difference between two iterates of the values
  (Odoni, 1969, "On finding the maximal gain for Markov decision processes", Operations Research
  17).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

# Steps of the lattice from empty to full, at least and at most, and nodes of the deviation: those
# within three standard deviations, and those in either tail, out to so many.
LATTICE, NODES = (100, 200), (121, 10, 7.0)
COARSE = ((20, 60), (31, 4, 6.0))
_CYCLES = 400  # passes through the cycle before values count as settled anyway
_MOST = 10**8  # entries of the table of rewards


class Store(NamedTuple):
    """The numbers of one battery, or of the mean battery of a fleet: first those of ``Batteries``.

    Attributes:
        running_cost: cost of an hour in which it does not idle.
        fleet: whether it is many: running costs then are in proportion to the power, and energy
            can be burnt by charging one and discharging another.
    """

    capacity: float
    charge_rating: float
    discharge_rating: float
    charge_efficiency: float
    discharge_efficiency: float
    wear_cost: float
    self_discharge: float
    running_cost: float
    fleet: bool = False


class Market(NamedTuple):
    """What a battery's power costs, with T the steps of a cycle.

    Attributes:
        price: mean price by step, ``(T,)``.
        slope: what the price rises by with the deviation, ``(T,)``; 1 but for multipliers.
        kept: share of the deviation left after a step.
        shock: standard deviation of what is added.
        hours: length of a step.
        impact: cost of the squared power.
        limit: most import and export by step, ``(2, T)``; infinite where there is none.
        excess_cost: cost per MWh beyond.
    """

    price: np.ndarray
    slope: np.ndarray
    kept: float
    shock: float
    hours: float
    impact: float
    limit: np.ndarray
    excess_cost: float


class Plan(NamedTuple):
    """What the lattice's best policy earns and does.

    Attributes:
        cost: lower bound on the average cost of a step.
        ahead: what is earned after a step, given its content then and the deviation before,
            ``(T, Y, C)``.
        contents: the lattice, ``(C,)``.
        nodes: the deviations, ``(Y,)``.
        best: the best move in steps of the lattice, ``(T, Y, C)``.
        power: of moves -B, ..., A, ``(B + A + 1,)``.
        chance: transition matrix of the deviation, ``(Y, Y)``.
        loosest: relative widening of the ratings by rounding.
    """

    cost: float
    ahead: np.ndarray
    contents: np.ndarray
    nodes: np.ndarray
    best: np.ndarray
    power: np.ndarray
    chance: np.ndarray
    loosest: float


def solve(
    store: Store,
    market: Market,
    *,
    lattice: tuple[int, int] = LATTICE,
    nodes: tuple[int, int, float] = NODES,
    tolerance: float = 1e-5,
) -> Plan:
    """Solve one battery for its long-run average cost, erring downwards.

    Args:
        store: the battery.
        market: what its power costs.
        lattice: fewest and most steps of the lattice.
        nodes: nodes of the deviation: within three standard deviations, in each tail, and how
            far out.
        tolerance: spread of the gain over states, relative to the gain, at which values are
            settled.

    Raises:
        ValueError: the cycle is too long for a table of all its rewards.

    Examples:
        >>> import numpy as np
        >>> from hpo_torchrl.problems.storage.optimum import Market, Store, solve
        >>> store = Store(1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
        >>> known = np.array([10.0, 30.0])  # buy at 10, sell at 30, for ever
        >>> endless = np.full((2, 2), np.inf)
        >>> market = Market(known, np.ones(2), 0.0, 0.0, 1.0, 0.0, endless, 0.0)
        >>> round(solve(store, market).cost, 6)
        -10.0
    """
    steps, up, down, loosest = _lattice(store, market.hours, lattice)
    contents = np.linspace(0.0, store.capacity, steps + 1)
    unit = store.capacity / steps / market.hours
    moves = np.arange(-down, up + 1)
    power = unit * np.where(
        moves > 0, moves / store.charge_efficiency, moves * store.discharge_efficiency
    )
    deviation, chance, tail = _deviations(market, nodes, abs(power).max())
    size = len(market.price) * len(deviation) * len(moves)
    if size > _MOST:
        raise ValueError(
            f"A plan of {len(market.price)} steps by {len(deviation)} deviations and {len(moves)} "
            f"moves is beyond {_MOST} entries; shorten the cycle of prices."
        )
    reward = _rewards(store, market, power, deviation) + tail[:, None]
    # Above the reward between whole moves: a square sags by this much below its tangents.
    reward += market.hours * market.impact * (unit / store.charge_efficiency) ** 2 / 4
    kept = (1 - store.self_discharge) ** market.hours
    low = np.floor(kept * np.arange(steps + 1) + 1e-9).astype(int)
    value = np.zeros((len(deviation), steps + 1))
    ahead = np.empty((len(reward), *value.shape))
    best = np.zeros(ahead.shape, dtype=np.int16)
    for _ in range(_CYCLES):
        before = value
        for t in reversed(range(len(reward))):
            ahead[t] = chance @ value
            value, best[t] = _maximised(reward[t], ahead[t], down, low)
        gains = (value - before) / len(reward)
        # The true gain does not depend on the state, and is at most the largest of these.
        if np.ptp(gains) <= tolerance * max(abs(gains.max()), 1e-9):
            break
        value = value - value.min()
    return Plan(-float(gains.max()), ahead, contents, deviation, best, power, chance, loosest)


def _lattice(store: Store, hours: float, sizes: tuple[int, int]) -> tuple[int, int, int, float]:
    """Choose the lattice whose steps fit the ratings best; return its size, A, B and the misfit."""
    counts = np.arange(sizes[0], sizes[1] + 1)
    ratings = np.array(
        [
            hours * store.charge_efficiency * store.charge_rating / store.capacity,
            hours * store.discharge_rating / store.discharge_efficiency / store.capacity,
        ]
    )
    exact = np.minimum(ratings, 1.0)[:, None] * counts
    whole = np.ceil(exact - 1e-6)
    misfit = (whole / exact - 1).max(0)
    at = misfit.argmin()
    up, down = whole[:, at].astype(int)
    return int(counts[at]), int(up), int(down), float(misfit[at])


def _deviations(
    market: Market, nodes: tuple[int, int, float], most: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return nodes of the deviation, their transition matrix, and what is added at each."""
    if market.shock == 0:
        return np.zeros(1), np.ones((1, 1)), np.zeros(1)
    inner, outer, farthest = nodes
    far = np.linspace(3.0, farthest, outer + 1)[1:]
    y = np.concatenate([-far[::-1], np.linspace(-3.0, 3.0, inner), far])
    y = y * market.shock / np.sqrt(1 - market.kept**2)
    # E[(Y - x)+] at each node x, given each deviation before: hats are its second differences.
    mean = market.kept * y[:, None] - y
    over = market.shock * normal_loss(-mean / market.shock)
    slopes = np.diff(over, axis=1) / np.diff(y)  # -P(Y > x), averaged over a cell
    slopes = np.concatenate([-np.ones((len(y), 1)), slopes, np.zeros((len(y), 1))], 1)
    # What lies beyond the last nodes counts as at them, and as much more as it can earn there.
    under = over[:, 0] - mean[:, 0]
    steepest = market.hours * most * abs(market.slope).max() / (1 - market.kept)
    return y, np.diff(slopes, axis=1), steepest * (over[:, -1] + under)


def normal_loss(z: np.ndarray) -> np.ndarray:
    """Return E[(Z - z)+] of a standard normal Z."""
    return np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) - z * ndtr(-z)


def _rewards(store: Store, market: Market, power: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return what a step earns, ``(T, Y, moves)``."""
    price = market.price[:, None] + market.slope[:, None] * y
    # A limit between two whole moves counts as at the next one outwards.
    limit = np.stack([_outwards(power, most) for most in market.limit[0]])
    floor = np.stack([_outwards(-power[::-1], most) for most in market.limit[1]])

    def rate(p: np.ndarray) -> np.ndarray:
        beyond = (p - limit[:, None, None]).clip(0) + (-p - floor[:, None, None]).clip(0)
        return -(price[..., None] * p + market.impact * p**2 + market.excess_cost * beyond)

    found = rate(np.broadcast_to(power, (*price.shape, len(power))))
    running = store.running_cost * (power != 0)
    if store.fleet:
        # Running at most at its rating, each battery costs at least its share of the power.
        rating = np.where(power > 0, store.charge_rating, store.discharge_rating)
        running = store.running_cost * abs(power) / rating
        for at in _stationary(price, market, limit, floor):
            found = np.maximum(found, rate(np.clip(at[..., None], power, power[-1])))
    return market.hours * (found - running - store.wear_cost * abs(power))


def _outwards(power: np.ndarray, most: float) -> float:
    """Return the least power that is not below a limit, or the limit if it is beyond all."""
    at = np.searchsorted(power, most - 1e-12)
    return power[at] if 0 < at < len(power) else most


def _stationary(price: np.ndarray, market: Market, limit: Any, floor: Any) -> list[np.ndarray]:
    """Return where the rate of earning may have its maximum in the power."""
    found = [np.broadcast_to(x[:, None], price.shape) for x in (limit, -floor)]
    for push in (0.0, market.excess_cost, -market.excess_cost):
        with np.errstate(divide="ignore", invalid="ignore"):
            at = (push - price) / (2 * market.impact)
        found.append(np.nan_to_num(at, nan=0.0))
    return found


def _maximised(
    reward: np.ndarray, ahead: np.ndarray, down: int, low: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take the best move at each deviation and content; the loss by itself is chosen, too."""
    size = ahead.shape[1]
    value, best = np.full(ahead.shape, -np.inf), np.zeros(ahead.shape, dtype=np.int16)
    for m in range(-down, reward.shape[1] - down):
        here, there = slice(max(0, -m), size - max(0, m)), slice(max(0, m), size + min(0, m))
        tried = reward[:, m + down, None] + ahead[:, there]
        better = tried > value[:, here]
        np.copyto(value[:, here], tried, where=better)
        best[:, here][better] = m
    lost = value
    for back in range(1, int((np.arange(size) - low).max()) + 1):
        at = np.maximum(np.arange(size) - back, low)
        lost = np.maximum(lost, value[:, at])
    return lost, best
