"""NaN and infinity stop a run where they come about, and nothing finite is made of them."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import pytest
import torch
from shrunk import SMALL
from tensordict import TensorDict

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.faults.nans import CASES, Planter, attempt, build
from hpo_torchrl.algorithms import DDPG, HPO, NonFiniteError
from hpo_torchrl.algorithms.optimization import RewardScaler
from hpo_torchrl.core.finite import not_finite, spoilt_first
from hpo_torchrl.experiments import cli
from hpo_torchrl.modules import HybridDistribution, HybridPolicy, make_value_network, replicate
from hpo_torchrl.objectives import CrossTermWeight
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.training import Checkpoint, Evaluation, Selection

NAN, INF = math.nan, math.inf
# The strongest of benchmarks/faults/nans.py: one of each place that a message can name.
STRONGEST = [0, 8, 16, 23, 26, 32, 34, 37, 38, 39]


def parts(**policy):
    torch.manual_seed(0)
    env = InventoryEnv(batch_size=4, initial_state="random", seed=0)
    return env, HybridPolicy.for_env(env, hidden=[8], **policy), make_value_network(env, hidden=[8])


def tiny(kind=HPO, **policy):
    algorithm = kind(*parts(**policy), unroll_length=4, seed=0)
    algorithm.anneal(0.0)
    return algorithm


@pytest.mark.parametrize("number", STRONGEST, ids=lambda n: "-".join(map(str, CASES[n][:4])))
def test_a_run_stops_in_the_update_that_is_spoilt_and_names_what_was_first(number):
    wrong, message = attempt(CASES[number], number, seed=0)
    assert not wrong, message


def test_the_script_notices_a_run_that_goes_on_and_a_wrong_name(monkeypatch):
    monkeypatch.setattr(Planter, "spoil", lambda self, value: value)
    assert "not stopped" in attempt(CASES[0], 0, seed=0)[0]
    monkeypatch.undo()
    monkeypatch.setattr(Planter, "names", lambda self: "the state")
    assert attempt(CASES[0], 0, seed=0)[0] == ["not named"]


@pytest.mark.parametrize(
    ("logits", "loc", "named"),
    [
        ([NAN, 0.0], 0.0, "logits"),
        ([INF, 0.0], 0.0, "logits"),
        ([-INF, -INF], 0.0, "logits"),
        ([0.0, 0.0], NAN, "loc"),
        ([0.0, 0.0], -INF, "loc"),
        ([-INF, 0.0], 0.0, None),
    ],
)
def test_a_distribution_refuses_what_no_action_follows_from(logits, loc, named):
    given = torch.tensor([[0.0, 0.0], logits]), torch.full((2, 2, 1), loc)
    if named is None:
        assert HybridDistribution(*given).sample()["discrete"][1] == 1
        return
    with pytest.raises(ValueError, match=f"{named} must be finite"):
        HybridDistribution(*given)
    HybridDistribution(*given, validate_args=False)


def test_values_are_not_checked_in_an_exported_graph():
    policy = parts()[1]

    class Act(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = policy.network

        def forward(self, seen):
            draw = policy.distribution(seen).draw(None)
            return draw.discrete, draw.continuous

    seen = torch.randn(4, policy._observation_size)
    exported = torch.export.export(Act(), (seen,)).module()
    assert all(map(torch.equal, exported(seen), Act()(seen)))


def spoil_discrete_head(policy, fill):
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "discrete" in name:
                weight.fill_(fill)
                weight.view(-1)[::2] *= -1.0


@pytest.mark.parametrize("return_log_prob", [True, False])
@pytest.mark.parametrize(("fill", "named"), [(NAN, r"weight \S+discrete"), (3e38, "the logit ")])
def test_a_policy_of_nan_has_no_cost(fill, named, return_log_prob, monkeypatch):
    env, policy, _ = parts(return_log_prob=return_log_prob)
    spoil_discrete_head(policy, fill)
    test = Evaluation(env, num_steps=6, seed=0)
    with pytest.raises(NonFiniteError, match=named):
        test.run(policy)
    seeds = replicate([parts(return_log_prob=return_log_prob)[1], policy])
    for together in (True, False):  # seeds side by side, and one after another
        monkeypatch.setattr(InventoryEnv, "counts_steps", together)
        with pytest.raises(NonFiniteError, match=named) as caught:
            test.run(seeds)
        assert caught.value.seed_index == 1


def test_a_test_that_is_not_finite_ends_the_run_without_a_summary(tmp_path):
    trainer = build(CASES[2], tmp_path)  # pathwise, a single seed
    test = trainer.tests["short"]
    test.env.shortage_cost.fill_(NAN)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    message = str(caught.value)
    assert message.startswith("The test 'short' after update 4: the environment's shortage_cost")
    assert f"checkpoint-{4:012d}.ckpt" in message
    assert f"hpo-train resume={tmp_path} algorithm.learning_rate=0.0025." in message
    assert not trainer.runs[0].folder.summary.exists()


def test_a_command_that_diverges_says_how_to_go_on(tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        cli.train([*SMALL, "algorithm.learning_rate=1e30", f"output_dir={run}"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "Update 1: The optimizer's step spoilt the weights" in error
    assert f"resume={run} algorithm.learning_rate=5e+29." in error
    assert [path.stem for path in (run / "checkpoints").glob("*")] == [f"checkpoint-{0:012d}"]
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize("cost", [NAN, INF, -INF])
def test_no_policy_is_kept_for_a_cost_that_is_not_finite(cost):
    selection = Selection("best")
    selection.offer(torch.nn.Linear(1, 1), 1, cost)
    assert (selection.update, selection.weights) == (-1, {})


@pytest.mark.parametrize("ratio", [NAN, INF])
def test_a_change_that_is_not_finite_moves_no_step_size(ratio):
    learner = tiny()
    before = json.dumps(
        [group["lr_multiplier"] for group in learner.optimization.param_groups("discrete")]
    )
    with pytest.raises(NonFiniteError, match="change of the discrete actions"):
        learner.optimization.adapt_lr("discrete", torch.tensor(ratio))
    groups = learner.optimization.param_groups("discrete")
    assert json.dumps([group["lr_multiplier"] for group in groups]) == before


def test_a_loss_that_is_not_finite_makes_no_step():
    learner = tiny()
    before = [weight.clone() for weight in learner.policy.parameters()]
    reached = sum(weight.sum() for weight in learner.policy.parameters())
    terms = TensorDict(
        {"loss_a": 0.0 * reached, "loss_b": torch.tensor(NAN), "kl": torch.tensor(NAN)}
    )
    with pytest.raises(NonFiniteError, match=r"^loss_b is not finite"):
        learner.optimization.step(terms)
    assert all(map(torch.equal, learner.policy.parameters(), before))


def test_running_means_do_not_hide_nan():
    scaler, weight = RewardScaler(), CrossTermWeight()
    scaler.observe(torch.randn(8))
    scaler.variance.fill_(NAN)
    weight.power.fill_(NAN)
    assert scaler.scale.isnan()
    assert weight.weight.isnan()


def test_memory_that_a_replay_buffer_has_not_used_is_not_saved(tmp_path):
    learner = tiny(DDPG, scale=0.1)
    learner.iterate()
    storage = learner.buffer.state_dict()["_storage"]["_storage"]
    storage["observation"][len(learner.buffer) :] = NAN
    Checkpoint(tmp_path, learner.components(), config={}).save(1, {})


KEYS = {
    "x": (4, 3, 1),
    "observation": (4, 3, 2),
    ("action", "continuous"): (4, 3, 1),
    "discrete_log_prob": (4, 3),
    ("next", "x"): (4, 3, 1),
    ("next", "observation"): (4, 3, 2),
    ("next", "reward"): (4, 3, 1),
    "state_value": (4, 3, 1),
    "advantage": (4, 3, 1),
}


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ({"x": 1, "observation": 1, ("next", "reward"): 1}, "the state 'x' at time step 1"),
        ({"x": 2, "observation": 1}, "the observation 'observation' at time step 1"),
        ({("next", "x"): 0, "x": 1}, "the next state ('next', 'x') at time step 0"),
        ({("action", "continuous"): 0, "discrete_log_prob": 0}, "the logit 'discrete_log_prob'"),
        (
            {("next", "reward"): 2, ("next", "x"): 2},
            "the reward ('next', 'reward') at time step 2 and the next state",
        ),
        ({"advantage": 0, "state_value": 2}, "the estimate 'state_value' at time step 2"),
        ({}, None),
    ],
)
def test_what_was_spoilt_first_in_a_batch(planted, found):
    env = InventoryEnv(batch_size=2)
    env.state_names = ("x",)
    batch = TensorDict({key: torch.zeros(shape) for key, shape in KEYS.items()}, [4, 3])
    for key, time in planted.items():
        batch[key][random.Random(0).randrange(1, 4), time] = NAN
    answer = spoilt_first(env, batch, many=True)
    assert answer is None if found is None else answer[0].startswith(found)
    assert found is None or answer[1] > 0


def test_finite_entries_are_finite_where_their_norm_overflows():
    assert not_finite({"a": [torch.full((4,), 3e38)], "b": torch.arange(3)}) is None
    assert not_finite({"a": [torch.ones(2), torch.tensor(INF)]}) == "a.1"
