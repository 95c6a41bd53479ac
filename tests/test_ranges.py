"""Each number is refused just outside its range, by name, and taken at the ends of it."""

from __future__ import annotations

import math

import pytest
import torch

from hpo_torchrl.algorithms import DDPG, HPO, PPO, GumbelSoftmax, Pathwise
from hpo_torchrl.collectors import (
    DifferentiableCollector,
    Rollout,
    SampleCollector,
    branched_returns,
    differentiable_rollout,
)
from hpo_torchrl.diagnostics import BestResponse, exact_gradient
from hpo_torchrl.envs import ReplicatedEnv
from hpo_torchrl.modules import HybridNetwork, HybridPolicy, make_q_network, make_value_network
from hpo_torchrl.objectives import CrossTermWeight, HPOLoss, LearnedCriticLoss
from hpo_torchrl.problems import InventoryEnv

DOUBLE = {"dtype": torch.float64}
ENV = InventoryEnv(batch_size=2, horizon=4, seed=0, **DOUBLE)
POLICY = HybridPolicy.for_env(ENV, hidden=[4])
CRITIC, Q = make_value_network(ENV, hidden=[4]), make_q_network(ENV, hidden=[4])
NOISE = ENV.sample_noise(2)
DATA = differentiable_rollout(ENV, POLICY, 2, noise=NOISE)
SAMPLING = HybridPolicy.for_env(ENV, hidden=[4], scale=0.1)


def monte_carlo(**arguments):
    HPOLoss(POLICY, None).make_value_estimator(**arguments)


def best_response(**arguments):
    known = {"horizon": 2, "temperature": 1.0, "state_of": None}
    BestResponse(ENV, POLICY.network, **known | arguments)


def of_kind(collector):
    return lambda **given: collector(ENV, POLICY, **{"frames_per_batch": 8} | given)


def learner(kind):
    policy, critic = SAMPLING if kind is PPO else POLICY, Q if kind is DDPG else CRITIC
    return lambda **given: kind(ENV, policy, critic, **{"unroll_length": 2} | given)


# The range of each argument: ``(low, high``, open at an end that is not taken; "int" for counts.
UNIT, POSITIVE, NOT_NEGATIVE, COUNT = "[0 1]", "(0 inf)", "[0 inf)", "int 1"
RANGES = {
    LearnedCriticLoss: (
        lambda **given: LearnedCriticLoss(POLICY, Q, **given),
        {"gamma": UNIT, "entropy_coeff": NOT_NEGATIVE},
    ),
    HPOLoss: (
        lambda **given: HPOLoss(POLICY, CRITIC, **given),
        {"clip_epsilon": POSITIVE, "entropy_coeff": NOT_NEGATIVE, "critic_coeff": NOT_NEGATIVE},
    ),
    CrossTermWeight: (CrossTermWeight, {"decay": UNIT}),
    "Monte Carlo": (monte_carlo, {"gamma": UNIT}),
    HybridNetwork: (lambda **given: HybridNetwork(3, 2, 1, **given), {"scale": NOT_NEGATIVE}),
    Rollout: (
        lambda **given: Rollout(ENV, POLICY, **given),
        {"discount": "(0 1]", "checkpoint_steps": COUNT, "temperature": POSITIVE},
    ),
    differentiable_rollout: (
        lambda **given: differentiable_rollout(ENV, POLICY, **given),
        {"num_steps": COUNT},
    ),
    branched_returns: (
        lambda **given: branched_returns(ENV, POLICY, DATA, NOISE, **given),
        {"gamma": UNIT},
    ),
    DifferentiableCollector: (
        of_kind(DifferentiableCollector),
        {"reset_fraction": UNIT, "total_frames": "int -1", "discount": "(0 1]"},
    ),
    SampleCollector: (of_kind(SampleCollector), {"reset_fraction": UNIT}),
    exact_gradient: (
        lambda **given: exact_gradient(ENV, SAMPLING, **{"num_steps": 1, "num_nodes": 2} | given),
        {"num_steps": COUNT, "num_nodes": COUNT},
    ),
    BestResponse: (best_response, {"horizon": COUNT}),
    ReplicatedEnv: (lambda **given: ReplicatedEnv(ENV, **given), {"number": COUNT}),
    InventoryEnv: (InventoryEnv, {"horizon": COUNT, "seed": "int 0"}),
    HPO: (
        learner(HPO),
        {
            "unroll_length": COUNT,
            "reset_fraction": UNIT,
            "reset_fraction_final": UNIT,
            "reset_until": "(0 1]",
            "discount": "(0 1]",
            "gae_lambda": UNIT,
            "learning_rate": POSITIVE,
            "learning_rate_final": UNIT,
            "entropy_coeff": NOT_NEGATIVE,
            "entropy_until": "(0 1]",
            "max_grad_norm": POSITIVE,
            "critic_coeff": NOT_NEGATIVE,
            "epochs": "int 0",
            "num_minibatches": COUNT,
            "target_kl": POSITIVE,
            "target_action_change": POSITIVE,
        },
    ),
    GumbelSoftmax: (learner(GumbelSoftmax), {"temperature": POSITIVE}),
    Pathwise: (learner(Pathwise), {"discrete_action": "int 0"}),
    PPO: (
        learner(PPO),
        {
            "epochs": COUNT,
            "num_minibatches": COUNT,
            "target_kl": POSITIVE,
            "critic_coeff": NOT_NEGATIVE,
            "clip_epsilon": "(0 1]",
            "scale_entropy_coeff": NOT_NEGATIVE,
            "entropy_coeff": NOT_NEGATIVE,
        },
    ),
    DDPG: (
        learner(DDPG),
        {
            "updates_per_batch": COUNT,
            "minibatch_size": COUNT,
            "buffer_batches": COUNT,
            "target_decay": UNIT,
        },
    ),
}


