"""What ranks do in tests/test_ranks.py: ``torchrun --nproc_per_node=2 tests/rank_cases.py DIR``."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from shrunk import SMALL

from hpo_torchrl.algorithms import DDPG, HPO, PPO, GumbelSoftmax
from hpo_torchrl.core import ranks
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.experiments.run import train_run
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.training import Callback

EXACT = {"dtype": torch.float64, "seed": 0}
SETTINGS = [
    *SMALL,
    "dtype=float64",
    "reference=none",
    "collect.batch_size=9",
    "trainer.num_updates=10",
    "trainer.checkpoint_every=4",
    "algorithm.epochs=1",
    "algorithm.num_minibatches=2",
    "trainer.eval_every=3",
    "trainer.select=best",
]


def inventory(batch, **settings):
    return InventoryEnv(batch_size=batch, initial_state="random", **EXACT, **settings)


def lqr():
    return SwitchedLQREnv.from_recipe(2, 2, batch_size=10, horizon=6, **EXACT)


def depending():
    """Its noise depends on the state, and episodes end within a rollout, at different times."""
    demand = {"name": "poisson", "mean": [10.0, 8.0], "autoregression": 0.5}
    return inventory([5, 2], num_items=2, demand=demand, horizon=7)


# By name: class, environment, updates, settings. In the first, every update stops early.
CASES = {
    "hpo": (HPO, partial(inventory, 128), 50, {"branch_steps": 0, "target_kl": 1e-4}),
    "branches": (HPO, partial(inventory, 9), 6, {"branch_steps": 3}),
    "adaptive": (HPO, depending, 4, {"branch_steps": 0, "cross_term": "adaptive", "epochs": 1}),
    "lqr": (HPO, lqr, 4, {"branch_steps": 2, "epochs": 1}),
    "ppo": (PPO, partial(inventory, 128), 20, {"num_minibatches": 2, "epochs": 2}),
    # Minibatches of which a rank has no row.
    "few": (PPO, depending, 3, {"num_minibatches": 13, "epochs": 3, "target_kl": 1e-3}),
    "gumbel": (GumbelSoftmax, partial(inventory, 9), 5, {}),
}


def build(name):
    kind, make, updates, settings = CASES[name]
    torch.manual_seed(0)
    env = make()
    how = {"scale": 0.3} if kind is PPO else {}
    policy = HybridPolicy.for_env(env, hidden=[8], **how)
    critic = make_value_network(env, hidden=[8])
    return kind(env, policy, critic, seed=1, unroll_length=4, **settings), updates


def weights(algorithm):
    networks = (algorithm.policy, algorithm.critic)
    return torch.cat([p.detach().reshape(-1) for net in networks for p in net.parameters()])


def trained(name):
    """Return the weights and the last metrics of a case."""
    algorithm, updates = build(name)
    for update in range(updates):
        algorithm.anneal(update / updates)
        metrics = algorithm.iterate()
    ranks.check_same("the weights", weights(algorithm).tolist())
    return {"weights": weights(algorithm), "frames": algorithm.collector.frames, **metrics}


class Stop(Callback):
    """Fails after an update."""

    def __init__(self, update):
        self.at = update

    def on_update_end(self, trainer, row):
        if row["update"] == self.at and trainer.runs[0].checkpoint.updates()[-1] > 0:
            raise RuntimeError("the machine was needed")


def run(folder, *changes, stop=None, **how):
    """Train a small run with scouting and starts; return whether a callback stopped it."""
    config = compose_config([*SETTINGS, *changes])
    learner, little = "hpo_torchrl.algorithms.learner", "hpo_torchrl.algorithms.hpo"
    with (
        patch.multiple(learner, _LONG=10, _SCOUTING=2),
        patch(f"{little}._SHORTEST_START", 2),
    ):
        try:
            train_run(config, folder, callbacks=[Stop(stop)] if stop else [], **how)
        except RuntimeError:
            return True
    return False


def refused(action):
    """Return how something was refused."""
    try:
        action()
    except (ValueError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


class Spoiling(InventoryEnv):
    """After the first step its rewards are NaN in rank 1."""

    def dynamics(self, state, action, noise):
        after, reward = super().dynamics(state, action, noise)
        spoilt = (state["step"] > 0).squeeze(-1) & (ranks.rank() == 1)
        return after, reward.masked_fill(spoilt, float("nan"))


def hpo(env, kind=HPO, **settings):
    return kind(env, HybridPolicy.for_env(env), make_value_network(env), **settings)


class OwnLoss(torch.nn.Module):
    """A loss of which nothing is known."""

    default_value_estimator = None

    def __init__(self, policy, critic):
        super().__init__()


def outcomes(folder):
    """Return what happens in a rank, by name."""
    found = {"not joined": refused(lambda: hpo(inventory(4)))}
    with ranks.joined():
        found |= {name: trained(name) for name in CASES}
        with (
            patch.object(ranks, "sum_gradients", lambda parameters: None),
            patch.object(ranks, "check_same", lambda *_: None),
        ):
            found["gradients apart"] = {name: trained(name) for name in ("gumbel", "few")}
        with patch.object(ranks, "mean", torch.mean):
            found["means apart"] = {"gumbel": trained("gumbel")}
        found["too many"] = refused(lambda: hpo(inventory(1)))
        found["several seeds"] = refused(lambda: run(folder / "many", num_seeds=2))
        found["ddpg"] = refused(lambda: hpo(inventory(4), DDPG))
        found["other settings"] = refused(lambda: hpo(inventory(4), seed=ranks.rank()))
        dear = {"holding_cost": 1.0 + ranks.rank()}
        found["other problem"] = refused(lambda: hpo(inventory(4, **dear)))
        found["own loss"] = refused(lambda: hpo(inventory(4), GumbelSoftmax, loss=OwnLoss))
        spoilt = hpo(Spoiling(batch_size=4, **EXACT), seed=0)
        found["spoilt"] = refused(spoilt.iterate)
        written = []
        watch(folder, written)
        found["whole"] = run(folder / "whole")
        found["stopped"] = run(folder / "stopped", stop=9)
        found["resumed"] = run(folder / "alone", resume=True)
        found["written"] = written
    with ranks.alone():
        found["alone"] = trained("gumbel")
    return found


def watch(folder, written):
    """Note what this process opens to write in a folder, renames, removes or makes there."""

    def note(event, arguments):
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if event == "open" and isinstance(arguments[2], int):
            changes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if changes and str(arguments[0]).startswith(str(folder)):
            written.append(f"{event} {arguments[0]}")

    sys.addaudithook(note)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    torch.save(outcomes(place), place / f"rank{os.environ['RANK']}.pt")
