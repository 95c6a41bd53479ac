"""Switched LQR from the command line: references, gaps, pictures, settings that fit episodes."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from shrunk import TINY
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.algorithms import HPO
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.experiments.cli import train
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.problems.switched_lqr import fixed_mode_cost
from hpo_torchrl.training import Evaluation

SMALL = [*TINY, "collect.unroll_length=null", "evaluation.tests.fixed_start.batch_size=16"]


def run_train(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["hpo-train", *SMALL, *arguments])
    train()
    return capsys.readouterr().out


def test_two_modes_are_compared_with_the_optimum_and_two_dimensions_drawn(
    tmp_path, monkeypatch, capsys
):
    settings = ["env=switched_lqr_2d", "env.horizon=6", f"output_dir={tmp_path}/run"]
    shown = run_train(monkeypatch, capsys, *settings)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["gap"] == pytest.approx(summary["test_cost"] / summary["optimal_cost"] - 1)
    assert summary["baseline_costs"]["best fixed mode"] > summary["optimal_cost"]
    assert sum(summary["mode_shares"]) == pytest.approx(1.0, abs=1e-3)
    assert "best fixed mode" in shown
    # A batch is an episode, and two steps of both modes from each of its instances.
    assert summary["env_steps"] == 3 * 8 * (6 + 2 * 2)
    assert (tmp_path / "run" / "policy.png").stat().st_size > 10_000
    assert (tmp_path / "run" / "learning_curve.png").stat().st_size > 10_000


def test_more_modes_are_compared_with_bounds(tmp_path, monkeypatch, capsys):
    settings = ["env=switched_lqr", "env.num_modes=3", "env.horizon=9"]
    shown = run_train(monkeypatch, capsys, *settings, f"output_dir={tmp_path / 'run'}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["optimal_cost"] is summary["gap"] is None
    assert 0 < summary["lower_bound"] <= summary["upper_bound"] < 1.02 * summary["lower_bound"]
    assert summary["gap_to_upper_bound"] <= summary["gap_to_lower_bound"]
    assert "gap" in shown
    assert "at most" in shown
    assert not (tmp_path / "run" / "policy.png").exists()  # three dimensions have no plane


def test_bad_systems_are_refused(tmp_path, monkeypatch, capsys):
    bad = ["env=switched_lqr_2d", "env.Q=[[1,2],[0,1]]"]
    with pytest.raises(SystemExit):
        run_train(monkeypatch, capsys, *bad, f"output_dir={tmp_path}/run")
    assert re.match("hpo-train: error: .*Q must be symmetric", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def make(num_modes=2, **kwargs):
    settings = {"batch_size": 32, "dtype": torch.float64, "horizon": 6} | kwargs
    return SwitchedLQREnv.from_recipe(3, num_modes, **settings)


def test_reference_is_of_the_initial_states_of_the_test():
    """The optimal policy, run by the test itself, scores the reference exactly."""
    env = make(seed=1)
    reference = Evaluation(env, num_steps=1, seed=7).reference()
    env.set_seed(7)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        run = env.rollout(env.horizon, reference.policy)
    cost = -float(run["next", "reward"].mean()) / env.cost_units
    assert reference.optimal_cost == pytest.approx(cost, rel=1e-9)
    assert Evaluation(env, num_steps=1, seed=8).reference().optimal_cost != pytest.approx(
        cost, rel=1e-3
    )


def test_reference_knows_its_limits():
    assert Evaluation(make(process_noise=0.1), num_steps=1, seed=0).reference() == Reference()
    env = make(num_modes=1, seed=0)
    one = Evaluation(env, num_steps=1, seed=3).reference()
    assert one.optimal_cost == pytest.approx(one.baselines["best fixed mode"], rel=1e-9)
    env.set_seed(3)
    x0 = env.reset()["x"]
    fixed = fixed_mode_cost(env.A, env.B, env.Q, env.R, env.horizon, x0)
    expected = float(fixed.mean()) / (env.horizon * env.cost_units)
    assert one.optimal_cost == pytest.approx(expected, rel=1e-9)


def test_no_lower_bound_where_the_guard_might_pay():
    """Here doing nothing, held by the guard, is far cheaper than what the oracle knows of."""
    env = SwitchedLQREnv(
        [[[2.0]]], [[[1.0]]], [[0.001]], [[100.0]], horizon=12, state_limit=10.0, batch_size=8
    )
    reference = Evaluation(env, num_steps=1, seed=0).reference()
    assert reference.optimal_cost is reference.lower_bound is None
    assert reference.upper_bound is not None


def test_gaps_to_what_is_known():
    test = Evaluation(make(), num_steps=6, seed=0)
    assert Reference().gaps(2.0, test) == dict.fromkeys(
        ("gap", "gap_to_lower_bound", "gap_to_upper_bound")
    )
    known = Reference(lower_bound=1.0, upper_bound=1.6, objective="return")
    bounded = known.gaps(2.0, test)
    assert bounded["gap"] is None
    assert bounded["gap_to_lower_bound"] == pytest.approx(1.0)
    assert bounded["gap_to_upper_bound"] == pytest.approx(0.25)


def build(env, **kwargs):
    return HPO(env, HybridPolicy.for_env(env, hidden=(4,)), make_value_network(env), **kwargs)


def test_settings_follow_the_episode():
    def settings(env, **given):
        hpo = build(env, **given)
        return hpo.collector.num_steps, hpo.discount, hpo.collector.reset_at_each_iter

    assert settings(make()) == (6, 1.0, True)
    assert settings(make(), unroll_length=3, discount=0.9) == (3, 0.9, False)
    assert settings(InventoryEnv(batch_size=4)) == (30, 1.0, False)
    with pytest.raises(ValueError, match="unroll_length must be an integer >= 1"):
        build(make(), unroll_length=0)


def test_one_mode_learns_the_riccati_feedback():
    """A short training comes near the exact optimum: the bulk of the way, not the last percent."""
    env = make(num_modes=1, batch_size=64, seed=0, dtype=torch.float32)
    torch.manual_seed(0)
    hpo = build(env, learning_rate=2e-2, adam_betas=(0.9, 0.95), epochs=1, num_minibatches=1)
    for update in range(80):
        hpo.anneal(update / 80)
        hpo.iterate()
    test = Evaluation(make(num_modes=1, batch_size=128, dtype=torch.float32), num_steps=6, seed=5)
    optimum = Evaluation(test.env, num_steps=1, seed=5).reference().optimal_cost
    assert 0.999 <= test.run(hpo.policy).mean / optimum < 1.1


def test_description_counts_the_modes():
    env = make(seed=0)
    policy = HybridPolicy.for_env(env, hidden=(4,))
    with torch.no_grad():
        policy.network.discrete[-1].bias.copy_(torch.tensor([0.0, 5.0]))
    test = Evaluation(env, num_steps=6, seed=0)
    assert test.env.describe(policy, {}, Reference()) == {"mode_shares": [0.0, 1.0]}
