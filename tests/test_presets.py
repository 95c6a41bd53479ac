"""Other people's instances by name, against their numbers and the exact costs on them."""

import numpy as np
import pytest
import torch

from hpo_torchrl.experiments.build import build_algorithm, build_tests
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory.distributions import NegativeBinomial, Normal
from hpo_torchrl.problems.inventory.optima.discounted import discounted_optimum
from hpo_torchrl.problems.inventory.optima.items import Items
from hpo_torchrl.problems.inventory.optima.joint_replenishment import (
    joint_replenishment_lower_bound,
)
from hpo_torchrl.problems.inventory.rules import PeriodicPolicy, TotalDemandPolicy


def preset_test(preset, *overrides):
    config = compose_config([f"env={preset}", "collect.batch_size=8", *overrides])
    tests, primary, _ = build_tests(config, run=build_algorithm(config))
    return tests[primary]


# Best (Q, S) rule, best (R, S) rule and lower bound, per item.
KNOWN = {
    1: (34.901, 36.995, 34.901),
    5: (38.568, 38.653, 36.806),
    20: (38.684, 38.684, 36.894),
    70: (37.950, 37.950, 36.161),
}


@pytest.mark.parametrize("n", KNOWN)
def test_items_that_differ_are_those_of_the_paper(n):
    env = preset_test("paper/joint", f"env.num_items={n}", "evaluation.primary=protocol").env
    first = {
        "demand_mean": [7.988, 9.6, 9.288, 8.082, 12.963],
        "holding_cost": [1.0856, 1.0232, 1.0071, 1.0662, 0.9958],
        "shortage_cost": [10.2367, 9.3307, 6.9748, 8.447, 10.5191],
    }
    for name, row in first.items():
        np.testing.assert_allclose(getattr(env, name)[:5], row[:n], atol=6e-5)
    items = Items.of(env, "test")
    rules = [kind.optimum(items).cost / n for kind in (TotalDemandPolicy, PeriodicPolicy)]
    bound = joint_replenishment_lower_bound(items)[0] / n
    np.testing.assert_allclose([*rules, bound], KNOWN[n], atol=6e-4)


@pytest.mark.parametrize(
    ("preset", "pieces", "optimum"),
    [
        ("identical", "total: {0} (0, inf)", None),
        # A cap of 62 does not bind: the optimal order is at most 36.
        ("order_cap", "action: {0} (0, 62]", 37.0644),
        ("cost_from_5", "action: [0, 5) [5, inf)", 8.5876),
        ("step_cost", "action: {0} (0, 20) [20, 40) [40, 62]", 29.3423),
        ("discount", "action: {0} (0, 8) [8, 12]", 10.8403),
        ("lead_time_by_quantity", "action: [0, 4.4) [4.4, inf)", None),
    ],
)
def test_variants_have_the_pieces_of_the_paper(preset, pieces, optimum):
    test = preset_test(f"paper/{preset}")
    assert str(test.env.pieces) == pieces
    if optimum is not None:
        assert test.env.reference(test).optimal_cost == pytest.approx(optimum, abs=1e-4)


def test_the_toy_ends_after_two_periods():
    test = preset_test("paper/two_periods")
    env = test.env
    assert (env.num_items, env.lead_time, test.num_steps, test.skip) == (20, 0, 2, 0)
    drawn = env.sample_noise(500)
    assert drawn.mean() == pytest.approx(5.0, abs=0.02)
    assert drawn.std() == pytest.approx(1.6, abs=0.02)


def test_the_systems_start_where_the_paper_tests_them():
    test = preset_test("paper/lqr")
    start = np.random.RandomState(16).uniform(-10, 10, (1024, 8)) / np.sqrt(8)
    np.testing.assert_allclose(test.env.reset()["x"], start, atol=1e-6)
    assert torch.equal(test.env.reset()["x"], test.env.reset()["x"])
    total = test.env.reference(test).optimal_cost * 8 * 20
    assert 48.587 - 1e-3 < total < 48.591 + 1e-3


def test_moments_of_demand():
    variation = [0.7, 3.6056]
    demand = NegativeBinomial([4.0, 0.7692], variation)
    env = InventoryEnv(2, demand=demand, batch_size=2000, lead_time=0, seed=0)
    drawn = env.sample_noise(200).double()
    assert torch.equal(drawn, drawn.round())
    for item, (mean, v) in enumerate(zip([4.0, 0.7692], variation, strict=True)):
        own = drawn[..., item]
        assert own.mean() == pytest.approx(mean, rel=0.02)
        assert own.var() == pytest.approx((v * mean) ** 2, rel=0.06)
    wide, usual = (
        InventoryEnv(demand=Normal(9.0, deviation), batch_size=2000, seed=0).sample_noise(50)
        for deviation in (1.0, None)
    )
    assert (wide.std().item(), usual.std().item()) == pytest.approx((1.0, 3.0), rel=0.02)


def test_what_has_no_discounted_optimum_is_named():
    pmf, ones = np.ones((3, 1)), np.ones(3)
    for rows, discount, message in ((3, 0.9, "at most 2 items"), (2, 1.0, r"must be in \[0, 1\)")):
        with pytest.raises(ValueError, match=message):
            discounted_optimum(pmf[:rows], ones, ones, ones, 1.0, 0, discount)
    with pytest.raises(ValueError, match="above 1 / sqrt"):
        InventoryEnv(demand=NegativeBinomial(4.0, 0.5))


def test_bad_seeds_are_named():
    for seed, message in (
        ({"demand": 1}, "one for each of demand, holding, shortage"),
        ({"demand": 1, "holding": -1, "shortage": 2}, "instance_seed.holding"),
        (-1, "instance_seed must be"),
    ):
        with pytest.raises(ValueError, match=message):
            InventoryEnv.heterogeneous(3, instance_seed=seed)


@pytest.mark.parametrize(
    ("preset", "optimum"),
    [
        ("two_items", 1.4102),
        ("two_items_low_fixed_cost", 0.9926),
        ("two_items_high_fixed_cost", 1.8880),
        ("two_items_low_shortage_cost", 1.2358),
        ("two_items_high_shortage_cost", 1.4754),
        ("two_items_low_variation", 1.2527),
        ("two_items_high_variation", 1.5019),
    ],
)
def test_discounted_optima_are_those_of_another_value_iteration(preset, optimum):
    test = preset_test(f"ata/{preset}")
    found = test.env.reference(test)
    assert found.objective == test.objective == "discounted"
    assert found.optimal_cost == pytest.approx(optimum, rel=1e-4)


@pytest.mark.parametrize("lead_time", [0, 2])
def test_a_discounted_policy_costs_what_its_simulation_costs(lead_time):
    short = [f"env.lead_time={lead_time}", "algorithm.discount=0.97", "evaluation.seed=3"]
    test = preset_test("ata/two_items", *short, "evaluation.tests.test.num_steps=400")
    found = test.env.reference(test)
    cost = test.run(found.policy)
    assert abs(cost.mean - found.optimal_cost) < 4 * cost.standard_error + 1e-3
    # Ordering later or less costs more.
    worse = TotalDemandPolicy.best(InventoryEnv(2, lead_time, features=[], demand=1.0))
    assert test.run(worse).mean > cost.mean + 4 * cost.standard_error
