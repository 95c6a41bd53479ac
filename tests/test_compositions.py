"""TorchRL's own pieces around ours: each works as it does alone, or is refused by its name."""

from __future__ import annotations

import copy
import gc
import math
import pickle

import cloudpickle
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    TensorDictModule,
    TensorDictSequential,
    set_composite_lp_aggregate,
)
from torch import nn
from torch.distributions import Categorical, Independent, Normal
from torch.func import functional_call, stack_module_state, vmap
from torchrl.collectors import Collector
from torchrl.data import (
    LazyMemmapStorage,
    LazyTensorStorage,
    ListStorage,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.envs import (
    ActionDiscretizer,
    ActionScaling,
    BinarizeReward,
    CatFrames,
    CatTensors,
    ClipTransform,
    Compose,
    DeviceCastTransform,
    DoubleToFloat,
    EnvCreator,
    ExcludeTransform,
    FiniteTensorDictCheck,
    FlattenObservation,
    FrameSkipTransform,
    InitTracker,
    NoopResetEnv,
    ObservationNorm,
    ParallelEnv,
    RenameTransform,
    RewardClipping,
    RewardScaling,
    RewardSum,
    SelectTransform,
    SerialEnv,
    StepCounter,
    TargetReturn,
    TensorDictPrimer,
    TimeMaxPool,
    Timer,
    TransformedEnv,
    UnsqueezeTransform,
    VecNorm,
    VecNormV2,
    check_env_specs,
)
from torchrl.envs.utils import ExplorationType, RandomPolicy, set_exploration_type
from torchrl.modules import AdditiveGaussianModule, ProbabilisticActor
from torchrl.objectives import (
    A2CLoss,
    ClipPPOLoss,
    DDPGLoss,
    KLPENPPOLoss,
    ReinforceLoss,
    SACLoss,
    SoftUpdate,
)
from torchrl.trainers import Trainer

from hpo_torchrl.algorithms import DDPG, HPO, PPO
from hpo_torchrl.collectors import (
    DifferentiableCollector,
    SampleCollector,
    differentiable_rollout,
)
from hpo_torchrl.envs import DifferentiableEnv, hybridize
from hpo_torchrl.modules import HybridPolicy, make_q_network, make_value_network
from hpo_torchrl.objectives import HPOLoss, LearnedCriticLoss
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.training import Evaluation

pytestmark = pytest.mark.filterwarnings(
    "ignore:Support of VecNorm",
    "ignore:The VecNorm class:FutureWarning",
    "ignore:This class is to be deprecated in favor of .*VecNormV2:FutureWarning",
    "ignore:No target network updater",
    "ignore:The 'optimizer' hook stage:FutureWarning",
)
OBSERVED = ["observation"]


def inventory(batch_size=4, **others):
    return InventoryEnv(batch_size=batch_size, initial_state="random", seed=0, **others)


class Line(DifferentiableEnv):
    """Two coordinates with bounds of their own, and an observation that is the state."""

    def __init__(self, num_discrete=2, horizon=None):
        super().__init__(
            num_discrete=num_discrete,
            continuous_dim=2,
            continuous_bounds=(torch.tensor([0.0, -1.0]), torch.tensor([1.0, 3.0])),
            state_shapes={"x": (2,)},
            observation_dim=2,
            noise_shape=(2,),
            horizon=horizon,
            batch_size=3,
            dtype=torch.float64,
            seed=0,
        )

    def dynamics(self, state, action, noise):
        u, d = action["continuous"], action["discrete"].unsqueeze(-1)
        after = (1.1 * state["x"] - 0.5 * u * (1 + d) + 0.1 * noise).tanh()
        return {"x": after}, -(after**2).sum(-1) - 0.1 * (u**2).sum(-1)

    def observe(self, state):
        return state["x"]

    def initial_state(self):
        return {"x": self._draw(torch.randn, (3, 2))}

    def draw_noise(self, num_steps, state):
        return self._draw(torch.randn, (3, num_steps, 2))


def networks(env, **key):
    torch.manual_seed(0)
    policy = HybridPolicy.for_env(env, hidden=4, scale=0.1, find_scales=False, **key)
    return policy, make_value_network(env, hidden=4, find_scales=False, **key)


def rolled(env, policy, num_steps=6, **settings):
    env.set_seed(0)
    torch.manual_seed(1)
    return differentiable_rollout(env, policy, num_steps, **settings)


def gradients(value, module):
    parameters = list(module.parameters())
    return torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)


