"""Every estimator that claims to be unbiased, against exact gradients of random tiny problems.

``python tests/test_certification.py`` prints the z-scores of every estimator and planted fault.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from tiny_problems import PROBLEMS, gradient, returns

from hpo_torchrl.collectors import (
    DifferentiableCollector,
    branched_returns,
    differentiable_rollout,
    straight_through_rollout,
)
from hpo_torchrl.diagnostics import ESTIMATORS, GradientSampler
from hpo_torchrl.modules import make_value_network
from hpo_torchrl.objectives import HPOLoss

# 100,000 rollouts for every estimator in a test, and twice as many for the report.
BATCHES, ROLLOUTS, GROUPS = 40, 2500, 20
FORCED = 0.4  # the weight that the adaptive cross term is given


def mean_return_of_the_option(batch):
    """What a baseline learns that sees the step and the option taken: returns ``(B, T)``."""
    value, taken = returns(batch), batch["action", "discrete"]
    means = torch.zeros_like(value)
    for option in taken.unique():
        here = taken == option
        mean = (value * here).sum(0) / here.sum(0).clamp_min(1)
        means = torch.where(here, mean, means)
    return means


class Bench:
    """Surrogates, by estimator, whose gradient is one batch's estimate of the exact gradient."""

    def __init__(self, name):
        self.problem = problem = PROBLEMS[name]()
        self.env = problem.environment(ROLLOUTS // problem.starts)
        self.cut = problem.environment(ROLLOUTS // problem.starts, cut=True, seed=1)
        self.steps, self.policy, self.losses = problem.steps, problem.policy, {}

    def loss(self, **kwargs):
        key = tuple(kwargs.items())
        if key not in self.losses:
            self.losses[key] = self._loss(**kwargs)
        return self.losses[key]

    def _loss(self, *, critic=False, **kwargs):
        network = None
        if critic:
            network = make_value_network(self.env, hidden=(3,))
            generator = torch.Generator().manual_seed(7)
            for parameter in network.parameters():
                parameter.data.normal_(generator=generator)
        kwargs = {"clip_epsilon": None, "entropy_coeff": None, "critic_coeff": None} | kwargs
        loss = HPOLoss(self.policy, network, **kwargs)
        loss.make_value_estimator(gamma=1.0, **({"lmbda": 1.0} if critic else {}))
        if loss.cross_term_weight is not None:
            loss.cross_term_weight.decay = 1.0  # nothing that it observes counts
            loss.cross_term_weight.signal.fill_(FORCED)
            loss.cross_term_weight.power.fill_(1.0)
        return loss

    def mixed(self, batch, advantage=None, **loss):
        if advantage is not None:
            batch = batch.copy().set("advantage", advantage.unsqueeze(-1))
        terms = self.loss(**loss)(batch)
        return -self.steps * (terms["loss_pathwise"] + terms["loss_objective"])

    def expected_choice(self, batch, noise):
        value = branched_returns(self.env, self.policy, batch, noise)
        return self.mixed(batch.copy().set("action_value", value))

    def score_function(self, batch):
        """Joint log-probability of option and Gaussian action, on data without a graph."""
        held = batch.detach()
        dist = self.policy.distribution(held["observation"])
        return (dist.log_prob(held["action"]) * returns(held)).sum(-1).mean()

    def straight_through(self, noise):
        batch = straight_through_rollout(self.env, self.policy, self.steps, noise=noise)
        return batch["next", "reward"].sum((1, 2)).mean()

    def surrogates(self, names):
        """Draw a batch and yield the surrogates on it."""
        noise = self.env.sample_noise(self.steps)
        batch = differentiable_rollout(self.env, self.policy, self.steps, noise=noise)
        made = {
            "mixed": lambda: self.mixed(batch),
            "mixed, critic": lambda: self.mixed(batch, critic=True),
            "mixed, leave-one-out": lambda: self.mixed(batch, baseline="leave_one_out"),
            "mixed, all discrete actions": lambda: self.expected_choice(batch, noise),
            "score function only": lambda: self.score_function(batch),
            "no cross term": lambda: self.mixed(batch, cross_term=False),
            "state detached": lambda: self.mixed(
                differentiable_rollout(self.cut, self.policy, self.steps, noise=noise)
            ),
            "return one step late": lambda: self.mixed(
                batch, torch.nn.functional.pad(returns(batch)[:, 1:], (0, 1))
            ),
            "advantage of wrong sign": lambda: self.mixed(batch, -returns(batch)),
            "baseline that sees d": lambda: self.mixed(
                batch, returns(batch) - mean_return_of_the_option(batch)
            ),
            "advantage on its own scale": lambda: self.mixed(
                batch, returns(batch) / returns(batch).std()
            ),
            "straight-through": lambda: self.straight_through(noise),
            "weighted cross term": lambda: self.mixed(batch, cross_term="adaptive"),
        }
        for name in names:
            yield name, made[name]()

    def draws(self, names, batches):
        """Estimates by estimator, ``(batches, parameters)``, all from the same batches."""
        parameters, draws = list(self.problem.named.values()), defaultdict(list)
        for _ in range(batches):
            for name, surrogate in self.surrogates(names):
                draws[name].append(gradient(surrogate, parameters))
        return {name: torch.stack(rows) for name, rows in draws.items()}


def z_scores(draws, exact):
    """Z-scores of the mean of all batches, and of the means of ``GROUPS`` groups of batches.

    The coordinates of one problem move together, so that the root mean square over them of a
    single mean strays far from 1; over many groups' means it is stable. Coordinates that no draw
    reaches are left out.
    """
    error = draws.std(0)
    live = error > 0
    away, error = (draws - exact)[:, live], error[live]
    grouped = away.unflatten(0, (GROUPS, -1)).mean(1) / error * (len(away) / GROUPS) ** 0.5
    return away.mean(0) / error * len(away) ** 0.5, grouped


SMOOTH = ["linear, 2 modes", "curved, 3 modes", "curved, noise"]
STOCKS = ["inventory, L=1", "inventory, L=2, n=2", "inventory, L=0, n=2"]
GAUSSIAN = [name for name in PROBLEMS if name.startswith("gaussian")]
UNBIASED = {
    "mixed": list(PROBLEMS),
    "mixed, critic": [*SMOOTH, *STOCKS, *GAUSSIAN[:2]],
    "mixed, leave-one-out": [*SMOOTH, *STOCKS, *GAUSSIAN[1:3]],
    "mixed, all discrete actions": [*SMOOTH, *STOCKS, *GAUSSIAN[2:4]],
    "score function only": GAUSSIAN,
}
FAULTS = [
    "no cross term",
    "state detached",
    "return one step late",
    "advantage of wrong sign",
    "baseline that sees d",
    "advantage on its own scale",
    "straight-through",
    "weighted cross term",
]
FAULTY = ["linear, 2 modes", "curved, noise", "inventory, L=0, n=2", "gaussian, linear, u of 2"]


def certify(name, batches=BATCHES):
    """Z-scores by estimator on a problem."""
    torch.manual_seed(0)
    bench = Bench(name)
    exact = bench.problem.flat(bench.problem.exact().total)
    claimed = [estimator for estimator, names in UNBIASED.items() if name in names]
    draws = bench.draws(claimed, batches)
    for rows in draws.values():  # an action that the environment ignores has no gradient at all
        assert torch.equal((rows == 0).all(0), exact == 0)
    return {estimator: z_scores(rows, exact) for estimator, rows in draws.items()}


def expose(name, batches=BATCHES):
    """Z-scores by fault on a problem; of the weighted cross term also around its own limit."""
    torch.manual_seed(0)
    bench = Bench(name)
    problem, exact = bench.problem, bench.problem.exact()
    total, cross = problem.flat(exact.total), problem.flat(exact.cross)
    draws = bench.draws(FAULTS, batches)
    found = {fault: z_scores(rows, total)[0].abs().max() for fault, rows in draws.items()}
    # The score function alone may be normalised as one likes; where it meets the pathwise term,
    # in the parameters of the continuous action, scales must agree.
    steers = torch.cat(
        [torch.full((p.numel(),), ".discrete." in key) for key, p in problem.named.items()]
    )
    scaled = "advantage on its own scale"
    found[scaled] = z_scores(draws[scaled][:, ~steers], total[~steers])[0].abs().max()
    limit = total - (1.0 - FORCED) * cross
    return found, z_scores(draws["weighted cross term"], limit)


@pytest.mark.parametrize("name", PROBLEMS)
def test_estimators_are_unbiased(name):
    for estimator, (z, grouped) in certify(name).items():
        assert z.abs().max() < 4.5, estimator
        assert 0.7 < grouped.square().mean().sqrt() < 1.3, estimator


REGISTERED = ["linear, 2 modes", "curved, noise", "inventory, L=0, n=2", "gaussian, curved"]


@pytest.mark.parametrize("name", REGISTERED)
def test_registered_estimators_are_unbiased(name):
    """Whatever the registry calls free of bias, as ``hpo-gradients`` draws it."""
    torch.manual_seed(0)
    problem = PROBLEMS[name]()
    env = problem.environment(1000 // problem.starts)
    frames = env.batch_size.numel() * problem.steps
    collector = DifferentiableCollector(
        env, problem.policy, frames_per_batch=frames, reset_at_each_iter=True
    )
    sampler, exact = GradientSampler(collector), problem.exact().total
    groups = problem.policy.parameter_groups()
    target = torch.cat([exact[key].flatten() for named in groups.values() for key in named])
    certified = [
        known for known in ESTIMATORS if sampler.describe(known).whole
        and sampler.describe(known).bias == "none"
    ]  # fmt: skip
    assert "mixed" in certified
    draws = defaultdict(list)
    for _ in range(40):
        for known, found in sampler.sample(certified).items():
            draws[known].append(problem.steps * torch.cat([found[group] for group in groups]))
    for known, rows in draws.items():
        rows = torch.stack(rows)
        assert z_scores(rows, target)[0].abs().max() < 4.5, known
        assert torch.equal((rows == 0).all(0), target == 0), known


@pytest.mark.parametrize("name", FAULTY)
def test_faults_are_exposed(name):
    found, (z, _) = expose(name)
    for fault, size in found.items():
        assert size > 20.0, fault
    assert z.abs().max() < 4.5  # the weighted cross term lacks (1 - w) of it, and nothing else


@pytest.mark.parametrize("name", GAUSSIAN)
def test_quadratures_have_converged(name):
    problem = PROBLEMS[name]()
    fine, coarse = (problem.flat(problem.exact(num_nodes=nodes).total) for nodes in (10, 8))
    assert (fine - coarse).abs().max() < 1e-4 * fine.norm()


def report():
    """Print the z-scores that the tests bound."""
    table = defaultdict(list)
    for name in PROBLEMS:
        for estimator, scores in certify(name, 2 * BATCHES).items():
            table[estimator].append((name, *scores))
    print(f"{2 * BATCHES * ROLLOUTS:,} rollouts for each problem and estimator\n")
    print(f"{'estimator':26}  problems  coordinates  max |z|  rms z  rms z of groups (range)")
    exposed = {name: expose(name, 2 * BATCHES) for name in FAULTY}
    table["weighted, around its limit"] = [(name, *exposed[name][1]) for name in FAULTY]
    for estimator, rows in table.items():
        z = torch.cat([row[1] for row in rows])
        rms = [row[2].square().mean().sqrt().item() for row in rows]
        print(
            f"{estimator:26}  {len(rows):8}  {len(z):11}  {z.abs().max():7.2f}  "
            f"{z.square().mean().sqrt():5.2f}  {min(rms):.2f} to {max(rms):.2f}"
        )
    print(f"\n{'max |z| of a fault':26}  " + "  ".join(f"{name:>24}" for name in FAULTY))
    for fault in FAULTS:
        sizes = (exposed[name][0][fault] for name in FAULTY)
        print(f"{fault:26}  " + "  ".join(f"{size:24.0f}" for size in sizes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    report()
