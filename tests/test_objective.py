"""What is trained is what is reported: average reward, certified; no gap of two objectives."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from shrunk import TINY
from test_gradients import forced, randomise
from test_package import PROBLEMS, ROOT
from test_report import write_run
from tiny_problems import DOUBLE, gradient
from torch import nn
from torchrl.modules import ValueOperator

from hpo_torchrl.algorithms import DDPG, HPO, PPO
from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.core.objective import OBJECTIVES
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.envs import DifferentiableEnv, ReplicatedEnv
from hpo_torchrl.experiments import build
from hpo_torchrl.experiments.build import build_tests
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.experiments.run import in_short, make_trainer
from hpo_torchrl.modules import HybridNetwork, HybridPolicy, make_value_network, replicate
from hpo_torchrl.objectives import HPOLoss
from hpo_torchrl.problems import InventoryEnv, StorageEnv, SwitchedLQREnv
from hpo_torchrl.reporting import format_seeds, format_summary
from hpo_torchrl.reporting.groups import group_runs
from hpo_torchrl.reporting.runs import read_runs
from hpo_torchrl.training import CostEstimate, Evaluation

# -- a problem that never ends, and whose every expectation is a finite sum -----------------------

CYCLE, DIM = 3, 2
_draw = {"generator": torch.Generator().manual_seed(3), "dtype": DOUBLE}
A, B = 0.7 * torch.randn(2, DIM, DIM, **_draw), 0.8 * torch.randn(2, DIM, 1, **_draw)
HOME = torch.randn(DIM, **_draw)


class Returning(DifferentiableEnv):
    """Every third step leads back to one state, whatever was done, and so on for ever.

    The long-run average is a third of the return of such a cycle, and an endless run spends a
    third of its time in each of the three phases.
    """

    def __init__(self, starts, batch_size=None):
        self.starts = starts
        sizes = {"state_shapes": {"x": (DIM,), "phase": (CYCLE,)}, "observation_dim": DIM + CYCLE}
        spaces = {"num_discrete": 2, "continuous_dim": 1, "noise_shape": (1,), "dtype": DOUBLE}
        super().__init__(**sizes, **spaces, batch_size=len(starts["x"]), seed=0)

    def dynamics(self, state, action, noise):
        x, u, d = state["x"], action["continuous"], action["discrete"]
        moved = (A[d] @ x.unsqueeze(-1) + B[d] @ u.unsqueeze(-1)).squeeze(-1) + 0.4 * x.sin()
        reward = 0.3 * (x.sum(-1) * u.sum(-1)).tanh() - moved.square().sum(-1) - 0.2 * d
        back = state["phase"][..., -1:] > 0.5
        return {
            "x": torch.where(back, HOME, moved),
            "phase": state["phase"].roll(1, -1),
        }, reward - 0.3 * u.square().sum(-1)

    def observe(self, state):
        return torch.cat([state["x"], state["phase"]], -1)

    def initial_state(self):
        return dict(self.starts)

    def draw_noise(self, num_steps, state):
        return torch.zeros(*self.batch_size, num_steps, 1, dtype=DOUBLE)


def phase(k, *shape):
    return torch.eye(CYCLE, dtype=DOUBLE)[k].expand(*shape, CYCLE)


def walk(network, x, k):
    """Both discrete actions at ``x`` in phase k: probabilities, next states, rewards."""
    state = {"x": x, "phase": phase(k, *x.shape[:-1])}
    logits, loc, _ = network(torch.cat([*state.values()], -1))
    for d, p in enumerate(logits.softmax(-1).unbind(-1)):
        action = {"discrete": torch.full(x.shape[:-1], d), "continuous": loc[..., d, :]}
        after, reward = Returning.dynamics(None, state, action, None)
        yield p, after["x"], reward


def worth(network, x, k, rho=0.0):
    """Expected rewards less rho from phase k to the end of the cycle: the differential value."""
    if k == CYCLE:
        return torch.zeros(x.shape[:-1], dtype=DOUBLE)
    return sum(p * (r - rho + worth(network, y, k + 1, rho)) for p, y, r in walk(network, x, k))


class Exact(nn.Module):
    """The differential value of a policy, at any level, and with an error if asked for."""

    def __init__(self, network, rho, level=0.0, wrong=0.0):
        super().__init__()
        self.network, self.rho = copy.deepcopy(network).requires_grad_(False), rho
        self.level, self.wrong = nn.Parameter(torch.tensor([level], dtype=DOUBLE)), wrong

    def forward(self, observation):
        x, k = observation.split([DIM, CYCLE], -1)
        values = [worth(self.network, x, place, self.rho) for place in range(CYCLE)]
        value = (torch.stack(values, -1) * k).sum(-1, keepdim=True)
        return value + self.level + self.wrong * x.sum(-1, keepdim=True).tanh()


class Chain:
    """The problem with a random policy: the exact gradient of its average, and the loss's."""

    def __init__(self):
        torch.manual_seed(0)
        network = HybridNetwork(DIM + CYCLE, 2, 1, hidden=(3,), dtype=DOUBLE, activation="tanh")
        self.policy = HybridPolicy(randomise(network))
        self.parameters = list(self.policy.parameters())
        average = worth(network, HOME, 0) / CYCLE
        self.rho, self.exact = float(average.detach()), gradient(average, self.parameters)
        rows = [(HOME, 0, 1.0 / CYCLE)]  # states of an endless run, with their shares
        for x, k, share in rows:
            if k + 1 < CYCLE:
                rows += [(y, k + 1, share * p.item()) for p, y, _ in walk(network, x, k)]
        self.shares = torch.tensor([share for *_, share in rows], dtype=DOUBLE)
        self.x = torch.stack([x for x, *_ in rows]).detach()
        self.k = torch.cat([phase(k, 1) for _, k, _ in rows])

    def starts(self, copies):
        return {"x": self.x.repeat(copies, 1), "phase": self.k.repeat(copies, 1)}

    def critic(self, **how):
        return ValueOperator(Exact(self.policy.network, self.rho, **how), in_keys=["observation"])

    def expected(self, steps, critic, lmbda=1.0, **terms):
        """Expectation of minus the loss's gradient over all windows of the endless run."""
        options = torch.cartesian_prod(*[torch.arange(2)] * steps).reshape(-1, steps)
        env = Returning(self.starts(len(options)))
        with forced(options.repeat_interleave(len(self.x), 0)):
            batch = differentiable_rollout(env, self.policy, steps)
        batch.set(("next", "reward"), batch["next", "reward"] - self.rho)
        loss = HPOLoss(self.policy, critic, clip_epsilon=None, reduction="none", **terms)
        loss.make_value_estimator(gamma=1.0, **({} if critic is None else {"lmbda": lmbda}))
        chance = batch["discrete_log_prob"].sum(-1).exp().detach() * self.shares.repeat(
            len(options)
        )
        assert float(chance.sum()) == pytest.approx(1.0)
        found = loss(batch)
        total = (found["loss_pathwise"] + found["loss_objective"]).mean(-1)
        return -gradient((chance * total).sum(), self.parameters)

    def error(self, *how, **also):
        return float((self.expected(*how, **also) - self.exact).norm() / self.exact.norm())


