"""Optima of small problems on a grid, what splits a gap, and simple rules to compare with."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchrl.envs import RewardSum, TransformedEnv
from water_tank import Tank

import hpo_torchrl
from hpo_torchrl import DifferentiableEnv, Evaluation, grid_optimum
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.diagnostics import split_gap, yardsticks
from hpo_torchrl.diagnostics.quadrature import Marginal, Noise
from hpo_torchrl.experiments import reference as references
from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems import InventoryEnv


class Small(DifferentiableEnv):
    """Two discrete actions and one continuous one; what a test changes is in its subclass."""

    def __init__(self, shapes, observed, **others):
        known = {"num_discrete": 2, "continuous_dim": 1, "noise_shape": (1,), "seed": 0}
        super().__init__(
            state_shapes=shapes, observation_dim=observed, **{**known, "batch_size": 64, **others}
        )

    def observe(self, state):
        return torch.cat([state[name] for name in self.state_shapes], -1)

    def draw_noise(self, num_steps, state):
        return torch.randn(*self.batch_size, num_steps, *self.noise_shape, generator=self.rng)


class Linear(Small):
    """x' = x + b u + noise at cost x^2 + 0.5 u^2; the second discrete action is dear."""

    def __init__(self, **others):
        super().__init__({"x": (1,)}, 1, action_scale=3.0, **others)

    def dynamics(self, state, action, noise):
        x, u = state["x"], action["continuous"]
        cost = x.square() + 0.5 * u.square() + 9.0 * action["discrete"].unsqueeze(-1)
        return {"x": x + 0.8 * u + 0.7 * noise}, -cost.squeeze(-1)

    def initial_state(self):
        return {"x": 2 * torch.randn(*self.batch_size, 1, generator=self.rng)}


class Line(Small):
    """A queue of any length: at the end of a grid it seems that it could not get longer."""

    def __init__(self, **others):
        bounds = {"continuous_bounds": (0.0, 1.0), "action_scale": 0.5}
        super().__init__({"waiting": (1,)}, 1, **bounds, **others)

    def dynamics(self, state, action, noise):
        serves, u = action["discrete"].unsqueeze(-1).to(noise), action["continuous"]
        waiting = (state["waiting"] + 0.9 + noise - 1.6 * serves * u).clamp_min(0.0)
        cost = 0.1 * waiting + serves * (3.0 + u.square())
        return {"waiting": waiting}, -cost.squeeze(-1)

    def initial_state(self):
        return {"waiting": 10 * torch.rand(*self.batch_size, 1, generator=self.rng)}


def riccati(discount, steps):
    """Value x^2 P + c of the linear problem by the closed form of a step, from the end back."""
    P, c = 0.0, 0.0
    for _ in range(steps):
        P, c = (
            1.0 + discount * P - (discount * P * 0.8) ** 2 / (0.5 + discount * P * 0.64),
            discount * (c + P * 0.49),
        )
    return P, c


def test_the_optimal_policy_does_not_let_go_at_the_end_of_the_grid():
    found = grid_optimum(Line(), seconds=1.0)
    assert found.error < 0.02 * found.cost
    assert abs(found.simulated - found.cost) < 0.02 * found.cost + 4 * found.simulated_error


def test_a_linear_problem_has_its_closed_form():
    found = grid_optimum(Linear())
    P, _ = riccati(1.0, 200)
    assert found.cost == pytest.approx(0.49 * P, rel=2e-3)
    assert abs(found.simulated - 0.49 * P) < 4 * found.simulated_error
    assert found.error < 0.01 * P
    x = torch.tensor([[-2.0], [0.5]])
    u = -0.8 * P / (0.5 + 0.64 * P) * x
    worth, best = found.best({"x": x})
    torch.testing.assert_close(best[:, 0], u.double(), rtol=0.03, atol=0.02)
    # The second action costs 9 more, and nothing else.
    torch.testing.assert_close(worth[:, 0] - worth[:, 1], torch.full((2,), 9.0).double())
    off = found.value_of({"x": x}, torch.zeros(2, dtype=torch.int64), u + 1.0)
    loss = torch.full((2,), 0.5 + 0.64 * P).double()
    torch.testing.assert_close(worth[:, 0] - off, loss, rtol=0.02, atol=0.0)


