"""The suite: its problems keep the contract, and its tests measure what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torchrl.envs.utils import check_env_specs

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.suite import __main__ as suite
from benchmarks.suite.runs import PROBLEMS, make_test, problem_class, quiet
from hpo_torchrl.modules import RulePolicy


def doubles(entries):
    return {k: v.double() if v.is_floating_point() else v for k, v in entries.items()}


def visited(env, steps: int = 5):
    """States after some random actions, in double precision, and the next noise."""
    state, noise = env.fresh_state(), env.sample_noise(steps + 1)
    for now in range(steps):
        action = env.rand_action(env.reset())["action"]
        state, _, _ = env.advance(state, action, noise[:, now])
    return doubles(state), action, noise[:, steps].double()


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_keeps_the_contract_and_its_gradient(problem):
    env = problem_class(problem)(batch_size=64, seed=0)
    check_env_specs(problem_class(problem)(batch_size=3, seed=0))
    state, action, noise = visited(env)
    names = [name for name in state if state[name].is_floating_point()]
    base = [state[name] for name in names] + [action["continuous"].double()]
    for choice in range(env.num_discrete):

        def scored(*inputs, choice=choice):
            given = {**state, **dict(zip(names, inputs[:-1], strict=True))}
            act = {"discrete": torch.full((64,), choice), "continuous": inputs[-1]}
            after, reward = env.dynamics(given, act, noise)
            entries = sum(after[name].sum(-1) for name in names)
            seen = env.observe(after | {"step": state["step"]}).sum(-1)
            return reward + 0.7 * entries + 0.1 * seen

        inputs = [x.clone().requires_grad_() for x in base]
        grads = torch.autograd.grad(scored(*inputs).sum(), inputs, allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in grads)
        for at, (x, grad) in enumerate(zip(base, grads, strict=True)):
            step = 1e-5 * max(1.0, float(x.abs().max()))
            for entry in range(x.shape[-1]):
                move = torch.zeros_like(x)
                move[..., entry] = step
                up, here, down = (
                    scored(*(y + sign * move if i == at else y for i, y in enumerate(base)))
                    for sign in (1, 0, -1)
                )
                sides = torch.stack([up - here, here - down]) / step
                own = torch.zeros_like(here) if grad is None else grad[..., entry]
                slack = 1e-3 * (1 + own.abs())
                # At a kink, such as a full battery, any slope between the two sides will do.
                inside = (own > sides.amin(0) - slack) & (own < sides.amax(0) + slack)
                assert inside.all(), (choice, [*names, "u"][at], sides[:, ~inside], own[~inside])


def test_the_average_over_draws_changes_no_mean_and_no_state():
    env_class = problem_class("portfolio")
    env, many = (kind(batch_size=4000, seed=3) for kind in (env_class, quiet(env_class, 8)))
    state = {"held": torch.full((4000, 1), 1.5), "signal": torch.full((4000, 1), 2.0)}
    action = {"discrete": torch.zeros(4000, dtype=torch.int64), "continuous": torch.ones(4000, 1)}
    _, reward = env.dynamics(state, action, env.sample_noise(1)[:, 0])
    noise = many.sample_noise(1)[:, 0]
    later, mean = many.dynamics(state, action, noise)
    torch.testing.assert_close(later, env.dynamics(state, action, noise[:, 0])[0])
    assert mean.std() < 0.5 * reward.std()
    assert abs(mean.mean() - (1.5 * 2.0 - 1.5**2)) < 5 * mean.std() / 4000**0.5


class TwoPrices(RulePolicy):
    """Charge at full power below one price, and discharge above another, while there is room."""

    in_keys = ("charge", "price")

    def decide(self, charge, price):
        discrete = ((price < 38.0) & (charge < 4.0)) + 2 * ((price > 62.0) & (charge > 0.0))
        return discrete.squeeze(-1), torch.ones_like(charge)


def test_what_a_rule_of_two_prices_earns_with_the_battery():
    found = make_test("battery", instances=1024, steps=400).run(TwoPrices())
    assert abs(-found.mean - 1.529) < 3 * found.standard_error


def test_the_table_compares_simulations_and_marks_what_loses_to_a_yardstick():
    given = suite.parse(["--problems", "queue", "--seeds", "0,1,2", "--algorithms", "hpo"])
    known = {"objective": "average", "optimum": -16.0, "error": 0.01, "simulated": -15.9}
    found = {("queue",): {**known, "yardsticks": {"rule": -16.7, "constant": -24.0}}}
    for seed, argmax in enumerate((-16.86, -16.06, -40.0)):
        found["queue", "hpo", seed] = {"argmax": argmax, "sampled": argmax - 0.16, "seconds": 60.0}
    row = suite.table(found, given).splitlines()[2]
    assert row == ("| queue | average | -16 ± 0.01 | rule: 5.00 | -16.86 < | +6.00 | +7.00 | 60 |")
    with pytest.raises(SystemExit):
        suite.parse(["--problems", "quue"])
