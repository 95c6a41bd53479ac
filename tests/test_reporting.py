"""Tables and figures from plain numbers."""

from __future__ import annotations

import matplotlib.image
import pytest
import torch

from hpo_torchrl.core.figures import plot_learning_curve
from hpo_torchrl.problems.inventory.picture import InventoryPolicyView, plot_inventory_policy
from hpo_torchrl.reporting import format_summary

SUMMARY = {"test_cost": 40.0, "updates": 2, "env_steps": 1000, "wall_seconds": 1.0}


def picture(path):
    """Read the PNG back: it must be a picture with something on it."""
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] > 200
    assert pixels.shape[1] > 200
    return len({tuple(pixel) for pixel in pixels.reshape(-1, pixels.shape[-1])[::7].tolist()})


@pytest.mark.parametrize("reference", [{}, {"optimum": 37.0}, {"lower_bound": 36.0}])
@pytest.mark.parametrize("errors", [None, [3.0, 0.5, 0.1]])
def test_learning_curve_is_drawn(tmp_path, reference, errors):
    path = plot_learning_curve(
        tmp_path / "curve.png", [1, 10, 20], [90.0, 40.0, 36.9], errors=errors, **reference
    )
    assert picture(path) > 10


def test_learning_curve_of_no_test_is_drawn(tmp_path):
    assert picture(plot_learning_curve(tmp_path / "curve.png", [], [], optimum=37.0)) > 1


@pytest.mark.parametrize("visited", [[], [20.0, 25.0]])
@pytest.mark.parametrize("optimal", [{}, {"optimal_s": 26, "optimal_S": 62}])
def test_policy_is_drawn(tmp_path, visited, optimal):
    path = plot_inventory_policy(
        tmp_path / "policy.png",
        InventoryPolicyView(
            position=torch.tensor([0.0, 20.0, 40.0]),
            order_probability=torch.tensor([1.0, 0.7, 0.1]),
            order_up_to=torch.tensor([60.0, 62.0, 70.0]),
            visited_position=torch.tensor(visited),
            visited_order_up_to=torch.tensor([62.0] * len(visited)),
        ),
        **optimal,
    )
    assert picture(path) > 10


def test_summary_leaves_out_what_is_unknown():
    text = format_summary({**SUMMARY, "optimal_cost": None, "gap": None, "test_cost_se": None})
    assert text.splitlines() == [
        "test cost        40.0000   per unit and period",
        "trained          2 updates, 1,000 environment steps, 1 s",
    ]


def test_summary_of_a_bounded_problem_and_one_trace():
    text = format_summary({**SUMMARY, "lower_bound": 37.0, "test_cost_se": float("nan")})
    assert "lower bound      37.0000" in text
    assert "nan" not in text