def test_the_other_objectives_have_theirs():
    squares = float(Linear(batch_size=2**14).fresh_state()["x"].square().mean())
    P, c = riccati(0.9, 400)
    found = grid_optimum(Linear(), objective="discounted", discount=0.9)
    assert found.cost == pytest.approx((1 - 0.9) * (4.0 * P + c), rel=0.03)
    P, c = riccati(1.0, 6)
    env = Linear(horizon=6, batch_size=2**14)
    found = grid_optimum(env, objective="return")
    assert found.cost == pytest.approx((squares * P + c) / 6, rel=0.02)
    test = Evaluation(env, num_steps=6, seed=1)
    assert test.run(found.policy).mean == pytest.approx(found.cost, rel=0.03)


class Chain(Small):
    """Five states, one-hot; a coin moves up with a chance that depends on the choice."""

    CHANCE, PAY = torch.tensor([0.37, 0.81]), torch.tensor([1.0, -0.5, 0.3, 0.2, 3.1])

    def __init__(self, **others):
        super().__init__({"at": (5,)}, 5, continuous_bounds=(0.0, 1.0), **others)

    def dynamics(self, state, action, noise):
        at, d = state["at"].argmax(-1), action["discrete"]
        up = noise[..., 0] < self.CHANCE[d]
        after = torch.where(up, (at + 1) % 5, (at - 1).clamp_min(0))
        reward = self.PAY[at] - 0.4 * d - 0.3 * (action["continuous"][..., 0] - 0.5).square()
        return {"at": F.one_hot(after, 5).float()}, reward

    def initial_state(self):
        return {"at": F.one_hot(torch.randint(5, self.batch_size, generator=self.rng), 5).float()}

    def draw_noise(self, num_steps, state):
        return torch.rand(*self.batch_size, num_steps, 1, generator=self.rng)


def test_a_chain_is_solved_as_by_linear_algebra():
    gains = []
    for policy in itertools.product(range(2), repeat=5):
        P, pay = np.zeros((5, 5)), Chain.PAY.numpy() - 0.4 * np.array(policy)
        for at, d in enumerate(policy):
            P[at, (at + 1) % 5] += float(Chain.CHANCE[d])
            P[at, max(at - 1, 0)] += 1 - float(Chain.CHANCE[d])
        share = np.linalg.lstsq(
            np.vstack([P.T - np.eye(5), np.ones(5)]), np.array([0, 0, 0, 0, 0, 1.0]), rcond=None
        )[0]
        gains.append((share @ pay, policy))
    gain, best = max(gains)
    found = grid_optimum(Chain())
    assert -found.cost == pytest.approx(gain, rel=5e-3)
    worth, u = found.best({"at": torch.eye(5)})
    assert worth.argmax(1).tolist() == list(best)
    torch.testing.assert_close(u, torch.full_like(u, 0.5), atol=0.02, rtol=0.0)


def test_an_inventory_has_its_exact_optimum():
    env = InventoryEnv(
        lead_time=0,
        demand=4.0,
        fixed_cost_per_item=20.0,
        batch_size=256,
        initial_state="stationary",
    )
    exact = env.reference(Evaluation(env, num_steps=9, seed=0)).optimal_cost
    found = grid_optimum(env, tolerance=3e-3)
    assert found.cost == pytest.approx(exact, rel=2e-3)
    assert abs(found.simulated - exact) < 4 * found.simulated_error + 2e-3 * exact


class Fire(Small):
    """A fire of chance p a day burns 1 / p, or exp(-u) of that beside guards at a cost of 0.2 u.

    The wind is no matter, unless the damage is paid a day later: it is the state then. Instead of
    the damage, guards may reduce the chance, so that the coin depends on the action.
    """

    COST = 0.2 * (1 + np.log(5.0))

    def __init__(self, p, later=False, rarer=False, **others):
        self.p, self.later, self.rarer = p, later, rarer
        known = {"continuous_bounds": (0.0, 4.0), "noise_shape": (2,)}
        super().__init__({"wind": (1,)}, 1, **known, **others)

    def dynamics(self, state, action, noise):
        guards = action["discrete"].unsqueeze(-1) * action["continuous"]
        left, wind = torch.exp(-guards), 0.5 * state["wind"] + 0.1 * noise[..., :1]
        fire = noise[..., 1:] < self.p * (left if self.rarer else 1.0)
        damage = fire / self.p * (1.0 if self.rarer else left)
        paid = state["wind"] if self.later else damage
        return {"wind": damage if self.later else wind}, -(0.2 * guards + paid).squeeze(-1)

    def initial_state(self):
        return {"wind": torch.rand(*self.batch_size, 1, generator=self.rng)}

    def draw_noise(self, num_steps, state):
        shape = (*self.batch_size, num_steps, 1)
        wind = torch.randn(shape, generator=self.rng)
        return torch.cat([wind, torch.rand(shape, generator=self.rng)], -1)