@pytest.fixture(scope="module")
def chain():
    return Chain()


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("lmbda", [0.0, 0.6, 1.0])
def test_gradient_is_that_of_the_long_run_average(chain, steps, lmbda):
    """With the differential values, at any level, for every window and lambda."""
    assert chain.exact.abs().min() > 1e-7
    assert chain.error(steps, chain.critic(level=5.0), lmbda) < 1e-9


def test_every_part_of_the_gradient_is_at_stake(chain):
    assert chain.error(4, chain.critic(), cross_term=False) > 0.01
    for name in ("pathwise_term", "score_function_term"):
        with pytest.MonkeyPatch.context() as patch:
            own = getattr(HPOLoss, name)
            patch.setattr(HPOLoss, name, lambda *a, own=own: own(*a) * 0.5)
            assert chain.error(4, chain.critic()) > 0.01


def test_what_a_window_cuts_off_falls_with_its_length(chain):
    """Without a critic, or with a wrong one and lambda 1, as 1 / T; with lambda 0 it stays."""
    for how in ((None,), (chain.critic(wrong=0.5),)):
        short, long = (chain.error(steps, *how) * steps for steps in (CYCLE, CYCLE + 3))
        assert short == pytest.approx(long, rel=1e-6)
        assert short > 0.01
    short, long = (chain.error(T, chain.critic(wrong=0.5), 0.0) for T in (CYCLE, CYCLE + 3))
    assert long > 0.7 * short > 0.01  # 1 / T would be a half


