"""Kinds of demand: their moments, seasons and autocorrelations are those of closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchrl.envs.utils import check_env_specs

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory import Gamma, Intermittent, NegativeBinomial, Normal, Poisson
from hpo_torchrl.problems.inventory.counts import CountTable

PLACE = {"dtype": torch.float32, "device": None}
WEEK = {"length": 7, "amplitude": 0.4, "peak": 2}
MOVING = {"season": WEEK, "autoregression": [0.6, 0.2]}
# The distribution of a mean, by scipy, and the part of its variance that grows with the square.
KINDS = {
    "poisson": ({}, lambda m: (stats.poisson(m), 0.0)),
    "gamma": ({"variation": 0.5}, lambda m: (stats.gamma(4.0, scale=m / 4.0), 0.25)),
    "normal": ({"deviation": [1.0, 2.5]}, lambda m: (stats.norm(m, m / 8.0), 1 / 64)),
    "negative_binomial": (
        {"variation": [0.5, 0.4]},
        lambda m: (stats.nbinom(*shape_of(m)), 1 / shape_of(m)[0]),
    ),
}
MEAN = [8.0, 20.0]


def shape_of(mean):
    """The negative binomial's n and p, from its mean and the variation given above."""
    variance = ({8.0: 0.5, 20.0: 0.4}[mean] * mean) ** 2
    return mean**2 / (variance - mean), mean / variance


def drawn(demand, periods=60, batch=3000):
    env = InventoryEnv(2, demand=demand, batch_size=batch, seed=1)
    start = env.reset()
    return start, env.sample_noise(periods, start).double()


@pytest.mark.parametrize("kind", KINDS)
def test_independent_demand_is_that_of_scipy(kind):
    arguments, closed = KINDS[kind]
    _, demand = drawn({"name": kind, "mean": MEAN, **arguments}, 20)
    for item, mean in enumerate(MEAN):
        own, (known, _) = demand[..., item].flatten(), closed(mean)
        assert own.mean() == pytest.approx(known.mean(), rel=0.01)
        assert own.var() == pytest.approx(known.var(), rel=0.03)
        for level in known.ppf([0.1, 0.5, 0.9]):
            assert (own <= level).double().mean() == pytest.approx(known.cdf(level), abs=0.01)


@settings(max_examples=50, deadline=None)
@given(weights=st.lists(st.lists(st.floats(0, 1), min_size=5, max_size=5), min_size=1, max_size=4))
def test_a_table_stands_for_its_probabilities(weights):
    exact = np.add(weights, [0, 1e-3, 0, 0, 0])  # no row is all zeros
    exact /= exact.sum(1, keepdims=True)
    table = CountTable(exact, dtype=torch.float64)
    assert table.size == 8  # a power of two
    for row, first in zip(exact, table.first.tolist(), strict=True):
        cells = slice(first, first + table.size)
        own = (table.thresholds[cells].numpy() - np.arange(8)) / 8
        found = np.bincount(table.others[cells].numpy().astype(int), 1 / 8 - own, 8) + own
        assert found == pytest.approx(np.pad(row, (0, 3)), abs=1e-12)


