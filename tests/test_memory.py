"""Policies with a memory: a GRU in front of the hybrid network."""

from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import Compose, InitTracker, TransformedEnv
from torchrl.modules import GRUModule

from hpo_torchrl.algorithms import DDPG, HPO, PPO
from hpo_torchrl.collectors import (
    DifferentiableCollector,
    SampleCollector,
    differentiable_rollout,
)
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy, make_value_network, replicate
from hpo_torchrl.objectives import HPOLoss
from hpo_torchrl.training import Evaluation

SIZE = 3


class Glimpse(DifferentiableEnv):
    """A cue, 1 or -1, is shown once; discrete and continuous actions are to agree with it."""

    def __init__(self, batch_size=32, seed=0):
        super().__init__(
            num_discrete=2,
            continuous_dim=1,
            state_shapes={"cue": (1,)},
            observation_dim=2,
            noise_shape=(1,),
            horizon=4,
            batch_size=batch_size,
            seed=seed,
        )

    def dynamics(self, state, action, noise):
        cue = state["cue"]
        wrong = (action["discrete"] != (cue[..., 0] > 0)).to(cue)
        return {"cue": cue}, -wrong - (action["continuous"] - cue)[..., 0].square()

    def observe(self, state):
        first = (state["step"] == 0).to(state["cue"])
        return torch.cat([state["cue"] * first, first], -1)

    def initial_state(self):
        return {"cue": self._draw(torch.randn, (*self.batch_size, 1)).sign()}

    def draw_noise(self, num_steps, state):
        return self._draw(torch.randn, (*self.batch_size, num_steps, 1))


class Hidden(DifferentiableEnv):
    """Two coupled coordinates that actions move, of which one is seen."""

    def __init__(self):
        super().__init__(
            num_discrete=2,
            continuous_dim=1,
            state_shapes={"x": (2,)},
            observation_dim=1,
            noise_shape=(2,),
            horizon=5,
            batch_size=4,
            dtype=torch.float64,
            seed=0,
        )

    def dynamics(self, state, action, noise):
        x, d = state["x"], action["discrete"].unsqueeze(-1)
        after = (x + 0.7 * x.flip(-1) + action["continuous"] * (1 - 0.5 * d) + noise).tanh()
        return {"x": after}, -after.square().sum(-1)

    def observe(self, state):
        return state["x"][..., :1]

    def initial_state(self):
        return {"x": self._draw(torch.randn, (4, 2))}

    def draw_noise(self, num_steps, state):
        return self._draw(torch.randn, (4, num_steps, 2))


def remembering(env, size=SIZE):
    """A GRU and the environment with what it needs."""
    torch.manual_seed(0)
    spec = env.observation_spec["observation"]
    gru = GRUModule(
        gru=nn.GRU(spec.shape[-1], size, batch_first=True, dtype=spec.dtype),
        in_keys=["observation", "recurrent_state"],
        out_keys=["features", ("next", "recurrent_state")],
    )
    primer = gru.make_tensordict_primer()
    for key, own in primer.primers.items(True, True):
        primer.primers[key] = own.to(spec.dtype)
    return gru, TransformedEnv(env, Compose(InitTracker(), primer))


def hidden_policy():
    gru, env = remembering(Hidden())
    policy = HybridPolicy.for_env(env, memory=gru, hidden=4, scale=0.3)
    nn.init.normal_(policy.network.discrete[-1].weight)
    return env, policy, make_value_network(env, hidden=4)


def recounted(gru, batch, before):
    """Features of a batch ``(B, T)`` by GRU cells, from the hidden states before it."""
    cell = nn.GRUCell(gru.gru.input_size, gru.gru.hidden_size, dtype=before.dtype)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cell.load_state_dict({name: getattr(gru.gru, f"{name}_l0").detach() for name in names})
    features = []
    with torch.no_grad():
        for step in batch.unbind(1):
            before = torch.where(step["step"] == 0, 0.0, before)  # an episode begins
            before = cell(step["observation"], before)
            features.append(before)
    return torch.stack(features, 1), before


@pytest.mark.parametrize("kind", [DifferentiableCollector, SampleCollector])
def test_the_hidden_state_is_carried_over_and_begins_anew_with_an_episode(kind):
    env, policy, _ = hidden_policy()
    collector = kind(env, policy, frames_per_batch=4 * 3, reset_fraction=0.3)
    before = torch.zeros(4, SIZE, dtype=torch.float64)
    starts = 0
    for _ in range(5):
        batch = collector.collect().detach()
        features, before = recounted(policy.memory, batch, before)
        assert torch.allclose(batch["features"], features, atol=1e-12)
        again = policy._seen(batch)  # as losses compute it, with episodes that end on the way
        assert torch.allclose(again, features, atol=1e-12)
        starts += int((batch["step"][:, 1:] == 0).sum())
    assert starts > 0