def ends(text):
    """Values at the ends of a range that are in it, and values just outside."""
    if text.startswith("int"):
        low = int(text.split()[1])
        return [low, low + 1], [low - 1]
    low, high = (float(part) for part in text[1:-1].split())
    inside, outside = [], [math.nan, math.inf, -math.inf]
    (inside if text[0] == "[" else outside).append(low)
    outside.append(low - 1e-6)
    inside.append(low + 0.5)
    if high < math.inf:
        inside.append(high)
        outside.append(high + 1e-6)
    return inside, outside


@pytest.mark.filterwarnings("ignore:Found an eps value")
@pytest.mark.parametrize("what", RANGES, ids=lambda what: getattr(what, "__name__", what))
def test_a_number_is_taken_in_its_range_and_refused_outside(what):
    make, ranges = RANGES[what]
    for name, text in ranges.items():
        inside, outside = ends(text)
        for value in inside:
            make(**{name: value})
        for value in outside:
            with pytest.raises(ValueError, match=f"^{name} must be"):
                print(name, value, make(**{name: value}))
        with pytest.raises(TypeError, match=f"^{name} must be"):
            print(name, make(**{name: [1]}))


@pytest.mark.parametrize("kind", [HPO, GumbelSoftmax, Pathwise, DDPG])
def test_discount_and_lambda_come_to_their_places(kind):
    made = learner(kind)(discount=0.6, gae_lambda=0.7)
    losses = [getattr(made, name) for name in ("loss", "detached_loss") if hasattr(made, name)]
    for loss in losses:
        if kind is DDPG:
            assert loss.gamma == 0.6
            continue
        assert float(loss.value_estimator.gamma) == pytest.approx(0.6)
        assert float(loss.value_estimator.lmbda) == pytest.approx(0.7)
    assert losses
    assert getattr(made.collector, "discount", 0.6) == 0.6


def test_an_endless_problem_is_cut_into_chunks():
    made = learner(HPO)(unroll_length=None)
    assert (made.unroll_length, made.discount, made.reset_at_each_iter) == (30, 1.0, False)
