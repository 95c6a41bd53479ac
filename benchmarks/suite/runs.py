"""One problem of the suite: what its optimum and its yardsticks earn, and what a run learns."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpo_torchrl import DifferentiableEnv, Evaluation, train
from hpo_torchrl.diagnostics.grid import grid_optimum
from hpo_torchrl.diagnostics.yardsticks import yardsticks

HERE = Path(__file__).parent
PROBLEMS = sorted(path.parent.name for path in HERE.glob("*/__init__.py"))
# Of these the discounted return counts; elsewhere the return of an episode, or else the average.
DISCOUNTS = {"switched": 0.95}
# The test of all policies of a problem, which face the same world, without the steps skipped; the
# reward of each step is averaged over so many draws of its noise.
INSTANCES, STEPS, SKIP, SEED, DRAWS = 2048, 550, 50, 20260514, 8
GRID_SECONDS = 60.0  # after which the grid of an optimum is not refined any more


def problem_class(problem: str) -> type[DifferentiableEnv]:
    """Return the environment class of a problem, which has its name."""
    module = importlib.import_module(f"benchmarks.suite.{problem}")
    return getattr(module, problem.capitalize())


def objective_of(problem: str) -> dict[str, Any]:
    """Return objective and discount of a problem."""
    if problem in DISCOUNTS:
        return {"objective": "discounted", "discount": DISCOUNTS[problem]}
    ends = problem_class(problem)(batch_size=1).horizon is not None
    return {"objective": "return" if ends else "average"}


def quiet(env_class: type[DifferentiableEnv], draws: int) -> type[DifferentiableEnv]:
    """Return a class whose reward is the mean over draws of the step's noise; states move by one.

    The expected reward stays as it is, and a test of it is less noisy.
    """

    class Quiet(env_class):  # type: ignore[misc, valid-type]
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.noise_shape = (draws, *self.noise_shape)

        def draw_noise(self, num_steps: int, state: Mapping[str, Any]) -> Any:
            drawn = [super(Quiet, self).draw_noise(num_steps, state) for _ in range(draws)]
            return torch.stack(drawn, 2)

        def dynamics(self, state: Any, action: Any, noise: Any) -> Any:
            def repeated(entries: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
                return {
                    key: value.unsqueeze(1).expand(-1, draws, *value.shape[1:])
                    for key, value in entries.items()
                }

            given = {key: action[key] for key in ("discrete", "continuous")}
            after, reward = super().dynamics(repeated(state), repeated(given), noise)
            return {key: value[:, 0] for key, value in after.items()}, reward.mean(1)

    return Quiet


def make_test(
    problem: str, instances: int = INSTANCES, steps: int = STEPS, draws: int = DRAWS
) -> Evaluation:
    """Return the test of a problem; of episodes the whole one counts."""
    env = quiet(problem_class(problem), draws)(batch_size=instances, seed=SEED)
    how: dict[str, Any] = {"discount": DISCOUNTS[problem]} if problem in DISCOUNTS else {}
    if env.horizon is None:
        how |= {"num_steps": steps, "skip": 0 if how else min(SKIP, steps // 4)}
    return Evaluation(env, **{"num_steps": env.horizon, "seed": SEED, **how})


def cached(path: Path, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what an earlier call left in a file under the same key, or compute it."""
    if path.exists():
        found = json.loads(path.read_text())
        if found["key"] == key:
            return found
    found = {"key": key, **compute()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def find_optimum(problem: str, folder: Path) -> dict[str, Any]:
    """Return what the optimum and the yardsticks of a problem earn a step, by name; cached."""
    env_class = problem_class(problem)

    def compute() -> dict[str, Any]:
        started, objective = time.process_time(), objective_of(problem)
        optimum = grid_optimum(
            env_class(batch_size=128, seed=0), seconds=GRID_SECONDS, seed=SEED, **objective
        )
        seconds, test = time.process_time() - started, make_test(problem)
        plain = make_test(problem, instances=512, draws=1)
        rules = {name: -test.run(policy).mean for name, (_, policy) in yardsticks(plain).items()}
        return {
            **objective,
            "optimum": -optimum.cost,
            "error": optimum.error,
            "simulated": -test.run(optimum.policy).mean,
            "yardsticks": rules,
            "grid_seconds": seconds,
        }

    key = hashlib.sha256(inspect.getsource(inspect.getmodule(env_class)).encode()).hexdigest()
    return cached(folder / problem / "optimum.json", key, compute)


def train_one(
    problem: str, algorithm: str, seed: int, folder: Path, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Train by the public route at its defaults, and return what the last iterate earns a step."""
    place = folder / problem / f"{algorithm}_{seed}"

    def compute() -> dict[str, Any]:
        how: dict[str, Any] = dict(settings)
        if problem in DISCOUNTS:
            how["discount"] = DISCOUNTS[problem]
        shutil.rmtree(place, ignore_errors=True)  # of a run that was interrupted, or is another
        started = time.process_time()
        run = train(
            problem_class(problem),
            algorithm,
            folder=place,
            seed=seed,
            progress=False,
            reference="none",
            **how,
        )
        seconds, test = time.process_time() - started, make_test(problem)
        sampled = partial(run.policy, deterministic=False)
        torch.manual_seed(SEED)
        return {
            "argmax": -test.run(run.policy).mean,
            "sampled": -test.run(sampled).mean,
            "seconds": seconds,
        }

    return cached(place / "suite.json", f"{algorithm} {seed} {dict(settings)}", compute)