def hpo(chain, critic, **settings):
    policy = copy.deepcopy(chain.policy)
    settings = {"unroll_length": 2, "reset_at_each_iter": True, "seed": 0} | settings
    return HPO(Returning(chain.starts(8)), policy, critic, **settings)


def test_rewards_are_centred_at_the_average_from_any_states(chain):
    """Two steps of three: the mean reward of such states is another number."""
    decided = copy.deepcopy(chain)
    with torch.no_grad():  # one discrete action for sure: no noise in a temporal difference
        for name, weight in decided.policy.network.named_parameters():
            if name.startswith("discrete"):
                weight.zero_()
                if name.endswith("bias") and weight.shape == (2,):
                    weight.copy_(torch.tensor([300.0, -300.0]))
        rho = worth(decided.policy.network, HOME, 0).item() / CYCLE
    decided.rho = rho
    learner = hpo(decided, decided.critic(level=-7.0))
    assert (learner.objective, learner.discount) == ("average", 1.0)
    batch = learner.collector.collect()
    reward = batch["next", "reward"].detach()
    assert abs(float(reward.mean()) - rho) > 0.01
    assert float(learner._average_reward(batch, reward)) == pytest.approx(rho, abs=1e-9)


@pytest.mark.parametrize("kind", [HPO, PPO])
def test_differential_values_keep_their_level_for_each_seed(kind):
    def parts(seed):
        torch.manual_seed(seed)
        env = InventoryEnv(batch_size=8, initial_state="random", seed=seed)
        noise = {"scale": 0.3} if kind is PPO else {}
        critic = make_value_network(env, hidden=[4])
        with torch.no_grad():
            list(critic.parameters())[-1].fill_(30.0 * (1 + seed))
        return env, HybridPolicy.for_env(env, hidden=[4], **noise), critic

    envs, policies, critics = zip(*map(parts, (0, 1)), strict=True)
    together = ReplicatedEnv(envs), replicate(policies), replicate(critics)
    for objective, pinned in (("average", True), ("discounted", False)):
        learner = kind(*together, seed=[0, 1], unroll_length=5, objective=objective)
        batch = learner.collector.collect()
        _, data = learner.prepare(batch)
        for place in (batch, data):
            levels = place["value_target"].flatten(1).mean(1)
            assert bool((levels.abs() < 1e-3).all()) == pinned
        assert data["advantage"].flatten(1).mean(1).abs().max() < 1.0


def test_a_learned_critic_of_actions_knows_no_level():
    env = InventoryEnv(batch_size=8, initial_state="random", seed=0)
    policy = HybridPolicy.for_env(env, hidden=[4], scale=0.1)
    average = DDPG(env, policy, make_value_network(env, hidden=[4]), unroll_length=5, seed=0)
    assert (average.loss.centered, average.loss.gamma) == (True, 1.0)
    batch = average.collector.collect().reshape(-1)
    raised = batch.clone()
    raised["next", "reward"] += 100.0
    low, high = (float(average.loss(each)["loss_qvalue"].detach()) for each in (batch, raised))
    assert low == pytest.approx(high, rel=1e-3)
    discounted = DDPG(
        env, policy, make_value_network(env, hidden=[4]), unroll_length=5, discount=0.9, seed=0
    )
    assert not discounted.loss.centered


