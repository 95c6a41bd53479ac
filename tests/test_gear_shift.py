"""The example of a car with gears: its equations, its oracle, and a short training."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from hpo_torchrl.training import Evaluation

EXAMPLE = Path(__file__).parents[1] / "examples" / "gear_shift.py"
NAMES = runpy.run_path(str(EXAMPLE))
Car, best_policy, drive = NAMES["Car"], NAMES["best_policy"], NAMES["drive"]
# A coarse grid, in a second; the example's own is thirty times as fine.
COARSE = (31, 25, 17)


@pytest.mark.parametrize("gear", range(NAMES["GEARS"]))
def test_inside_a_gear_the_gradient_is_that_of_finite_differences(gear):
    env = Car(batch_size=3, dtype=torch.float64, seed=0)
    state, noise = env.reset(), env.sample_noise(1).squeeze(1)
    chosen = torch.full((3,), gear)

    def step(speed, engaged, drift, pedal):
        here = {"speed": speed, "gear": engaged, "drift": drift}
        after, reward = env.dynamics(here, {"discrete": chosen, "continuous": pedal}, noise)
        return after["speed"], after["drift"], reward

    pedal = torch.tensor([[-0.6], [0.0], [0.7]], dtype=torch.float64)
    inputs = [state[key] for key in ("speed", "gear", "drift")] + [pedal]
    inputs = [value.clone().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(step, inputs)


def test_a_car_keeps_its_specs_and_behaves_like_one():
    check_env_specs(Car(batch_size=4, seed=0))
    speed, ratio = torch.tensor([0.0, 10.0, 25.0]), torch.tensor(4.6)
    coasting, idle = drive(speed, torch.zeros(3), ratio)
    pushed, fuel = drive(speed, torch.ones(3), ratio)
    braked, _ = drive(speed, -torch.ones(3), ratio)
    assert (pushed > coasting).all()
    assert (coasting[1:] > braked[1:]).all()
    assert (fuel > idle).all()
    assert braked[0].abs() < 0.1  # brakes do not drive a car that stands


@pytest.fixture(scope="module")
def optima():
    """The optimum of all gears under ``None``, and that of each gear alone."""
    alone = {gear: best_policy([gear], COARSE) for gear in range(NAMES["GEARS"])}
    return {None: best_policy(points=COARSE), **alone}


def test_value_iteration_beats_every_single_gear_and_its_pedal_every_other(optima):
    test = Evaluation(Car(batch_size=32), num_steps=80, skip=20, seed=1)
    best, *singles = optima.values()
    optimum = test.run(best).mean
    assert optimum < 0.9 * min(test.run(single).mean for single in singles)

    def bent(speed, gear, drift):
        option, pedal = best.module(speed, gear, drift)
        return option, (pedal + 0.1).clamp_max(1.0)

    keys = [("action", "discrete"), ("action", "continuous")]
    worse = NAMES["TensorDictModule"](bent, in_keys=best.in_keys, out_keys=keys)
    assert test.run(worse).mean > optimum


def test_a_short_training_is_on_its_way_to_the_optimum(optima, tmp_path, monkeypatch, capsys):
    main, test = NAMES["main"], Evaluation(Car(batch_size=128), num_steps=100, skip=50, seed=1)
    monkeypatch.setitem(main.__globals__, "Evaluation", lambda env, **given: test)
    known = lambda gears=None, points=None: optima[gears and gears[0]]  # noqa: E731
    monkeypatch.setitem(main.__globals__, "best_policy", known)
    found = main(20, str(tmp_path))
    assert found["optimum"] < found["last"] < 0.5 * found["first"]
    assert "by value iteration; gap" in capsys.readouterr().out
    assert (tmp_path / "drive.png").stat().st_size > 10_000
    assert (tmp_path / "learning_curve.png").stat().st_size > 10_000
