"""A policy may begin as a rule: it imitates one before the run."""

import pytest
import torch
from test_memory import hidden_policy
from test_training import StopAfter, metrics_of, small_hpo, small_trainer

from hpo_torchrl.algorithms import HPO, PPO
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv, StorageEnv, SwitchedLQREnv
from hpo_torchrl.problems.storage.rules import PriceThresholds
from hpo_torchrl.training import Callback


def learner(kind, env, imitate, **arguments):
    torch.manual_seed(0)
    policy = HybridPolicy.for_env(env, hidden=(32, 32), scale=0.3 if kind is PPO else 0.0)
    return kind(env, policy, make_value_network(env), imitate=imitate, seed=0, **arguments)


def agreement(one, rule):
    """Return how often a policy does as the rule, by discrete action, and how far it is off."""
    key = ("action", "continuous")
    with torch.no_grad():
        batch = one.collector.collect().reshape(-1)
        told = rule(batch.select(*rule.in_keys))
        discrete = told["action", "discrete"]
        same = (one.policy.discrete_logits(batch).argmax(-1) == discrete).double()
        off = one.policy.mean_action(batch, discrete) - told[key]
    recall = [same[discrete == each].mean().item() for each in discrete.unique()]
    acts = (discrete > 0).reshape(*off.shape[:-1], -1).expand_as(off)
    return sum(recall) / len(recall), off[acts].square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("kind", "make", "name", "unit"),
    [
        (HPO, lambda: StorageEnv(3, batch_size=16, seed=0), "price_thresholds", 1.0),
        (PPO, lambda: StorageEnv(1, batch_size=16, seed=0), "plan", 1.0),
        (HPO, lambda: InventoryEnv(2, batch_size=16, initial_state="random"), "s_S", 36.0),
    ],
)
def test_a_policy_takes_after_the_rule(kind, make, name, unit, monkeypatch):
    monkeypatch.setattr("hpo_torchrl.algorithms.imitation._BATCHES", 25)
    env = make()
    one = learner(kind, env, name)
    rule = env.rules()[name]()
    before, _ = agreement(one, rule)
    assert one.imitate_rule()
    same, off = agreement(one, rule)
    assert before < 0.6 < 0.93 < same
    assert off < 0.1 * unit


def test_what_cannot_be_imitated_is_refused_at_once():
    with pytest.raises(ValueError, match=r"StorageEnv has no rule 'plam': .* mean 'plan'"):
        learner(HPO, StorageEnv(1, batch_size=2), "plam")
    env = SwitchedLQREnv.from_recipe(2, 2, horizon=3, batch_size=2)
    with pytest.raises(ValueError, match="no rule 'best': its rules are 'fixed_mode'"):
        learner(PPO, env, "best")
    env, policy, critic = hidden_policy()
    with pytest.raises(ValueError, match="imitate='s_S': Ranks that share a training, and"):
        PPO(env, policy, critic, imitate="s_S")


def test_of_several_rules_the_first_that_there_is_is_imitated():
    env = StorageEnv(1, batch_size=2, horizon=24)
    one = learner(HPO, env, ["best", "price_thresholds"], entropy_coeff=0.3, regress=False)
    assert isinstance(one.rule, PriceThresholds)
    with pytest.raises(ValueError, match="imitate='plan': A plan is of the long-run average"):
        learner(HPO, env, "plan")
    with pytest.warns(UserWarning, match=r"\['plan'\]: the policy begins untrained.*horizon=24"):
        other = learner(HPO, env, ["plan"], entropy_coeff=0.3, regress=False)
    assert not other.imitate_rule()
    assert [each.temperature_final for each in (one, other)] == [0.02, 0.02]
    for each, bonuses in ((one, [0.02, 0.02]), (other, [0.3, 0.02])):  # more would be forgetful
        found = []
        for progress in (0.0, 1.0):
            each.anneal(progress)
            found.append(each.loss.entropy_coeff.item())
        assert found == pytest.approx(bonuses)
    with pytest.raises(TypeError, match=r"a rule's name, or several, got \[3\]"):
        learner(HPO, env, [3])


def test_a_run_that_is_interrupted_before_its_checkpoint_imitates_again(tmp_path, monkeypatch):
    monkeypatch.setattr("hpo_torchrl.algorithms.imitation._BATCHES", 3)
    begun = []

    class Beginning(Callback):
        def on_update_end(self, trainer, row):
            begun.append(row["test_cost"]) if trainer.update == 1 else None

    def run(name, **arguments):
        algorithm = small_hpo(imitate="s_S", learning_rate=1e-4)
        return small_trainer(tmp_path / name, algorithm, **arguments)

    small_trainer(tmp_path / "plain", small_hpo(), callbacks=[Beginning()]).train()
    whole = run("whole", callbacks=[Beginning()])
    summary = whole.train()
    assert begun[1] < 0.8 * begun[0]
    with pytest.raises(InterruptedError):
        run("run", callbacks=[StopAfter(1)]).train()
    again = run("run")
    again.resume()
    assert again.train()["test_cost"] == summary["test_cost"]
    assert summary["env_steps"] > 4 * 8 * 5
    assert metrics_of(again.runs[0].folder) == metrics_of(whole.runs[0].folder)