# -- the word -------------------------------------------------------------------------------------


def small(env, **settings):
    critic = make_value_network(env, hidden=[4])
    return HPO(env, HybridPolicy.for_env(env, hidden=[4]), critic, unroll_length=4, **settings)


def lqr(**changes):
    return SwitchedLQREnv.from_recipe(2, 2, **{"horizon": 4, "batch_size": 8, "seed": 0} | changes)


class Ending(DifferentiableEnv):
    """Costs 1, 2, 3, ...; ends by itself at ``end``, by its horizon, or never."""

    def __init__(self, end=None, **arguments):
        self.end = end
        sizes = {"state_shapes": {"time": (1,)}, "observation_dim": 1, "noise_shape": (1,)}
        arguments = {"batch_size": 4, "seed": 0} | arguments
        super().__init__(num_discrete=2, continuous_dim=1, **sizes, **arguments)

    def dynamics(self, state, action, noise):
        time = state["time"] + 1.0
        return {"time": time}, -time.squeeze(-1) + 0.0 * action["continuous"].squeeze(-1)

    def observe(self, state):
        return state["time"]

    def initial_state(self):
        return {"time": torch.zeros(*self.batch_size, 1)}

    def draw_noise(self, num_steps, state):
        return torch.zeros(*self.batch_size, num_steps, 1)


class EndingByItself(Ending):
    def advance(self, state, action, noise):
        after, reward, _ = super().advance(state, action, noise)
        return after, reward, after["time"] >= self.end


@pytest.mark.parametrize(
    ("make", "given", "expected"),
    [
        (InventoryEnv, {}, ("average", 1.0, True)),
        (InventoryEnv, {"discount": 0.95}, ("discounted", 0.95, True)),
        (InventoryEnv, {"objective": "average", "discount": 0.95}, ("average", 0.95, True)),
        (partial(InventoryEnv, 5), {}, ("average", 0.99, True)),
        (partial(StorageEnv, 6), {}, ("average", 1.0, True)),  # no power is unlimited
        (InventoryEnv, {"objective": "discounted"}, ("discounted", 0.99, True)),
        (InventoryEnv, {"discount": 1.0}, ("average", 1.0, True)),
        (lqr, {}, ("return", 1.0, False)),
        (lqr, {"discount": 0.9}, ("discounted", 0.9, False)),
        (lambda: EndingByItself(3), {}, ("discounted", 0.99, False)),
        (lambda: EndingByItself(3), {"objective": "return"}, ("return", 1.0, False)),
        (lambda: EndingByItself(3), {"discount": 1.0}, ("return", 1.0, False)),
        (lambda: Ending(horizon=5, horizon_terminates=False), {}, ("average", 1.0, True)),
    ],
)
def test_the_objective_of_a_training(make, given, expected):
    sized = make in (InventoryEnv, lqr) or isinstance(make, partial)
    made = small(make(**({"batch_size": 4} if sized else {})), **given)
    assert (made.objective, made.discount, made.centers_rewards) == expected


@pytest.mark.parametrize(
    ("make", "given", "words"),
    [
        (InventoryEnv, {"objective": "discounted", "discount": 1.0}, "'discounted' and discount=1"),
        (InventoryEnv, {"objective": "return"}, "no episode of the environment ever ends"),
        (InventoryEnv, {"objective": "mean"}, "objective must be one of"),
        (lqr, {"objective": "return", "discount": 0.9}, "'return' and discount=0.9"),
        (lqr, {"objective": "average"}, "ends for good after 4 steps; choose 'return'"),
    ],
)
def test_objectives_that_do_not_fit(make, given, words):
    with pytest.raises(ValueError, match=words):
        small(make(batch_size=4), **given)