@pytest.mark.parametrize(
    ("p", "how", "most"),
    [
        (0.2, {}, 1e-3),
        (0.003, {}, 2e-3),
        (0.2, {"later": True}, 1e-3),
        (0.04, {"later": True}, 1e-3),
        (0.003, {"later": True}, 2e-3),
        (0.0008, {"later": True}, 0.1),
        (0.2, {"rarer": True}, 0.1),
    ],
)
def test_no_event_is_too_rare_and_the_error_covers_what_the_rule_misses(p, how, most):
    found = grid_optimum(Fire(p, **how), seconds=600.0)
    assert abs(found.cost - Fire.COST) <= found.error < most
    assert abs(found.simulated - Fire.COST) < 0.02 + 4 * found.simulated_error
    assert (found.doubt is None) == (found.error <= 0.03 * found.cost)


class Fall(Small):
    """Where it starts is all that is random: x ~ N(0, 1) of another seed costs x at each step."""

    def __init__(self, **others):
        super().__init__({"x": (1,)}, 1, horizon=2, continuous_bounds=(0.0, 1.0), **others)

    def dynamics(self, state, action, noise):
        return state, -(3.0 + state["x"] + action["continuous"]).squeeze(-1)

    def initial_state(self):
        return {"x": torch.randn(*self.batch_size, 1, generator=self.rng)}


def test_the_error_counts_that_the_starts_are_drawn():
    found = grid_optimum(Fall(), objective="return")
    assert abs(found.cost - 3.0) < found.error == pytest.approx(2 / 2**8, rel=0.2)


class Battery(Small):
    """A store of energy on a wandering price."""

    def __init__(self, **others):
        shapes = {"charge": (1,), "price": (1,)}
        super().__init__(shapes, 2, num_discrete=3, continuous_bounds=(0.0, 1.0), **others)

    def dynamics(self, state, action, noise):
        x, p, u = state["charge"], state["price"], action["continuous"]
        d, zero = action["discrete"].unsqueeze(-1), torch.zeros_like(action["continuous"])
        into = torch.where(d == 1, torch.minimum(u, (4 - x) / 0.95), zero)
        out = torch.where(d == 2, torch.minimum(u, 0.95 * x), zero)
        after = (x + 0.95 * into - out / 0.95).clamp(0, 4)
        reward = p * (out - into) - 3.0 * (d > 0).to(u.dtype)
        return {"charge": after, "price": 50 + 0.9 * (p - 50) + 8 * noise}, reward.squeeze(-1)

    def initial_state(self):
        shape, spread = (*self.batch_size, 1), 8 / (1 - 0.81) ** 0.5
        charge = 4 * torch.rand(shape, generator=self.rng)
        return {"charge": charge, "price": 50 + spread * torch.randn(shape, generator=self.rng)}


class Dear(RulePolicy):
    """All of u, all the time."""

    in_keys = ("level",)

    def decide(self, level):
        return torch.ones_like(level[..., 0], dtype=torch.int64), torch.ones_like(level)


class Changed(RulePolicy):
    """The optimum with half of its u, or with another choice."""

    def __init__(self, policy, power, idle):
        super().__init__()
        self.policy, self.power, self.idle = policy, power, idle
        self.in_keys = policy.in_keys

    def decide(self, *state):
        discrete, u = self.policy.module(*state)
        return discrete * (0 if self.idle else 1), self.power * u


def test_a_battery_and_the_parts_of_a_gap():
    found = grid_optimum(Battery())
    assert found.cost == pytest.approx(-1.5535, rel=3e-3)
    assert found.policy.in_keys == ["charge", "price"]
    test = Evaluation(Battery(batch_size=256), num_steps=400, skip=100, seed=7)
    best = test.run(found.policy)
    assert abs(best.mean - found.cost) < 4 * best.standard_error
    rolled = test.env.rollout(3, found.policy)
    assert rolled["action", "continuous"].shape == (256, 3, 1)
    weak, idle = (Changed(found.policy, *how) for how in ((0.5, False), (1.0, True)))
    for policy, part in ((weak, "continuous"), (idle, "discrete")):
        parts = split_gap(found, policy, test)
        assert parts["total"] == pytest.approx(test.run(policy).mean - best.mean, rel=0.15)
        assert parts[part] > 0.8 * parts["total"]
    assert split_gap(found, found.policy, test)["total"] < 2e-3
    # Full power between two prices, not into a full store: within a few per cent of the optimum.
    rules = yardsticks(test)
    assert rules["best constant action"][0] == pytest.approx(0.0, abs=0.01)
    cost, rule = rules["best threshold rule"]
    assert best.mean < cost < 0.8 * best.mean
    assert "observation[1] below" in repr(rule)