def test_gradients_pass_through_time():
    env, policy, _ = hidden_policy()
    weight = policy.memory.gru.weight_hh_l0

    def value():
        env.set_seed(0)
        torch.manual_seed(2)
        return differentiable_rollout(env, policy, 7)["next", "reward"].sum()

    (found,) = torch.autograd.grad(value(), weight)
    slopes, step = torch.zeros_like(weight), 1e-6
    with torch.no_grad():
        for at in [(0, 0), (4, 1), (8, 2)]:
            for sign in (1, -1):
                weight[at] += sign * step
                slopes[at] += sign * value() / (2 * step)
                weight[at] -= sign * step
            assert torch.allclose(found[at], slopes[at], atol=1e-6)
    assert found.abs().min() > 0


@pytest.mark.parametrize("functional", [True, False])
def test_score_function_and_cross_term_are_the_whole_derivative_of_what_was_chosen(functional):
    env, policy, critic = hidden_policy()
    batch = differentiable_rollout(env, policy, 7)
    loss = HPOLoss(policy, critic, clip_epsilon=None, functional=functional)
    loss.make_value_estimator(gamma=1.0)
    batch.update(loss.advantages(batch).select("advantage", "value_target"))
    # Step by step, with the graph of the rollout: through weights, observations, hidden states.
    dist = policy.distribution(batch["features"])
    score = dist.log_prob_discrete(batch["action", "discrete"])
    expected = -(score * batch["advantage"].squeeze(-1)).mean()
    parameters = list(policy.parameters())
    found = [
        torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
        for value in (expected, loss(batch)["loss_objective"])
    ]
    for own, other in zip(*found, strict=True):
        assert torch.allclose(own, other, atol=1e-12)
    assert found[0][0].any()


@pytest.mark.parametrize("algorithm", [HPO, PPO])
def test_what_was_shown_once_is_learned_with_a_memory_alone(algorithm):
    costs = []
    for remembers in (True, False):
        gru, env = remembering(Glimpse(), 8)
        memory = gru if remembers else None
        policy = HybridPolicy.for_env(env, memory=memory, hidden=16, scale=0.3)
        critic = make_value_network(Glimpse(1), hidden=8)
        fewer = {"epochs": 4, "num_minibatches": 2} if algorithm is PPO else {}
        learner = algorithm(env, policy, critic, seed=0, learning_rate=2e-2, **fewer)
        for _ in range(20 if algorithm is HPO else 15):
            learner.iterate()
        test = Evaluation(remembering(Glimpse(64), 8)[1], num_steps=4, seed=1)
        costs.append(test.run(policy).mean)
    # Without one, three of four steps are a guess: half of the choices wrong, u = 0.
    assert costs[0] < 0.3
    assert costs[1] > 1.0


def test_a_seed_decides_a_run_with_a_memory():
    costs = []
    for _ in range(2):
        gru, env = remembering(Glimpse(8))
        policy = HybridPolicy.for_env(env, memory=gru, hidden=4, scale=0.3)
        learner = HPO(env, policy, make_value_network(Glimpse(1), hidden=4), seed=3)
        torch.rand(len(costs))  # torch's own generator has no part in it
        costs.append([learner.iterate()["cost"] for _ in range(3)])
    assert costs[0] == costs[1]


def test_a_module_without_state_prepares_what_the_network_reads():
    env = Hidden()
    encoder = TensorDictModule(nn.Linear(1, 5, dtype=torch.float64), ["observation"], ["code"])
    policy = HybridPolicy.for_env(env, memory=encoder, hidden=4)
    learner = HPO(env, policy, make_value_network(env, hidden=4), unroll_length=4)
    before = encoder.module.weight.clone()
    learner.iterate()
    assert (encoder.module.weight != before).any()


def test_where_a_memory_cannot_be_used_it_is_said():
    env, policy, critic = hidden_policy()
    for call, words in {
        lambda: HybridPolicy.for_env(Hidden(), memory=policy.memory): "InitTracker.*primer",
        lambda: HPO(Hidden(), policy, critic): "InitTracker.*primer",
        lambda: DDPG(env, policy, critic): "memory",
        lambda: replicate([policy, policy]): "memory.*GRUModule",
        lambda: differentiable_rollout(env, policy, 3, checkpoint_steps=2): "memory",
        lambda: HPO(env, policy, critic, branch_steps=3): "functional",
    }.items():
        with pytest.raises((ValueError, TypeError), match=words):
            call()