def total(terms):
    return sum(value for key, value in terms.items() if key.startswith("loss_"))


def trains(algorithm, env, **key):
    policy, critic = networks(env, **key)
    settings = {"unroll_length": 4, "epochs": 1} | ({"seed": 0} if algorithm is HPO else {})
    learner = algorithm(env, policy, critic, **settings)
    return all(math.isfinite(learner.iterate()["cost"]) for _ in range(2))


def refused(call, *words):
    with pytest.raises((ValueError, TypeError, KeyError, RuntimeError)) as caught:
        call()
    text = str(caught.value)
    assert all(word in text for word in words), text


# -- transforms ------------------------------------------------------------------------------------

UNSEEN = {
    "none": Compose,
    "RewardSum": RewardSum,
    "StepCounter": StepCounter,
    "InitTracker": InitTracker,
    "DoubleToFloat": lambda: DoubleToFloat(in_keys=[]),
    "Rename": lambda: RenameTransform(OBSERVED, ["seen"], create_copy=True),
    "Primer": lambda: TensorDictPrimer(extra=Unbounded((3,)), expand_specs=True),
    "Select": lambda: SelectTransform("observation", "x", "step"),
    "Flatten": lambda: FlattenObservation(-1, -1, in_keys=OBSERVED),
    "Finite": FiniteTensorDictCheck,
    "Timer": Timer,
    "TargetReturn": lambda: TargetReturn(10.0),
    "DeviceCast": lambda: DeviceCastTransform("cpu"),
    "several": lambda: Compose(InitTracker(), StepCounter(), RewardSum(), TargetReturn(1.0)),
}
SEEN = {
    "ObservationNorm": lambda: ObservationNorm(
        loc=torch.ones(2).double(), scale=torch.full((2,), 0.5).double(), in_keys=OBSERVED
    ),
    "RewardScaling": lambda: RewardScaling(0.3, 2.0),
    "RewardClipping": lambda: RewardClipping(-1.2, -0.2),
    "Clip": lambda: ClipTransform(in_keys=OBSERVED, low=-0.5, high=0.5),
    "CatFrames": lambda: CatFrames(3, dim=-1, in_keys=OBSERVED),
    "TimeMaxPool": lambda: TimeMaxPool(OBSERVED, T=2),
    "CatTensors": lambda: CatTensors(["observation", "x"], "observation", del_keys=False),
    "FrameSkip": lambda: FrameSkipTransform(2),
    "VecNorm": lambda: VecNorm(in_keys=OBSERVED),
    "VecNormV2": lambda: VecNormV2(in_keys=OBSERVED),
    "VecNormV2 of rewards": lambda: VecNormV2(in_keys=["observation", "reward"]),
    "VecNormV2 of the batch": lambda: VecNormV2(in_keys=OBSERVED, reduce_batch_dims=True),
    "VecNormV2 without state": lambda: VecNormV2(in_keys=OBSERVED, stateful=False),
    "several": lambda: Compose(
        StepCounter(), VecNormV2(in_keys=OBSERVED), CatFrames(2, dim=-1, in_keys=OBSERVED)
    ),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_a_transform_that_changes_nothing_leaves_rewards_and_gradients(name):
    env, plain = TransformedEnv(Line(horizon=4), UNSEEN[name]()), Line(horizon=4)
    check_env_specs(env)
    policy, _ = networks(plain)
    plain.set_seed(0)
    run = rolled(env, policy, 9)
    torch.manual_seed(1)
    expected = plain.rollout(9, policy, break_when_any_done=False)
    assert torch.equal(run["next", "reward"], expected["next", "reward"])
    pairs = zip(
        *(gradients(one["next", "reward"].sum(), policy) for one in (run, expected)), strict=True
    )
    assert all(torch.allclose(*pair, atol=1e-12) for pair in pairs)
    assert trains(HPO, env)
    assert trains(PPO, env)


@pytest.mark.parametrize("name", SEEN)
def test_gradients_pass_a_transform_that_changes_what_is_seen(name):
    policy, _ = networks(TransformedEnv(Line(), SEEN[name]()))
    weight = policy.network.continuous[-1].bias

    def value():
        return rolled(TransformedEnv(Line(), SEEN[name]()), policy)["next", "reward"].sum()

    (found,) = torch.autograd.grad(value(), weight)
    slopes, step = [], 1e-6
    with torch.no_grad():
        for i in range(len(weight)):
            ends = []
            for sign in (1, -1):
                weight[i] += sign * step
                ends.append(value())
                weight[i] -= sign * step
            slopes.append((ends[0] - ends[1]) / (2 * step))
    assert torch.allclose(found, torch.stack(slopes), atol=1e-6)
    assert found.any()


@pytest.mark.parametrize("name", SEEN)
def test_a_transform_that_changes_what_is_seen_trains(name):
    env = TransformedEnv(Line(), SEEN[name]())
    assert trains(HPO, env)  # two batches: no graph of the first is left
    assert trains(PPO, TransformedEnv(Line(), SEEN[name]()))
    copy.deepcopy(env).rollout(2)


def test_a_planted_fault_of_a_running_mean_would_be_seen(monkeypatch):
    monkeypatch.setattr("hpo_torchrl.collectors.engine.renew", lambda *given, **how: None)
    env = TransformedEnv(Line(), VecNormV2(in_keys=OBSERVED))
    run = rolled(env, networks(env)[0])
    with pytest.raises(RuntimeError, match="inplace operation"):
        run["next", "reward"].sum().backward()


def test_running_statistics_are_those_of_torchrls_own_rollout():
    found = []
    for roll in (rolled, lambda env, policy: env.rollout(6, policy)):
        env = TransformedEnv(Line(), VecNormV2(in_keys=OBSERVED))
        policy, _ = networks(env)
        env.set_seed(0)
        with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
            if roll is rolled:
                with torch.enable_grad():
                    rolled(env, policy)
            else:
                roll(env, policy)
        found.append(env.transform._loc["observation"])
    assert torch.allclose(*found)
    assert not found[0].requires_grad


@pytest.mark.parametrize(
    ("transform", "words"),
    {
        "reward": (lambda: RenameTransform(["reward"], ["r"]), ["'reward'", "'r'"]),
        "whole reward": (BinarizeReward, ["reward", "int8", "DTypeCastTransform"]),
        "ends": (lambda: RenameTransform(["done"], ["over"]), ["'done'", "'over'"]),
        "observation": (lambda: RenameTransform(OBSERVED, ["seen"]), ["'seen'"]),
        "not flat": (
            lambda: UnsqueezeTransform(-1, in_keys=OBSERVED),
            ["flat", "(4, 2, 1)", "FlattenObservation"],
        ),
        "choice": (
            lambda: RenameTransform([], [], [("action", "discrete")], ["k"]),
            ["('action', 'discrete')", "'k'"],
        ),
        "no real action": (
            lambda: ActionDiscretizer(4, action_key=("action", "continuous")),
            ["('action', 'continuous')", "MultiCategorical"],
        ),
        "scaled action": (
            lambda: ActionScaling(loc=0.0, scale=2.0, in_keys_inv=[("action", "continuous")]),
            ["ActionScaling", "continuous_bounds"],
        ),
        "state": (lambda: ExcludeTransform("inventory"), ["'inventory'", "ExcludeTransform"]),
    }.values(),
)
@pytest.mark.parametrize("algorithm", [HPO, PPO])
def test_a_transform_that_does_not_fit_is_named(transform, words, algorithm):
    refused(lambda: trains(algorithm, TransformedEnv(inventory(), transform())), *words)


# -- environments ----------------------------------------------------------------------------------


def test_a_nested_observation_is_read_like_a_flat_one():
    renamed = RenameTransform(OBSERVED, [("agent", "seen")])
    env, key = TransformedEnv(Line(), renamed), {"observation_key": ("agent", "seen")}
    (nested, _), (flat, _) = networks(env, **key), networks(Line())
    plain = TransformedEnv(Line(), Compose())
    rewards = [rolled(*pair)["next", "reward"] for pair in ((env, nested), (plain, flat))]
    assert torch.equal(*rewards)
    assert trains(HPO, env, **key)
    assert trains(PPO, env, **key)


def test_each_coordinate_keeps_to_bounds_of_its_own():
    low, high = Line().continuous_bounds
    for env in (Line(), TransformedEnv(Line(), RewardSum()), SerialEnv(2, Line)):
        network = networks(env)[0].network
        raw = torch.full((5, 2), 1e3, dtype=torch.float64) * torch.tensor(
            [[1.0], [-1.0]] * 2 + [[0.0]]
        )
        reach = network.distribution.range
        values = reach(raw.unsqueeze(-2)).squeeze(-2)
        assert torch.allclose(values.amin(0), low.double())
        assert torch.allclose(values.amax(0), high.double())
    assert trains(PPO, SerialEnv(2, Line))
    assert trains(HPO, Line())


def test_pieces_are_cut_within_the_bounds_of_each_coordinate():
    env = hybridize(Line(num_discrete=1), [0.5, 2.0], per_item=True)
    assert str(env.pieces) == "each item: [0, 0.5) [0.5, 1] or [-1, 0.5) [0.5, 2) [2, 3]"
    assert trains(HPO, env)
    executed = env.rollout(20)["x"]
    assert executed.isfinite().all()
    refused(lambda: hybridize(Line(num_discrete=1), [0.5]), "sum", "per_item=True")
    refused(lambda: hybridize(Line(num_discrete=1), [4.0], per_item=True), "4.0", "within")


def test_members_in_processes_train_and_are_tested():
    env = ParallelEnv(2, EnvCreator(inventory), mp_start_method="fork")
    serial = SerialEnv(2, inventory)
    try:
        assert trains(PPO, env)
        policy, _ = networks(inventory())
        tests = [Evaluation(one, num_steps=4, seed=0).run(policy) for one in (env, serial)]
        assert tests[0] == tests[1]
    finally:
        if not env.is_closed:
            env.close()
    ddpg = DDPG(serial, *networks(serial), unroll_length=4, updates_per_batch=1)
    assert math.isfinite(ddpg.iterate()["cost"])


def test_an_environment_outlives_who_learned_in_it():
    env = SerialEnv(2, inventory)
    assert trains(PPO, env)
    gc.collect()  # of the algorithm, which is forgotten
    assert not env.is_closed
    collector = SampleCollector(env, networks(env)[0], frames_per_batch=env.batch_size.numel())
    collector.collect()
    collector.shutdown()
    assert env.is_closed


def test_members_that_differ_are_refused():
    env = SerialEnv(2, [inventory, lambda: inventory(num_items=2)])
    refused(lambda: HybridPolicy.for_env(env), "alike in all of its members")


def test_instances_alone_and_no_operations_at_the_start():
    alone = TransformedEnv(InventoryEnv(seed=0), NoopResetEnv(2))
    assert trains(HPO, alone)
    assert trains(PPO, SerialEnv(3, lambda: TransformedEnv(InventoryEnv(seed=0), RewardSum())))


def test_steps_resets_seeds_and_moves():
    env, (policy, _) = TransformedEnv(Line(horizon=2), StepCounter()), networks(Line())
    state, ends = env.reset(), []
    for _ in range(4):
        step, state = env.step_and_maybe_reset(policy(state))
        ends.append(bool(step["next", "done"].all()))
    assert ends == [False, True, False, True]
    lengths = [env.rollout(5, policy, break_when_any_done=stop).shape[1] for stop in (True, False)]
    assert lengths == [2, 5]
    again = [rolled(one, policy)["next", "reward"] for one in (env, env.to("cpu"))]
    assert torch.equal(*again)
    random = rolled(env, RandomPolicy(env.action_spec))
    assert random.shape == (3, 6)


@pytest.mark.parametrize("again", [copy.deepcopy, "pickle", "cloudpickle"])
def test_copies_act_alike(again):
    module = {"pickle": pickle, "cloudpickle": cloudpickle}.get(again)
    again = again if module is None else lambda one: module.loads(module.dumps(one))
    env = TransformedEnv(Line(), CatFrames(2, dim=-1, in_keys=OBSERVED))
    policy, critic = networks(env)
    rolled(env, policy)  # a graph that a transform remembered could not be copied
    collector = DifferentiableCollector(env, policy, frames_per_batch=6)
    pairs = [(env, policy), (again(env), again(policy))]
    rewards = [rolled(*pair)["next", "reward"] for pair in pairs]
    assert torch.equal(*rewards)
    again(collector).collect()
    batch = rolled(env, policy)
    terms = [
        total(loss(batch)) for loss in (HPOLoss(policy, critic), again(HPOLoss(policy, critic)))
    ]
    assert torch.equal(*terms)


# -- losses ----------------------------------------------------------------------------------------


def hand_made(policy, critic, data):
    """The gradient of a policy gradient with given advantages, log-probabilities by hand."""
    logits, loc, scale = policy.network(data["observation"])
    d, u = data["action", "discrete"], data["action", "continuous"]
    index = d[..., None, None].expand(*d.shape, 1, u.shape[-1])
    chosen = Normal(loc.gather(-2, index).squeeze(-2), scale.gather(-2, index).squeeze(-2))
    score = Categorical(logits=logits).log_prob(d) + chosen.log_prob(u).sum(-1)
    return gradients(-(score * data["advantage"].squeeze(-1)).mean(), policy)


@pytest.mark.parametrize("aggregate", [True, False])
@pytest.mark.parametrize("kind", [A2CLoss, ReinforceLoss, ClipPPOLoss, KLPENPPOLoss])
def test_a_stock_loss_has_the_gradient_of_the_joint_log_probability(kind, aggregate):
    with set_composite_lp_aggregate(aggregate):
        policy, critic = networks(Line())
        data = Line().rollout(6, policy).detach()
        assert data["action_log_prob"].shape == data.shape
        bonus = {} if kind is ReinforceLoss else {"entropy_bonus": False}
        bonus |= {"beta": 1e-12} if kind is KLPENPPOLoss else {}
        loss = kind(policy, critic, **bonus)
        loss.make_value_estimator(gamma=0.9)
        loss.value_estimator(
            data,
            params=loss.critic_network_params.detach(),
            target_params=loss.target_critic_network_params,
        )
        terms = loss(data)
        name = "loss_actor" if kind is ReinforceLoss else "loss_objective"
        found = gradients(terms[name], policy)
        for one, expected in zip(found, hand_made(policy, critic, data), strict=True):
            assert torch.allclose(one, expected, atol=1e-10)


class OwnQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(5, 1, dtype=torch.float64)

    def forward(self, observation, discrete, continuous):
        return self.map(torch.cat([observation, discrete.unsqueeze(-1), continuous], -1)).tanh()


def test_a_critic_of_ones_own_steers_the_continuous_action_of_stock_losses():
    policy, _ = networks(Line())
    keys = ["observation", ("action", "discrete"), ("action", "continuous")]
    critic = TensorDictModule(OwnQ(), keys, ["state_action_value"])
    data = rolled(Line(), policy).detach().reshape(-1)
    loss = DDPGLoss(policy, critic)
    loss.make_value_estimator(gamma=0.9)
    found = gradients(loss(data)["loss_actor"], policy)
    logits, loc, _ = policy.network(data["observation"])
    best = logits.argmax(-1)
    u = loc[torch.arange(len(best)), best]
    expected = gradients(-critic.module(data["observation"], best, u).mean(), policy)
    assert all(torch.allclose(*pair) for pair in zip(found, expected, strict=True))
    sac = SACLoss(policy, critic, action_spec=Line().action_spec, target_entropy=-1.0)
    sac.make_value_estimator(gamma=0.9)
    assert any(slope.any() for slope in gradients(sac(data)["loss_actor"], policy))


def test_our_critic_of_actions_names_the_loss_that_it_is_made_for():
    policy, _ = networks(Line())
    data = rolled(Line(), policy).detach().reshape(-1)
    critic = make_q_network(Line(), hidden=4)
    loss = DDPGLoss(policy, critic)
    loss.set_keys(state_action_value="action_value")
    loss.make_value_estimator(gamma=0.9)
    refused(lambda: loss(data), "'candidate'", "LearnedCriticLoss", "DDPGLoss")
    refused(lambda: SoftUpdate(HPOLoss(policy, networks(Line())[1]), eps=0.9), "target")


@pytest.mark.parametrize("kind", [HPOLoss, LearnedCriticLoss])
def test_a_stock_composite_actor_is_refused_at_once(kind):
    class Parts(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return out[..., :2], out[..., 2:4], out[..., 4:].exp()

    keys = [("params", "discrete", "logits"), ("params", "continuous", "loc")]
    keys += [("params", "continuous", "scale")]
    parts = {
        "discrete": Categorical,
        "continuous": lambda loc, scale: Independent(Normal(loc, scale), 1),
    }
    actor = ProbabilisticActor(
        TensorDictModule(Parts(2, 6, dtype=torch.float64), OBSERVED, keys),
        in_keys=["params"],
        out_keys=[("action", "discrete"), ("action", "continuous")],
        distribution_class=CompositeDistribution,
        distribution_kwargs={"distribution_map": parts},
    )
    critic = make_q_network(Line()) if kind is LearnedCriticLoss else networks(Line())[1]
    refused(lambda: kind(actor, critic), "CompositeDistribution", "HybridPolicy")


def test_a_rollout_serves_once():
    policy, critic = networks(Line())
    loss, message = HPOLoss(policy, critic), "used up"
    batch = rolled(Line(), policy)
    first, second = total(loss(batch)), total(loss(batch))
    first.backward()
    for again in (second.backward, lambda: loss(batch)):
        refused(again, message, "pathwise=False")
    for env in (Line(), TransformedEnv(Line(), RewardSum())):  # without a loss, on both routes
        run = rolled(env, policy)
        run["next", "reward"].sum().backward()
        refused(lambda run=run: run["next", "reward"].mean().backward(), message)
    run = rolled(Line(), policy)
    run["next", "observation"].sum().backward(retain_graph=True)
    run["next", "observation"].sum().backward()
    refused(lambda: run["next", "observation"].sum().backward(), message)
    again = HPOLoss(policy, critic, pathwise=False, cross_term=False)
    total(again(batch)).backward()


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [LazyTensorStorage, LazyMemmapStorage, ListStorage])
def test_single_steps_of_a_replay_buffer_need_their_advantages(storage):
    policy, critic = networks(Line())
    loss = HPOLoss(policy, critic, pathwise=False, cross_term=False)
    batch = rolled(Line(), policy).detach()
    buffers = [TensorDictReplayBuffer(storage=storage(100), batch_size=18) for _ in range(2)]
    buffers[0].extend(batch.reshape(-1))
    refused(lambda: loss(buffers[0].sample()), "replay buffer", "loss.advantages")
    known = loss.advantages(batch)
    buffers[1].extend(known.reshape(-1))
    sample = buffers[1].sample()
    assert total(loss(sample)).isfinite()
    whole = HPOLoss(policy, critic, pathwise=False, cross_term=False, reduction="none")
    one = whole(sample)["loss_objective"]
    for row, value in zip(sample, one, strict=True):  # each step as in the batch that it is of
        same = (known["observation"] == row["observation"]).all(-1)
        assert torch.allclose(whole(known)["loss_objective"][same], value)


def test_torchrls_collector_and_exploration_modules_take_the_policy():
    policy, _ = networks(Line())
    collector = Collector(
        Line(horizon=4),
        policy,
        frames_per_batch=12,
        total_frames=36,
        auto_register_policy_transforms=False,
    )
    assert [batch["action_log_prob"].shape for batch in collector] == [(3, 4)] * 3
    collector.shutdown()
    spec = Line().full_action_spec["action", "continuous"]
    noise = AdditiveGaussianModule(spec, sigma_init=0.1, action_key=("action", "continuous"))
    run = rolled(Line(), TensorDictSequential(policy, noise))
    assert run["next", "reward"].requires_grad


def test_torchrls_trainer_takes_the_differentiable_collector():
    env, (policy, critic) = Line(), networks(Line())
    loss = HPOLoss(policy, critic)
    before = copy.deepcopy(policy.state_dict())
    trainer = Trainer(
        collector=DifferentiableCollector(env, policy, frames_per_batch=18, total_frames=180),
        total_frames=180,
        frame_skip=1,
        optim_steps_per_batch=1,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-2),
        progress_bar=False,
        logger=None,
        seed=3,
    )
    seeded = env.rng.get_state()
    trainer.train()
    assert trainer.collected_frames == 180
    assert any(not torch.equal(before[key], value) for key, value in policy.state_dict().items())
    other = Line()
    other.set_seed(3)
    assert torch.equal(seeded, other.rng.get_state())