def test_an_average_over_episodes_that_end_is_refused_when_one_does():
    learner = small(EndingByItself(3), objective="average")
    with pytest.raises(ValueError, match="an episode terminated: choose objective='return'"):
        learner.iterate()


# -- what a test measures -----------------------------------------------------------------------


def measured(env, **how):
    test = Evaluation(env, seed=0, **how)
    return test.objective, test.run(HybridPolicy.for_env(env, hidden=[2])).mean


def test_a_test_measures_what_it_says():
    weights = 0.5 ** np.arange(40)
    falling = (weights * np.arange(1, 41)).sum() / weights.sum()
    half = {"discount": 0.5, "num_steps": 40}
    assert measured(Ending(), num_steps=70, skip=60) == ("average", 65.5)
    assert measured(Ending(), num_steps=4) == ("window", 2.5)
    assert measured(Ending(), **half) == ("discounted", pytest.approx(falling))
    assert measured(Ending(horizon=4), num_steps=8) == ("return", 2.5)
    assert measured(Ending(horizon=4), num_steps=6) == ("window", pytest.approx(13 / 6))
    # Only the first episode counts, where a second one would start.
    three = (1 + 2 * 0.5 + 3 * 0.25) / weights.sum()
    assert measured(EndingByItself(3), **half) == ("discounted", pytest.approx(three))
    assert measured(Ending(horizon=3), **half) == ("discounted", pytest.approx(three))
    assert measured(EndingByItself(60), num_steps=99, objective="return") == ("return", 1830.0)


@pytest.mark.parametrize(
    ("env", "how", "words"),
    [
        (Ending(horizon=4), {"num_steps": 8, "objective": "average"}, "no episode that ends"),
        (Ending(), {"num_steps": 8, "objective": "return"}, "needs skip=0 and whole episodes"),
        (Ending(), {"num_steps": 99, "skip": 9, "discount": 0.5}, "needs skip=0"),
        (Ending(), {"num_steps": 99, "discount": 0.99}, "num_steps must be at least 459"),
        (Ending(), {"num_steps": 9, "objective": "average", "discount": 0.9}, "leave one of the"),
    ],
)
def test_a_test_refuses_what_its_steps_cannot_measure(env, how, words):
    with pytest.raises(ValueError, match=words):
        Evaluation(env, seed=0, **how)


# -- gaps -----------------------------------------------------------------------------------------

KNOWN = {"optimal_cost": 0.5, "lower_bound": 0.4, "upper_bound": 0.6, "baselines": {"rule": 0.7}}