def test_rules_of_noise():
    generator = np.random.default_rng(0)
    nodes, weights = Marginal(generator.exponential(size=2**18)).rule(12)
    assert weights @ nodes**3 == pytest.approx(6.0, rel=0.05)
    nodes, weights = Marginal(3.0 + 0.5 * generator.standard_normal(2**18)).rule(9)
    assert (weights @ nodes, weights @ (nodes - 3.0) ** 2) == pytest.approx((3.0, 0.25), abs=1e-9)
    nodes, weights = Marginal(generator.uniform(-1.0, 1.0, 2**18)).rule(9)
    assert (weights @ nodes, weights @ nodes**2) == pytest.approx((0.0, 1 / 3), abs=1e-9)
    nodes, weights = Marginal(generator.choice([-1.0, 1.0], 2**18)).rule(9)
    assert (nodes.tolist(), weights.tolist()) == ([-1.0, 1.0], [0.5, 0.5])

    class Three(Linear):
        def __init__(self):
            super().__init__(noise_shape=(3,))

        def dynamics(self, state, action, noise):
            return super().dynamics(state, action, noise[..., :1])

    env = Three()
    calm = torch.zeros(64, dtype=torch.bool)
    x = torch.randn(64, 1)
    steps = lambda noise: (x + noise[:, 1:2], 5 * noise[:, 0] + noise[:, 2].relu(), calm)  # noqa: E731
    noise = Noise(env)
    noise.examine(steps, 64)
    # The first coordinate only pays, and linearly.
    assert (noise.moving, noise.paying) == ([1], [2])
    rule = noise.rule(5)
    assert len(rule.weights) == 25
    assert float(rule.nodes[:, 0].std()) == 0.0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: TransformedEnv(Linear(), RewardSum()), TypeError, "plain DifferentiableEnv"),
        (lambda: InventoryEnv(num_items=2, lead_time=2, batch_size=64), ValueError, "got 4"),
        (lambda: InventoryEnv(num_items=6, batch_size=8), ValueError, "and 6; use"),
    ],
)
def test_what_is_beyond_reach_is_refused_with_a_way_out(make, error, words):
    with pytest.raises(error, match="use reference=yardsticks") as caught:
        grid_optimum(make())
    assert words in str(caught.value)


def test_a_run_is_compared_with_what_there_is(tmp_path, undrawn):
    settings = {"trainer.num_updates": 1, "trainer.progress": False, "policy.hidden": [8]}
    tests = Evaluation(Tank(batch_size=32), num_steps=60, skip=20, seed=0)
    for kind in ("auto", "none"):
        env = Tank(batch_size=8, seed=0)
        run = hpo_torchrl.train(
            env, folder=tmp_path / kind, tests=tests, reference=kind, **settings
        )
        summary = run.summary
        known = summary["baseline_costs"]
        assert (summary["optimal_cost"] is not None) == (kind == "auto")
        assert (summary["gap"] is not None) == (kind == "auto")
        assert ("best threshold rule" in known) == (kind != "none")
        assert (summary["loses_to"] is None) == (kind == "none")
        if kind == "auto":
            assert summary["optimal_cost"] < min(known.values()) + 1e-4
            assert summary["grid"]["cost"] == pytest.approx(0.0451, rel=0.02)
    assert json.loads((tmp_path / "auto" / "summary.json").read_text())["loses_to"].startswith(
        "best"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda o: {"error": 0.1}, "may be off"), (lambda o: {"policy": Dear()}, "loses to the best")],
)
def test_an_optimum_in_doubt_is_an_upper_bound_and_no_gap(monkeypatch, change, words):
    known = grid_optimum(Tank(batch_size=32), seconds=0.1)
    doubtful = dataclasses.replace(known, **{"error": 1e-4, **change(known)})
    monkeypatch.setattr(references, "grid_optimum", lambda *_, **__: doubtful)
    test = Evaluation(Tank(batch_size=32), num_steps=60, skip=20, seed=0)
    with pytest.warns(UserWarning, match=words):
        found = references.References("grid", shown=False).of(test)
    assert words in found.no_gap
    assert found.gaps(1.0, test)["gap"] is None
    assert found.upper_bound == test.run(doubtful.policy).mean


def test_a_rule_that_is_hardly_better_is_no_loss():
    known = Reference(baselines={"a": 2.0, "b": 1.0})
    assert known.loses_to(1.0005) is None
    assert known.loses_to(1.1) == "b (1) by 10.0 %"
    assert Reference().loses_to(1.0) is None