# -- torch -----------------------------------------------------------------------------------------


def test_policies_side_by_side_by_vmap():
    policies = [networks(Line())[0] for _ in range(3)]
    for number, policy in enumerate(policies):
        nn.init.normal_(policy.network.discrete[-1].weight, std=1.0 + number)
    parameters, buffers = stack_module_state(policies)
    state = Line().reset().select("observation")

    def acts(own, kept):
        action = functional_call(policies[0], (own, kept), (state.clone(),))["action"]
        return action["discrete"], action["continuous"]

    with set_exploration_type(ExplorationType.DETERMINISTIC):
        found = vmap(acts, randomness="different")(parameters, buffers)
        for number, policy in enumerate(policies):
            alone = policy(state.clone())["action"]
            assert torch.equal(found[0][number], alone["discrete"])
            assert torch.allclose(found[1][number], alone["continuous"])
    same = {key: value[:1].expand_as(value) for key, value in parameters.items()}
    _, u = vmap(acts, randomness="different")(same, buffers)
    assert not torch.equal(u[0], u[1])
    _, u = vmap(acts, randomness="same")(same, buffers)
    assert torch.equal(u[0], u[1])


def test_losses_side_by_side_by_vmap():
    policy, critic = networks(Line())
    data = rolled(Line(), policy, discount=0.99)

    def moved(value):
        return value + 0.1 * torch.randn_like(value) if value.is_floating_point() else value

    def value_of(name):
        loss = HPOLoss(policy, critic)
        loss.make_value_estimator(gamma=0.99)
        own = TensorDict.from_module(loss).select(f"{name}_network_params").data
        members = torch.stack([own, own.apply(moved)])

        def value(own):
            with own.to_module(loss):
                return total(loss(data))

        return value, members

    value, members = value_of("critic")
    refused(lambda: vmap(value)(members), "vmap", "loss.advantages(data)")
    data.update(HPOLoss(policy, critic).advantages(data).select("advantage", "value_target"))
    for name in ("actor", "critic"):
        value, members = value_of(name)
        found = vmap(value)(members)
        assert torch.allclose(found, torch.stack([value(one) for one in members.unbind(0)]))
        assert found[0] != found[1]
    loss = HPOLoss(policy, critic)
    loss.make_value_estimator(gamma=0.99)
    everything = torch.stack([TensorDict.from_module(loss).data] * 2)

    def with_buffers(own):
        with own.to_module(loss):
            return total(loss(data))

    refused(lambda: vmap(with_buffers)(everything), "discount", "from_module(loss).select")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_policy_acts_alike():
    policy, _ = networks(Line())
    state = Line().reset().select("observation")
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        found = torch.compile(policy, backend="eager")(state.clone())["action"]
        alone = policy(state.clone())["action"]
    assert torch.equal(found["discrete"], alone["discrete"])
    assert torch.allclose(found["continuous"], alone["continuous"])