def check(trainer, reference, aim):
    """Hold every place that could print a gap against the three objectives."""
    test, run = trainer.tests[trainer.primary], trainer.algorithm
    trained = (getattr(run, "objective", None), getattr(run, "discount", 1.0))
    fit = aim == (test.objective, test.discount) and trained in (aim, (None, 1.0))
    summary = trainer.summary()
    text = "\n".join([format_summary(summary), format_seeds([summary] * 2), in_short(summary)])
    assert (summary["gap"] is not None) == ("%" in text) == fit
    for key in ("optimal_cost", "lower_bound", "upper_bound", "gap_to_lower_bound"):
        assert (summary[key] is not None) == fit
    assert bool(summary["baseline_costs"]) == fit
    assert ("none: the " in text) == (summary["no_gap"] is not None) == (not fit)
    return fit


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "configs/env").glob("*.yaml"))
)
def test_no_gap_compares_two_objectives(name, tmp_path, monkeypatch):
    """All shipped problems and tests, what they are trained for, tested on and best at."""
    monkeypatch.chdir(tmp_path)
    np.save("demand.npy", np.ones((4, 30, 1)))
    monkeypatch.setattr(Evaluation, "run", lambda self, policy: CostEstimate(1.0, 0.1))
    settings = [f"env={name}", *PROBLEMS.get(name, []), *TINY, "reference=none"]
    settings = [text for text in settings if "traces" not in name or "batch_size" not in text]
    config = compose_config(settings)
    build_env = functools.cache(lambda changes: own_build_env(config, **json.loads(changes)))
    own_build_env = build.build_env
    monkeypatch.setattr(build, "build_env", lambda _, **changes: build_env(json.dumps(changes)))
    trainer = make_trainer(config, tmp_path, progress=False, logs=False)
    kind = type(trainer.tests[trainer.primary].env)
    monkeypatch.setattr(kind, "describe", lambda *a: {}, raising=False)
    run, tests, fits = trainer.algorithm, config["evaluation"]["tests"], 0
    aims = [("average", 1.0), ("discounted", 0.9), ("discounted", 0.8), ("return", 1.0)]
    for primary, trained, word in itertools.product(tests, aims, (None, *OBJECTIVES, "window")):
        run.objective, run.discount = trained
        changes = {primary: {**tests[primary], **({"objective": word} if word else {})}}
        given = {**config["evaluation"], "tests": {**tests, **changes}}
        try:
            built = build_tests({**config, "evaluation": given}, run=run)[0]
        except ValueError:  # the steps of the test cannot measure that
            continue
        trainer.tests, trainer.primary = {primary: built[primary]}, primary
        for aim in [*aims, (None, 1.0)]:
            reference = Reference(**KNOWN, objective=aim[0], discount=aim[1])
            trainer.reference = reference.compared(built[primary], run)
            fits += check(trainer, reference, aim)
    assert fits >= 2  # some are shown


def test_a_gap_that_should_not_be_is_found(tmp_path, monkeypatch):
    """The check above, with the place switched off that leaves such costs out."""
    monkeypatch.setattr(Evaluation, "run", lambda self, policy: CostEstimate(1.0, 0.1))
    words = [*TINY, "reference=none", "evaluation.primary=protocol"]
    trainer = make_trainer(compose_config(words), tmp_path, progress=False, logs=False)
    trainer.reference = reference = Reference(**KNOWN, objective="average")
    monkeypatch.setattr(type(trainer.tests["protocol"].env), "describe", lambda *a: {})
    monkeypatch.setattr(Reference, "compared", lambda self, *others: self)
    with pytest.raises(AssertionError):
        check(trainer, reference, ("average", 1.0))


def test_references_say_what_they_are_of():
    long = Evaluation(InventoryEnv(batch_size=4), num_steps=30, skip=10, seed=0)
    assert long.reference().objective == "average"
    assert Evaluation(lqr(), num_steps=4, seed=0).reference().objective == "return"
    window = Evaluation(InventoryEnv(batch_size=4), num_steps=30, seed=0)
    compared = window.reference().compared(window)
    assert compared.no_gap == (
        "the test measures a window of 30 periods, the optimum (37.0644) is of the long-run average"
    )
    assert compared.optimal_cost is None
    assert compared.details == {"optimal_s": 26, "optimal_S": 62}


def test_a_report_keeps_objectives_apart(tmp_path):
    """Two runs of one problem: the optimum of the one is no reference for the other."""
    aims = {"long": ("average", 1.0), "short": ("discounted", 0.9), "open": None}
    for seed, (name, aim) in enumerate(aims.items()):
        folder = write_run(tmp_path / name, seed=seed, finished=aim is not None)
        if aim is not None:
            summary = json.loads((folder / "summary.json").read_text())
            summary |= dict(zip(("objective", "discount"), aim, strict=True))
            summary |= dict(zip(("test_objective", "test_discount"), aim, strict=True))
            if name == "short":
                summary["optimal_cost"] = None
            (folder / "summary.json").write_text(json.dumps(summary))
    runs = group_runs(read_runs([tmp_path]), target=0.1).runs.set_index("seed")
    assert not np.isnan(runs.loc[0, "gap"])
    assert np.isnan(runs.loc[1, "gap"])
    assert runs["problem"].nunique() == 2
    assert runs.loc[2, "problem"] in set(runs.loc[[0, 1], "problem"])
