"""NaN and infinity planted in training runs: each run must stop in that very update and say where.

    python -m benchmarks.faults.nans [--seed 0]

A run has four updates with a test and a checkpoint after each. In one of them, drawn at random, one
entry of a tensor becomes NaN or infinite. The run must end in that update by a ``NonFiniteError``
whose message names the tensor, must leave no summary, and every checkpoint that it leaves must be
whole, finite and of an earlier update.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpo_torchrl.algorithms import DDPG, HPO, PPO, GumbelSoftmax, NonFiniteError, Pathwise
from hpo_torchrl.envs import ReplicatedEnv
from hpo_torchrl.modules import HybridPolicy, make_value_network, replicate
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.training import Evaluation, Trainer

UPDATES, STEPS, SEEDS = 4, 5, (3, 8)
NAN, INF = math.nan, math.inf
ALGORITHMS: dict[str, Any] = {
    "hpo": HPO,
    "ppo": PPO,
    "ddpg": DDPG,
    "pathwise": Pathwise,
    "gumbel": GumbelSoftmax,
}


class Case(NamedTuple):
    """What is planted, in which run, and at which update: ``None`` is a random one."""

    kind: str
    value: float = NAN
    algorithm: str = "hpo"
    env: str = "inventory"
    many: bool = False
    update: int | None = None


CASES = [
    Case("reward"),
    Case("reward", INF, "ppo", "lqr"),
    Case("reward", -INF, "pathwise", update=UPDATES),
    Case("reward", NAN, "hpo", "lqr", many=True),
    Case("state"),
    Case("state", INF, "hpo", "lqr"),
    Case("state", NAN, "ppo", "inventory"),
    Case("state", NAN, "gumbel", update=UPDATES),
    Case("state", NAN, "ppo", "lqr", many=True),
    Case("last state", NAN, "hpo", update=UPDATES),
    Case("observation", NAN, "hpo", "lqr"),
    Case("observation", INF, "pathwise"),
    Case("observation", NAN, "ppo", update=1),
    Case("observation", NAN, "hpo", many=True, update=UPDATES),
    Case("logits"),
    Case("logits", INF, "gumbel", "lqr"),
    Case("logits", NAN, "ppo"),
    Case("loc", INF, "hpo", "lqr"),
    Case("loc", NAN, "ppo"),
    Case("trunk"),
    Case("trunk", INF, "ppo", "lqr", update=1),
    Case("discrete head", NAN, "hpo", "lqr", update=UPDATES),
    Case("discrete head", INF, "ppo"),
    Case("discrete head", NAN, "hpo", many=True),
    Case("continuous head", NAN, "pathwise", "lqr"),
    Case("continuous head", INF, "ddpg"),
    Case("continuous head", NAN, "ppo", many=True, update=UPDATES),
    Case("critic"),
    Case("critic", INF, "ppo", "lqr", many=True),
    Case("gradient", NAN, "gumbel"),
    Case("gradient", INF, "hpo", "lqr", update=UPDATES),
    Case("exp_avg", NAN, "hpo", update=UPDATES),
    Case("exp_avg_sq", INF, "ppo", many=True),
    Case("variance", NAN, "hpo"),
    Case("weight", INF, "ppo", update=UPDATES),
    Case("advantage", NAN, "hpo", update=1),
    Case("test's reward", NAN, "pathwise", update=UPDATES),
    Case("parameter", NAN, "hpo", "inventory", many=True),
    Case("cross-term weight", NAN, update=UPDATES),
    Case("learning rate", 1e30, "pathwise"),
]


def build(case: Case, folder: Path) -> Trainer:
    """Return the trainer of a tiny run."""

    def member(seed: int) -> tuple[Any, Any, Any]:
        torch.manual_seed(seed)
        env: Any
        if case.env == "lqr":
            env = SwitchedLQREnv.from_recipe(3, 2, horizon=2 * STEPS, batch_size=4, seed=seed)
        else:
            env = InventoryEnv(num_items=2, batch_size=4, initial_state="random", seed=seed)
        noisy = case.algorithm in ("ppo", "ddpg")
        policy = HybridPolicy.for_env(
            env, hidden=[8], shared_trunk=case.kind == "trunk", scale=0.3 if noisy else 0.0
        )
        return env, policy, make_value_network(env, hidden=[8])

    members = [member(seed) for seed in (SEEDS if case.many else SEEDS[:1])]
    env, policy, critic = members[0]
    tests = [copy.deepcopy(env) for _ in range(2)]
    if case.many:
        envs, policies, critics = zip(*members, strict=True)
        env, policy, critic = ReplicatedEnv(envs), replicate(policies), replicate(critics)
    own: dict[str, Any] = {"seed": SEEDS if case.many else SEEDS[0], "unroll_length": STEPS}
    if case.algorithm in ("hpo", "ppo"):
        own |= {"epochs": 1, "num_minibatches": 2}
    if case.kind == "cross-term weight":
        own["cross_term"] = "adaptive"
    if case.algorithm == "pathwise":
        own["discrete_action"] = 1
    algorithm = ALGORITHMS[case.algorithm](env, policy, critic, **own)
    short, validation = (Evaluation(test, num_steps=6, seed=0) for test in tests)
    folders = [folder / f"seed={seed}" for seed in SEEDS] if case.many else [folder]
    configs = [{"seed": seed} for seed in SEEDS] if case.many else [{"seed": SEEDS[0]}]
    for one in folders:
        one.mkdir(exist_ok=True)
    return Trainer(
        algorithm,
        num_updates=UPDATES,
        run_dir=folders if case.many else folder,
        config=configs if case.many else configs[0],
        validation=validation,
        tests={"short": short},
        primary="short",
        eval_every=1,
        checkpoint_every=1,
        progress=False,
    )


class Planter:
    """Plants the fault of a case in an update, and knows the name that a message must give it."""

    def __init__(self, case: Case, trainer: Trainer, chance: random.Random) -> None:
        self.case, self.trainer, self.chance = case, trainer, chance
        self.algorithm: Any = trainer.algorithm
        self.seed = chance.randrange(len(SEEDS)) if case.many else None
        self.update = case.update or chance.randint(2, UPDATES)
        self.step = chance.randint(1, STEPS - 1)
        base: Any = self.algorithm.env
        self.env: Any = base.original if case.many else base
        iterate, calls = self.algorithm.iterate, [0]

        def counted() -> Any:
            calls[0] += 1
            if calls[0] != self.update:
                return iterate()
            with self.planted():
                return iterate()

        self.algorithm.iterate = counted

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Plant the fault for the time of an update; what lives on stays."""
        case, hooks = self.case, []
        if case.kind in ("reward", "state", "last state"):
            with self.wrapped(self.env, "dynamics", self.dynamics, every=self.pace()):
                yield
            return
        if case.kind == "observation":
            with self.wrapped(self.env, "observe", self.spoil, every=self.pace()):
                yield
            return
        if case.kind in ("logits", "loc"):
            with self.acting():
                yield
            return
        if case.kind == "advantage":
            with self.wrapped(self.algorithm, "add_advantages", self.advantages, at=0):
                yield
            return
        if case.kind == "test's reward":
            test = self.trainer.validation.env
            dynamics = test.dynamics
            test.dynamics = lambda *given: (lambda s, r: (s, self.spoil(r)))(*dynamics(*given))
        elif case.kind == "parameter":
            self.env.holding_cost.fill_(case.value)
        elif case.kind == "cross-term weight":
            self.algorithm.loss.cross_term_weight.power.fill_(case.value)
        elif case.kind == "learning rate":
            for optimizer in self.algorithm.optimization.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = case.value
        elif case.kind in ("variance", "weight"):
            buffer = getattr(self.algorithm.scaler, case.kind)
            buffer[... if self.seed is None else self.seed] = case.value
        elif case.kind == "gradient":
            hooks.append(self.weight().register_hook(self.spoil))
        elif case.kind.startswith("exp_avg"):
            optimizer = self.algorithm.optimization.optimizers[self.seed or 0]
            state = list(optimizer.state.values())[self.chance.randrange(4)]
            state[case.kind].flatten()[0] = case.value
        else:
            weight = self.weight().data
            weight[(... if self.seed is None else self.seed)].view(-1)[0] = case.value
        yield
        for hook in hooks:
            hook.remove()

    def pace(self) -> int:
        """How often an equation is evaluated in a step."""
        return 2 if self.case.algorithm == "gumbel" and self.case.kind != "observation" else 1

    @contextmanager
    def wrapped(
        self, owner: Any, name: str, change: Callable, at: int | None = None, every: int = 1
    ) -> Iterator[None]:
        """Change what a method returns at one step of the update."""
        method, calls = getattr(owner, name), [0]
        step = self.step if at is None else at
        if self.case.kind == "last state":
            step = STEPS - 1

        def changed(*given: Any) -> Any:
            found = method(*given)
            now = calls[0] // every == step
            calls[0] += 1
            return change(found) if now else found

        owner.__dict__[name] = changed
        try:
            yield
        finally:
            del owner.__dict__[name]

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Change logits or loc of one step, on both ways in which a network is asked."""
        network, calls = self.algorithm.policy.network, [0]
        place = 0 if self.case.kind == "logits" else 1

        def answer(found: Any) -> Any:
            calls[0] += 1
            if calls[0] != self.step:
                return found
            parts = list(found)
            parts[place] = self.spoil(parts[place])
            return tuple(parts)

        sampler = network.sampler
        network.__dict__["sampler"] = lambda: (lambda ask: lambda seen: answer(ask(seen)))(
            sampler()
        )
        hook = network.register_forward_hook(lambda module, given, found: answer(found))
        try:
            yield
        finally:
            hook.remove()
            del network.__dict__["sampler"]

    def spoil(self, value: Tensor) -> Tensor:
        """Return a tensor with the value of the case in all entries of one row."""
        row = torch.zeros_like(value, dtype=torch.bool)
        row[0 if self.seed is None else self.seed] = True
        if self.case.value == -INF or self.case.kind == "reward":
            return torch.where(row, self.case.value, value)
        return value.masked_fill(row, self.case.value)

    def dynamics(self, found: Any) -> Any:
        """Spoil what a step leads to."""
        state, reward = found
        if self.case.kind == "reward":
            return state, self.spoil(reward)
        name = next(iter(self.env.state_shapes))
        return {**state, name: self.spoil(state[name])}, reward

    def advantages(self, data: Any) -> Any:
        """Spoil the advantages of a batch."""
        data["advantage"].fill_(self.case.value)
        return data

    def weight(self) -> Any:
        """The weight that is spoilt, or whose gradient is."""
        if self.case.kind == "critic":
            return list(self.algorithm.critic.parameters())[-2]
        network, kind = self.algorithm.policy.network, self.case.kind
        part = {"trunk": "trunk", "discrete head": "discrete"}.get(kind, "continuous")
        return next(getattr(network, part).parameters())

    def names(self) -> str:
        """What a message must begin with, as a pattern."""
        kind = self.case.kind
        who = "" if self.seed is None else rf"Seed {SEEDS[self.seed]}: "
        if kind == "test's reward":
            return rf"The test 'validation' after update {self.update}: the reward "
        start = rf"Update {self.update}: {who}"
        if "head" in kind or kind == "trunk":
            part = {"trunk": "trunk", "discrete head": "discrete"}.get(kind, "continuous")
            return rf"{start}policy\.\S*\b{part}\.\S+ is not finite, and was spoilt first"
        known = {
            "reward": r"the reward .* at time step \d+ is not finite, and was spoilt first",
            "state": r"(the reward .{,50} and )?the (next )?state .{,10}'(inventory|x)'",
            "observation": r"the (next )?observation .{,10}'observation'",
            "logits": "(the logit |logits must be finite)",
            "loc": "(the continuous action |loc must be finite)",
            "critic": r"critic\.\S+ is not finite, and was spoilt first",
            "gradient": r"The gradient of continuous\.\S+ is not finite",
            "exp_avg": r"optimizer\.\S+\.exp_avg is not finite, and was spoilt first",
            "exp_avg_sq": r"optimizer\.\S+\.exp_avg_sq is not finite, and was spoilt first",
            "variance": r"reward_scaler\.variance",
            "weight": r"reward_scaler\.weight",
            "advantage": "the estimate 'advantage'",
            "parameter": "the environment's holding_cost",
            "cross-term weight": r"cross_term_weight\.power",
            "learning rate": "The optimizer's step spoilt the weights",
        }
        if kind == "parameter":
            return rf"Update {self.update}: .*{known[kind]}"
        return start + f"({known[kind.removeprefix('last ')]})"


def attempt(case: Case, number: int, seed: int) -> tuple[list[str], str]:
    """Run a case; return what is wrong with how it ended, and its message."""
    chance = random.Random(f"{seed} {number}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        folder.mkdir()
        trainer = build(case, folder)
        planter = Planter(case, trainer, chance)
        wrong, message = [], ""
        try:
            trainer.train()
            wrong.append("not stopped")
        except NonFiniteError as error:
            message = str(error)
            late = 1 if case.kind == "test's reward" else 0
            if trainer.update != planter.update - 1 + late:
                wrong.append(f"stopped in update {trainer.update + 1 - late}")
            if not re.match(planter.names(), message):
                wrong.append("not named")
        except Exception as error:  # a fault of the library: counted, not raised
            message = f"{type(error).__name__}: {error}"
            wrong.append("raw")
        for run in trainer.runs:
            if run.folder.summary.exists():
                wrong.append("summary")
            if [*run.checkpoint.updates()][-1:] != [planter.update - 1]:
                wrong.append("last checkpoint")
            for update in run.checkpoint.updates():
                run.checkpoint.read(update)  # refuses what is not finite
        return wrong, f"update {planter.update}: {message}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run all cases, print a table and return the number of failures."""
    parser = argparse.ArgumentParser(description="NaN and infinity planted in training runs.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every message")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    stopped = named = clean = 0
    for number, case in enumerate(CASES):
        wrong, message = attempt(case, number, given.seed)
        stopped += not any(w.startswith(("not stopped", "stopped", "raw")) for w in wrong)
        named += "not named" not in wrong and "not stopped" not in wrong and "raw" not in wrong
        clean += not {"summary", "last checkpoint"} & {*wrong}
        where = f"{case.algorithm}, {case.env}{', seeds' if case.many else ''}"
        verdict = ", ".join(dict.fromkeys(wrong)) or "ok"
        print(f"{case.kind:<18}{case.value:>8}  {where:<26}{verdict:<16}", end="")
        print(message if wrong or given.verbose else message.split(":")[0], flush=True)
    total = len(CASES)
    print(
        f"nans: {total} planted, {stopped} stopped in that update, {named} named, "
        f"{clean} without a trace in checkpoints and summary"
    )
    return (total - stopped) + (total - clean) + (total - named)


if __name__ == "__main__":
    raise SystemExit(main())
