"""Models of a file's demand: the fit recovers what made it, and policies learn on one and act on
the other.
"""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from shrunk import TINY
from torchrl.envs.utils import check_env_specs
from weekly_file import weekly_demand, write_weekly_file

import hpo_torchrl
from hpo_torchrl.experiments import cli
from hpo_torchrl.experiments.build import build_env, build_tests
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory import Record
from hpo_torchrl.problems.inventory.demand_fit import fit_demand
from hpo_torchrl.problems.inventory.fitted import Fitted
from hpo_torchrl.problems.inventory.rules import TotalDemandPolicy
from hpo_torchrl.problems.inventory.season_fit import fit_season

PERIODS = 800
WAVE = 1 + 0.4 * np.cos(2 * np.pi / 52 * (np.arange(PERIODS) - 11))
# Draws of a mean by period, by numpy alone, with the coefficient of variation at the mean 12.
DRAWS = {
    "poisson": (lambda rng, m: rng.poisson(m), 12**-0.5),
    "negative_binomial": (lambda rng, m: rng.negative_binomial(3, 3 / (3 + m)), (5 / 12) ** 0.5),
    "gamma": (lambda rng, m: rng.gamma(4.0, m / 4.0), 0.5),
    "normal": (lambda rng, m: rng.normal(m, 0.2 * m), 0.2),
    # Geometric sizes of mean 40: (1 + 39 / 40) / 0.3 - 1.
    "intermittent": (
        lambda rng, m: rng.geometric(1 / 40, len(m)) * (rng.random(len(m)) < 0.3 * m / 12),
        ((2 - 1 / 40) / 0.3 - 1) ** 0.5,
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", DRAWS)
def test_a_fit_recovers_what_made_the_record(kind, seed):
    draw, variation = DRAWS[kind]
    demand = draw(np.random.default_rng(seed), 12.0 * WAVE).astype(float)[:, None]
    fit = fit_demand(demand, 52)
    (model,) = fit.models
    assert model.kind == kind
    error = 1.25 * variation / PERIODS**0.5  # of a mean, relative; the season adds a little
    assert model.arguments["mean"] == pytest.approx(12.0, rel=4 * error)
    assert model.variation == pytest.approx(variation, rel=0.12)
    assert model.autoregression == 0
    if variation < 1:  # one item of few sizes shows no season
        truth = WAVE[:52] / WAVE[:52].mean()
        assert np.abs(fit.factors[:, 0] - truth).mean() < 4 * error
        assert np.abs(np.roll(fit.factors[:, 0], 8) - truth).mean() > 4 * error  # it could fail


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_a_fit_recovers_autoregression(phi):
    rng, rows = np.random.default_rng(5), []
    for _ in range(6):
        demand = [20.0]
        for _ in range(400):
            demand.append(rng.poisson(20.0 * (1 - phi) + phi * demand[-1]))
        rows.append(demand)
    fit = fit_demand(np.array(rows).T)
    found = [model.autoregression for model in fit.models]
    assert np.mean(found) == pytest.approx(phi, abs=0.05)
    # Beside autoregression, what is left is Poisson: its part of the variance is not counted twice.
    assert np.mean([model.variation for model in fit.models]) == pytest.approx(20**-0.5, rel=0.05)
    simulated = fit._simulated()
    relative = simulated - simulated.mean(axis=(0, 1))
    own = (relative[:, 1:] * relative[:, :-1]).mean() / (relative**2).mean()
    assert own == pytest.approx(phi, abs=0.05)


def test_items_of_a_short_record_share_their_season():
    truth = 1 + 0.4 * np.cos(2 * np.pi / 52 * (np.arange(52) - 26))
    for seed in range(3):
        demand = weekly_demand(seed)[:94]
        together = fit_season(demand, 52)
        alone = np.concatenate([fit_season(row[:, None], 52) for row in demand.T], axis=1)
        errors = [((own - truth[:, None]) ** 2).mean() ** 0.5 for own in (together, alone)]
        assert errors[0] < 0.1 < errors[1]
    # What is an item's own is found where the record is long enough.
    rng, waves = np.random.default_rng(0), np.stack([WAVE, 2 - WAVE, WAVE, 2 - WAVE], 1)
    own = fit_season(rng.poisson(50 * waves), 52)
    assert np.abs(own - waves[:52] / waves[:52].mean(axis=0)).max() < 0.1
    # A season may begin within the record.
    moved = fit_season(rng.poisson(50 * waves[30:]), 52, first=30)
    assert np.abs(moved - own).max() < 0.1


def test_what_items_have_in_common_is_found_and_simulated():
    rng = np.random.default_rng(0)
    shared = rng.gamma(10.0, 0.1, (300, 1))
    for common, truth in ((shared, 0.1), (1.0, 0.0)):
        fit = fit_demand(rng.poisson(30 * common * rng.gamma(8.0, 1 / 8, (300, 8))))
        assert fit.common == pytest.approx(truth, abs=0.04)
        many = fit._simulated() / 30 - 1
        assert (many[..., 0] * many[..., 1]).mean() == pytest.approx(fit.common, abs=0.01)
        assert many[..., 0].var() == pytest.approx((1 + truth) * (1 + 1 / 8) - 1 + 1 / 30, rel=0.2)


def test_a_bad_fit_is_told():
    rng = np.random.default_rng(0)
    steady = rng.integers(48, 53, (300, 1))  # varies far less than counts do
    switched = np.where(np.arange(300) < 150, 0, 1)[:, None] * rng.poisson(9, (300, 1))
    fit = fit_demand(np.concatenate([steady, switched, rng.poisson(9, (300, 20))], axis=1))
    assert "quantile" in fit.table["odd"][0]
    assert (fit.table["odd"][2:] == "").sum() >= 18  # chance flags one in fifty
    text = fit.table.loc[0, "odd"]
    assert f"quantile {np.quantile(steady, 0.95):.3g}, not" in text


# -- training on models, testing on the record ---------------------------------------------------


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_weekly_file(tmp_path_factory.mktemp("weekly") / "weekly.csv", 0, items=4)


COMMON = {"history": 3, "season": 52, "batch_size": 6, "seed": 0}


def test_a_policy_sees_the_same_of_models_and_of_the_record(path):
    fitted = InventoryEnv.from_file(path, demand="fitted", **COMMON)
    replayed = InventoryEnv.from_file(path, show_season=True, **COMMON)
    test = InventoryEnv.from_file(path, "test", demand="fitted", start_period="first", **COMMON)
    assert isinstance(fitted.demand, Fitted)
    assert not any(isinstance(env.demand, Fitted) for env in (replayed, test))
    for env in (fitted, replayed, test):
        assert env.observation_dim == 4 * 2 + 4 * 3 + 2
        assert env.derived_units == fitted.derived_units
        assert torch.equal(env.action_scale, fitted.action_scale)
        check_env_specs(env)
        state = env.reset()
        recent = state["recent"] / env.demand_mean.unsqueeze(-1)
        torch.testing.assert_close(state["observation"][:, 8:-2], recent.flatten(-2))
        angle = 2 * np.pi / 52 * state["period"][:, :1]
        seen = torch.cat([angle.sin(), angle.cos()], -1)
        torch.testing.assert_close(state["observation"][:, -2:], seen, atol=1e-5, rtol=0)
    # Items start apart by seasons, of which all see the same place.
    assert (test.reset()["period"] == 125).all()
    # Today's runs are what they were.
    plain = InventoryEnv.from_file(path, **COMMON)
    assert plain.observation_dim == 4 * 2 + 4 * 3
    # The rule is that of the record.
    rules = [TotalDemandPolicy.best(env) for env in (fitted, plain, test)]
    assert repr(rules[0]) == repr(rules[1]) == repr(rules[2])


def test_models_are_at_the_place_of_the_season_that_the_policy_sees():
    demand = np.random.default_rng(0).poisson(50 * np.tile([0.4, 1.0, 1.6, 1.0], 60))[:, None]
    for first in (0, 3):  # the training periods need not begin with the season
        given = {"train_periods": (first, 240), "season": 4, "show_season": True, "history": 1}
        env = InventoryEnv(demand=Fitted(demand, **given), batch_size=4000, seed=1)
        start = env.reset()
        noise = env.sample_noise(1, start)[:, 0, 0]
        for place, level in enumerate((0.4, 1.0, 1.6, 1.0)):
            at = start["period"][:, 0] == place
            assert noise[at].mean().item() == pytest.approx(50 * level, rel=0.08)
            before = (0.4, 1.0, 1.6, 1.0)[place - 1]
            assert start["recent"][at].mean().item() == pytest.approx(50 * before, rel=0.08)
        # A rollout goes on with the season, on each route.
        run = env.rollout(9, break_when_any_done=False)
        met, place = run["next", "recent"][..., 0, 0], run["period"][..., 0]
        assert met[place == 2].mean() / met[place == 0].mean() == pytest.approx(4.0, rel=0.15)


def test_a_policy_trained_on_models_is_tested_on_the_record(path, tmp_path, capsys):
    few = ["env.history=3", "evaluation.validation.batch_size=4"]
    few += [f"evaluation.tests.{name}.batch_size=4" for name in ("test", "dev", "train")]
    settings = ["env=inventory_from_file", f"env.path={path}", *TINY, *few]
    config = compose_config(settings)  # weeks, so that a season has 52
    assert isinstance(build_env(config).demand, Fitted)
    tests, _, validation = build_tests(config)
    assert not any(isinstance(test.env.demand, Fitted) for test in [*tests.values(), validation])
    folder = tmp_path / "run"
    cli.train([*settings, f"output_dir={folder}"])
    assert "fitted demand    3 negative_binomial, 1 intermittent" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["demand_fit"]["models"] == {"negative_binomial": 3, "intermittent": 1}
    with (folder / "demand_fit.csv").open() as file:
        rows = {row["item"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["I00", "I01", "I02", "I03"]
    assert 0.3 < float(rows["I00"]["low"]) < 0.8 < 1.2 < float(rows["I00"]["high"]) < 1.8
    # The rule beside it is that of a run that replays the record.
    replay, *_ = build_tests(compose_config([*settings, "env.demand=record"]))
    rule = TotalDemandPolicy.best(replay["test"].env)
    assert summary["rule"]["S"] == rule.S.tolist()
    # What the policy is asked after the record ends is the place in the season after it.
    run = hpo_torchrl.load_run(folder)
    seen = {}

    def act(state):
        seen.update(state)
        return run.policy(state)

    run.policy.env.decide(act, {"on_hand": [9.0] * 4})
    assert (seen["period"] == 156).all()
    assert seen["recent"].shape == (4, 3)
    # The policy keeps its season where the periods of another file have none.
    rows = [row.split(",", 1) for row in path.read_text().splitlines()]
    numbered = [f"{at // 4},{rest}" for at, (_, rest) in enumerate(rows[1:])]
    (tmp_path / "numbered.csv").write_text("\n".join([",".join(rows[0]), *numbered]))
    capsys.readouterr()
    cli.evaluate([str(folder), f"env.path={tmp_path / 'numbered.csv'}"])
    assert f"test cost        {summary['test_cost']:.4f}" in capsys.readouterr().out
    cli.data([str(path)])
    said = capsys.readouterr().out
    assert said.count("negative_binomial") == 3
    cli.data([str(path), "season=200"])
    assert "none: A season of 200 periods cannot be fitted to 94" in capsys.readouterr().out


def test_bad_fits_are_refused(path):
    ones = np.ones((9, 1))
    for make, message in (
        (lambda: InventoryEnv.from_file(path, demand="fited"), "'record'.*or 'fitted'.*'fited'"),
        (lambda: InventoryEnv.from_file(path, demand=3), "demand comes from the file"),
        (
            lambda: InventoryEnv.from_file(path, demand="fitted", season=100),
            "season of 100 periods cannot be fitted to 94",
        ),
        (
            lambda: InventoryEnv.from_file(path, show_season=True, season=0),
            "show_season=True needs the periods",
        ),
        (lambda: Record(ones, show_season=True, season=1), "2 or more, got season=1"),
        (lambda: Fitted(ones, start_period="first"), "start_period='first'"),
        (lambda: Fitted(np.ones((2, 9, 1))), "one for all env instances"),
        (lambda: Fitted(ones, history=0), "history must be an integer >= 1"),
        (lambda: fit_demand(0 * ones), r"places \[0\], which have no demand"),
        (lambda: fit_demand(ones, 1), "season must be an integer >= 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