def test_demand_without_a_table_is_drawn_one_by_one():
    """Wide supports and moving levels: the same distribution, from another sampler."""
    table = InventoryEnv(demand=40.0, batch_size=1).demand.table
    assert InventoryEnv(demand=400.0, batch_size=1).demand.table is None
    assert (
        InventoryEnv(demand={"name": "poisson", "season": WEEK}, batch_size=1).demand.table is None
    )
    one_by_one = torch.poisson(torch.full((200_000,), 40.0), generator=torch.manual_seed(0))
    found = table.draw((200_000, 1), torch.Generator().manual_seed(0)).flatten()
    assert stats.ks_2samp(found, one_by_one).pvalue > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_moving_level_has_its_season_autocorrelation_and_variance(kind):
    arguments, closed = KINDS[kind]
    start, demand = drawn({"name": kind, "mean": MEAN, **arguments, **MOVING})
    factors = 1 + 0.4 * np.cos(2 * np.pi / 7 * (np.arange(7) - 2))
    places = start["period"].long().unsqueeze(1) + torch.arange(60).unsqueeze(-1)
    level = torch.as_tensor(factors)[places % 7]
    for item, (mean, phi) in enumerate(zip(MEAN, MOVING["autoregression"], strict=True)):
        for place in range(7):
            own = demand[..., item][places[..., item] % 7 == place]
            assert own.mean() == pytest.approx(mean * factors[place], rel=0.03)
        relative = (demand / level)[..., item]
        # From the last period before the start on: the start is stationary too.
        before = start["recent"][:, item, 0] / torch.as_tensor(factors)[places[:, 0, item] - 1]
        relative = torch.cat([before.unsqueeze(-1), relative], -1)
        for lag in (1, 2):
            found = np.corrcoef(relative[:, :-lag].flatten(), relative[:, lag:].flatten())[0, 1]
            assert found == pytest.approx(phi**lag, abs=0.025)
    # Without a season the variance is that of independent demand over 1 - phi^2 (1 + alpha).
    _, steady = drawn({"name": kind, "mean": MEAN, **arguments, "autoregression": 0.4})
    for item, mean in enumerate(MEAN):
        known, square = closed(mean)
        truth = known.var() / (1 - 0.4**2 * (1 + square))
        assert steady[..., item].var() == pytest.approx(truth, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(
    factors=st.lists(st.floats(0.1, 5.0), min_size=2, max_size=6),
    phi=st.floats(0.0, 0.9),
    start=st.floats(0.5, 30.0),
    place=st.integers(0, 5),
)
def test_the_level_follows_its_equation(factors, phi, start, place):
    """Demand that hardly varies is its own mean, which a loop recounts."""
    demand = Gamma(8.0, 1e-5, season=factors, autoregression=phi)
    env = InventoryEnv(demand=demand, batch_size=1, seed=0, dtype=torch.float64)
    f = np.array(factors) / np.mean(factors)
    t, met, expected = place % len(f), start, []
    for _ in range(9):
        met = 8.0 * f[t] * (1 - phi + phi * met / (8.0 * f[t - 1]))
        expected.append(met)
        t = (t + 1) % len(f)
    given_start = {
        "period": torch.full((1, 1), float(place % len(f)), dtype=torch.float64),
        "recent": torch.full((1, 1, 1), start, dtype=torch.float64),
    }
    found = env.sample_noise(9, given_start).flatten().tolist()
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("variation", [None, 0.9, 0.45])
def test_intermittent_demand_has_its_zeros_and_sizes(variation):
    p, size = 0.25, 5.0
    arguments = {"mean": p * size, "probability": p, "variation": variation}
    env = InventoryEnv(demand=Intermittent(**arguments), batch_size=4000, seed=0)
    demand = env.sample_noise(50).double().flatten().numpy()
    (pmf,) = env.demand.pmf(200)
    deviation = np.sqrt(size * (size - 1)) if variation is None else variation * size
    number = np.arange(200)
    assert (pmf.sum(), pmf @ number) == pytest.approx((1.0, p * size))
    assert pmf @ number**2 == pytest.approx(p * (size**2 + deviation**2), rel=1e-4)
    counts = np.bincount(demand.astype(int), minlength=200)
    seen = pmf * len(demand) > 20
    observed, expected = counts[seen], pmf[seen] * len(demand)
    assert ((observed - expected) ** 2 / expected).sum() < stats.chi2.ppf(0.999, seen.sum())
    # The level moves how often, then how much: the mean follows it in any case.
    high = Intermittent(2.0, 0.8, season=[0.5, 1.5]).bind(1, None, 40_000, **PLACE)
    for place, (level, share) in enumerate(((0.5, 0.4), (1.5, 1.0))):
        own = high.sample(torch.full((40_000, 1), level), torch.Generator().manual_seed(place))
        assert own.mean().item() == pytest.approx(2.0 * level, rel=0.03)
        assert (own > 0).double().mean().item() == pytest.approx(share, abs=0.01)


def test_sizes_need_not_be_whole():
    demand = Intermittent(3.0, 0.5, 0.5, whole=False)
    own = InventoryEnv(demand=demand, batch_size=20_000, seed=0).sample_noise(1).flatten()
    own = own[own > 0].numpy()
    assert stats.kstest(own, stats.gamma(4.0, scale=1.5).cdf).pvalue > 0.001
    assert stats.kstest(own, stats.gamma(2.0, scale=3.0).cdf).pvalue < 0.001  # it could fail
    assert demand.bind(1, None, 1, **PLACE).pmf(9) is None


DEMAND = [
    Gamma(MEAN, 0.3),
    Intermittent(MEAN, 0.4),
    *(kind(MEAN, **MOVING) for kind in (Poisson, Normal, Gamma, NegativeBinomial, Intermittent)),
    Poisson(MEAN, season=[[1.0, 0.0], [3.0, 2.0]], autoregression=0.5),
]


@pytest.mark.parametrize("demand", DEMAND, ids=lambda demand: f"{demand} {demand.season}"[:20])
def test_both_routes_meet_the_same_demand_and_gradients_are_the_dynamics(demand):
    env = InventoryEnv(2, 1, demand, batch_size=3, seed=0, dtype=torch.float64)
    check_env_specs(env)
    assert not env.solvable
    policy, start = HybridPolicy.for_env(env), env.reset()
    noise = env.sample_noise(12, start.select(*env.state_names).to_dict())
    functional = differentiable_rollout(env, policy.eval(), 12, tensordict=start, noise=noise)
    env.load_noise(noise)
    actions = iter(functional["action"].unbind(1))
    general = env.rollout(
        12, lambda td: td.set("action", next(actions)), tensordict=start, auto_reset=False
    )
    for key in ("observation", "inventory", *demand.state_shapes(2)):
        torch.testing.assert_close(general["next", key], functional["next", key])
        assert general["next", key].isfinite().all()
    # The demand is no function of the action: gradients are those of given demand.
    plain, rows = InventoryEnv(2, 1, 1.0, batch_size=3, dtype=torch.float64), []
    for place in (env, plain):
        order = torch.full((3, 2), 5.0, dtype=torch.float64, requires_grad=True)
        state = {key: start[key] for key in place.state_names}
        total = 0.0
        for step in range(6):
            action = {"discrete": torch.ones(3, dtype=torch.int64), "continuous": order}
            state, reward, _ = place.advance(state, action, noise[:, step])
            total = total + reward.sum()
        rows.append(torch.autograd.grad(total, order)[0])
    torch.testing.assert_close(*rows)


def test_episodes_begin_anywhere_in_the_season_or_at_its_first_place():
    season = {"length": 7, "amplitude": 1.0}
    env = InventoryEnv(2, demand=Poisson(MEAN, season=season), batch_size=700, seed=0)
    period = env.reset()["period"]
    assert period.unique().tolist() == [*range(7)]
    assert torch.equal(period[:, 0], period[:, 1])
    cut = InventoryEnv(2, demand=Poisson(MEAN, season=season), horizon=5, batch_size=4, seed=0)
    assert cut.reset()["period"].eq(0).all()
    assert InventoryEnv(2, demand=Poisson(MEAN), batch_size=4).state_names == ("inventory", "step")


BAD = {
    "season needs its length": {"season": {"amplitude": 0.4}},
    "Did you mean 'peak'": {"season": {"length": 7, "peek": 2}},
    "season.amplitude must be a finite number >= 0 and <= 1": {
        "season": {"length": 7, "amplitude": 2.0}
    },
    "2 places or more": {"season": [1.0]},
    "factors >= 0": {"season": [1.0, -1.0]},
    "num_items=2": {"season": [[1.0, 2.0, 3.0]] * 2},
    "demand.autoregression must be below": {"autoregression": 0.999},
    "demand.autoregression must be a finite number >= 0": {"autoregression": -0.1},
    "takes mean, variation, season, autoregression": {"seson": 7},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_levels_are_named(message):
    with pytest.raises(ValueError, match=message):
        InventoryEnv(2, demand={"name": "gamma", **BAD[message]})


def test_bad_parameters_and_starts_are_named():
    for demand, message in (
        (Intermittent(0.2, 0.3), "demand.probability must be at most"),
        (Intermittent(9.0, 1.5), "demand.probability must be at most"),
        (Intermittent(2.0, 0.2, 0.1), r"at least sqrt\(m - 1\) / m"),
        (Gamma(2.0, 0.0), "demand.variation must be a finite number > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            InventoryEnv(demand=demand)
    with pytest.raises(TypeError, match=r"demand\.whole must be true or false"):
        Intermittent(whole="yes")
    with pytest.raises(TypeError, match="season must hold the factors"):
        Poisson(season="week")
    with pytest.raises(ValueError, match="depends on where a rollout starts"):
        InventoryEnv(demand=Poisson(season=[1.0, 2.0])).sample_noise(3)
