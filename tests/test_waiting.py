"""A rollout never waits for what a device has computed, so that a GPU is never left idle."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from pretended import DEVICE, pretended_device
from torch.utils._python_dispatch import TorchDispatchMode

from hpo_torchrl.algorithms import HPO
from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv

# What reads a value on the host, or has a size that depends on values.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")
ARGUMENTS = {"num_items": 2, "initial_state": "random", "batch_size": 4}


class Waits(TorchDispatchMode):
    """Record the operations for which a host would wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function._schema.name.removeprefix("aten::"), kwargs or {}
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        fetched = name == "_to_copy" and args[0].device.type != kwargs.get("device", DEVICE).type
        if name in WAITING or by_mask or (fetched and args[0].device.type == DEVICE.type):
            self.found.append(name)
        return function(*args, **kwargs)


def prepared(route="functional", **arguments):
    env = InventoryEnv(**ARGUMENTS | arguments)
    policy = HybridPolicy.for_env(env, hidden=(8,), scale=0.1)
    given = {"tensordict": env.reset(), "noise": env.sample_noise(5), "route": route}
    return lambda: differentiable_rollout(env, policy, 5, discount=0.9, **given)


def test_what_waits_is_found():
    with Waits() as waits:
        bool(torch.ones(2).sum() > 0)
        torch.ones(2)[torch.tensor([True, False])]
    assert waits.found == ["_local_scalar_dense", "index"]


def test_a_rollout_and_its_gradient_do_not_wait():
    roll = prepared()
    with Waits() as waits:
        roll()["next", "reward"].mean().backward()
    assert waits.found == []


def test_episodes_that_end_are_counted_beforehand():
    counts = []
    for horizon in (2, 4):
        roll = prepared(horizon=horizon)
        with Waits() as waits:
            roll()
        counts.append(len(waits.found))
    # One look at a counter on the host for each step but the last, however many resets.
    assert counts == [4, 4]


def waits_of_an_update(epochs):
    """Where the host waits in an update by HPO, whose discrete actions are scored."""
    with pretended_device() as device:
        env = InventoryEnv(**ARGUMENTS, device=device)
        policy = HybridPolicy.for_env(env, hidden=(8,), scale=0.1)
        critic = make_value_network(env, hidden=(8,))
        given = {"unroll_length": 4, "branch_steps": 0, "target_kl": 1e3, "seed": 0}
        learner = HPO(env, policy, critic, epochs=epochs, num_minibatches=3, **given)
        batch = learner.collector.collect()
        with Waits() as waits:
            learner.update(batch)
    return Counter(waits.found)


def test_an_update_waits_twice_a_step_and_once_a_pass():
    first, second = waits_of_an_update(1), waits_of_an_update(2)
    assert (second - first).total() == 2 * 3 + 1
    assert first["_to_copy"] == 1 + 2  # all metrics, and how far each net moved the policy


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_rollout_on_a_gpu_does_not_synchronise():
    roll = prepared(device="cuda")
    roll()
    torch.cuda.set_sync_debug_mode("error")
    try:
        roll()["next", "reward"].mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
