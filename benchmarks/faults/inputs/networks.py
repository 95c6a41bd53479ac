"""Arguments of policies, networks, losses, collectors and diagnostics."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torchrl.modules import ProbabilisticActor

from benchmarks.faults.inputs.made import (
    FLAG,
    INF,
    NAN,
    REAL,
    SIZE,
    Bad,
    batch,
    collector,
    each,
    given,
    loss,
    parts,
)
from hpo_torchrl.collectors import (
    DifferentiableCollector,
    SampleCollector,
    branched_returns,
    differentiable_rollout,
    straight_through_rollout,
)
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.diagnostics import GradientSampler, estimator, exact_gradient, gradient_report
from hpo_torchrl.modules import (
    ActionRange,
    HybridDistribution,
    HybridNetwork,
    HybridPolicy,
    make_q_network,
    make_value_network,
    replicate,
)
from hpo_torchrl.objectives import CrossTermWeight, HPOLoss, LearnedCriticLoss
from hpo_torchrl.training import Evaluation


def networks() -> Iterator[Bad]:
    """Arguments of modules and losses."""
    env, policy, critic = parts()
    # modules
    for name in ("observation_dim", "num_discrete", "continuous_dim"):
        sizes = {"observation_dim": 3, "num_discrete": 2, "continuous_dim": 2}
        call = functools.partial(lambda n, s, v: HybridNetwork(**s | {n: v}), name, sizes)
        yield from each(f"HybridNetwork.{name}", call, SIZE)
    network = functools.partial(HybridNetwork, 3, 2, 2)
    for name, values in {
        "num_heads": ("3", 0, 3, True, 1.5),
        "hidden": ("64", None, (0,), (-1,), 1.5, (4, "a")),
        "activation": ("sigmoid", None, 3),
        "scale": REAL,
        "learn_scale": FLAG,
        "shared_trunk": FLAG,
        "linear_skip": FLAG,
        "distribution": ("beta", None, 3),
        "dtype": ("float32", torch.int64),
        "action_scale": ("1", 0.0, [1.0, 2.0, 3.0], [1.0, -1.0], NAN, 1j),
        "continuous_bounds": (None, (1.0, 0.0), (NAN, 1.0), ("0", 1.0), (0.0,), 3),
        "branch_bounds": ((0.0, 1.0), 3),
    }.items():
        yield from given(f"HybridNetwork.{name}", network, values)
    yield from each(
        "unit", lambda v: ActionRange((None, None), v), ("x", None, torch.tensor([0.0]), 3.0)
    )
    ones = torch.ones(1)
    yield from each(
        "bounds", lambda v: ActionRange(v, ones), (None, 3, (0.0,), (1.0, 0.0), (NAN, 1.0))
    )
    yield from each("network", HybridPolicy, (None, 3, "x"))
    for name, values in {
        "observation_key": ("seen", 3),
        "memory": (3, "x"),
        "mask_key": (3,),
        "return_log_prob": FLAG,
    }.items():
        yield from given(
            f"HybridPolicy.for_env.{name}", functools.partial(HybridPolicy.for_env, env), values
        )
    yield from each("env", HybridPolicy.for_env, (None, 3, "x"))
    for make in (make_value_network, make_q_network):
        name = make.__name__
        yield from each("env", make, (None, 3))
        yield from given(f"{name}.hidden", functools.partial(make, env), ("64", None, (0,), 1.5))
        yield from given(f"{name}.activation", functools.partial(make, env), ("x", None))
    yield from each(
        "observation_key", lambda v: make_value_network(env, observation_key=v), ("x", None)
    )
    yield from each("modules", replicate, ([], None, 3, [3], [policy, critic]))
    zeros, loc = torch.zeros(4, 2), torch.zeros(4, 2, 1)
    yield from each(
        "logits", lambda v: HybridDistribution(v, loc), (None, 3.0, "x", torch.zeros(4, 3))
    )
    yield from each(
        "loc", lambda v: HybridDistribution(zeros, v), (None, 3.0, "x", torch.zeros(4, 3, 1))
    )
    for name, pair in {"logits": (zeros / 0, loc), "loc": (zeros, loc + INF)}.items():
        call = functools.partial(HybridDistribution, *pair)
        yield Bad(f"HybridDistribution: {name} not finite", call, (name, "finite"))
    scales = (NAN, "x", torch.ones(3, 1, 1))
    yield from each("scale", lambda v: HybridDistribution(zeros, loc, v), scales)
    masks = (True, "x", torch.ones(4, 2), torch.ones(2, dtype=torch.bool))
    yield from each("mask", lambda v: HybridDistribution(zeros, loc, mask=v), masks)
    yield from each("heads", lambda v: HybridDistribution(zeros, loc, heads=v), ("yes", 1, None))
    yield from each("seed", Randomness, ("3", 1.5, -1, [True], [-1], 2**70))
    # losses
    for name, values in {
        "entropy_coeff": ("1", NAN, -1.0, True, INF),
        "critic_coeff": ("1", NAN, -1.0, True),
        "clip_epsilon": ("1", NAN, 0.0, -1.0, True),
        "pathwise": FLAG,
        "score_function": FLAG,
        "cross_term": ("yes", None, 1),
        "loss_critic_type": ("l3", None, 2),
        "reduction": ("max", 3),
        "baseline": ("mean", 3),
        "functional": FLAG,
        "entropy_in_advantage_units": FLAG,
    }.items():
        yield from given(f"HPOLoss.{name}", loss, values)
    yield from each("actor_network", HPOLoss, (None, 3, torch.nn.Linear(1, 1)))
    yield from each("critic_network", lambda v: HPOLoss(policy, v), (3, "x", torch.nn.Linear(1, 1)))
    yield Bad("HPOLoss of a normal actor", _normal_alone, ("actor_network", "HybridDistribution"))
    yield from given("CrossTermWeight.decay", CrossTermWeight, REAL)
    yield from each("num_seeds", lambda v: CrossTermWeight(num_seeds=v), ("3", 0, 1.5, True))
    yield from each(
        "entropy_coeff",
        lambda v: LearnedCriticLoss(policy, make_q_network(env), entropy_coeff=v),
        REAL,
    )
    yield from each("qvalue_network", lambda v: LearnedCriticLoss(policy, v), (None, 3))
    call = functools.partial(LearnedCriticLoss, policy, critic)
    yield Bad("qvalue_network: a critic of states", call, ("qvalue_network", "['observation']"))
    yield from each("actor_network", lambda v: LearnedCriticLoss(v, make_q_network(env)), (None, 3))


def tools() -> Iterator[Bad]:
    """Arguments of collectors, rollouts, evaluation and diagnostics."""
    env, policy, critic = parts()
    # collectors
    for kind in (DifferentiableCollector, SampleCollector):
        name = kind.__name__
        call = functools.partial(lambda k, v: k(env, policy, frames_per_batch=v), kind)
        yield from each(f"{name}.frames_per_batch", call, (*SIZE, 7))
        full = functools.partial(kind, env, policy, frames_per_batch=24)
        yield from given(f"{name}.reset_at_each_iter", full, FLAG)
        yield from given(f"{name}.reset_fraction", full, (*REAL, 1.5))
        yield from given(f"{name}.randomness", full, (3, "x"))
        call = functools.partial(lambda k, v: k(v, policy, frames_per_batch=24), kind)
        yield from each("env", call, (None, 3, "x"))
        call = functools.partial(lambda k, v: k(env, v, frames_per_batch=24), kind)
        yield from each("policy", call, (None, 3, "x"))
    for name, values in {
        "total_frames": ("3", None, 1.5, -2, True),
        "exploration_type": ("random", None, 3),
        "route": ("fast", None, 1),
        "temperature": ("1", 0.0, NAN, True),
        "checkpoint_steps": ("3", 0, 1.5, True),
        "compile": FLAG,
    }.items():
        yield from given(f"DifferentiableCollector.{name}", collector, values)
    for roll in (differentiable_rollout, straight_through_rollout):
        yield from each("num_steps", functools.partial(roll, env, policy), SIZE)
        yield from each(
            "noise",
            lambda v, roll=roll: roll(env, policy, 3, noise=v),
            (3.0, "x", torch.ones(4, 2, 1)),
        )
        yield from each(
            "tensordict", lambda v, roll=roll: roll(env, policy, 3, tensordict=v), (3, "x", {})
        )
    yield from each(
        "rollout", lambda v: branched_returns(env, policy, v, env.sample_noise(6)), (None, 3)
    )
    yield from each(
        "critic",
        lambda v: branched_returns(env, policy, batch(), env.sample_noise(6), critic=v),
        (3, policy),
    )
    yield from each("num_steps", env.sample_noise, SIZE)
    yield from each(
        "noise", env.load_noise, (3.0, "x", torch.ones(4, 2), torch.full((4, 2, 1), NAN))
    )
    # evaluation and diagnostics
    for name, values in {
        "num_steps": SIZE,
        "skip": ("1", None, -1, 5, 1.5),
        "seed": ("1", None, -1, 1.5, True),
        "env": (None, 3, "x"),
    }.items():
        call = functools.partial(
            lambda n, v: Evaluation(**{"env": env, "num_steps": 5, "seed": 0} | {n: v}), name
        )
        yield from each(f"Evaluation.{name}", call, values)
    tested = Evaluation(env, num_steps=5, seed=0)
    yield from each("policy", tested.run, (None, 3, "x"))
    for name, values in {
        "num_steps": (*SIZE, 1000),
        "num_nodes": ("3", 0, 1.5, True),
        "max_leaves": ("3", None, 0, -1, 1.5),
    }.items():
        call = functools.partial(
            lambda n, v: exact_gradient(env, policy, **{"num_steps": 2, "num_nodes": 2} | {n: v}),
            name,
        )
        yield from each(f"exact_gradient.{name}", call, values)
    supports = (3, (torch.ones(2), torch.ones(2)), (torch.ones(2, 1), torch.tensor([NAN, 1.0])))
    call = functools.partial(exact_gradient, env, policy, 2, num_nodes=2)
    yield from given("exact_gradient.noise_support", call, supports)
    yield from each("collector", GradientSampler, (None, 3))
    sampler = GradientSampler(collector(), critic)
    yield from each("critic", lambda v: GradientSampler(collector(), v), (3, "x"))
    yield from each("names", sampler.sample, (["nothing"], 3, "mixed"))
    for name in ("num_batches", "num_reference"):
        yield from given(
            f"gradient_report.{name}",
            functools.partial(gradient_report, sampler),
            ("3", None, 1, -1, 2.5),
        )
    yield from each("name", lambda v: estimator(v)(lambda draw: None), (None, 3))


def _normal_alone() -> Any:
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(layers, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=[("action", "continuous")],
        distribution_class=torch.distributions.Normal,
    )
    return HPOLoss(actor, parts()[2])(batch(discount=0.99))
