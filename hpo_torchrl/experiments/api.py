"""The front door: train, load a run, and use its policy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrl.envs import EnvBase

from hpo_torchrl.core.checks import accepted, did_you_mean
from hpo_torchrl.envs.wrapped import Spaces
from hpo_torchrl.experiments.build import build_algorithm, build_tests
from hpo_torchrl.experiments.config import NOT_SETTINGS, compose_config, load_config
from hpo_torchrl.experiments.policy import TrainedPolicy
from hpo_torchrl.experiments.run import Tests, make_trainer, restore_policy, start
from hpo_torchrl.experiments.targets import locate
from hpo_torchrl.experiments.threads import set_threads
from hpo_torchrl.training import Callback, Evaluation, RunFolder

Tested = Evaluation | Mapping[str, Evaluation] | None

_SECTIONS = ("env", "collect", "policy", "critic", "algorithm", "evaluation", "trainer", "logger")
_STEPS = 300  # of a test on an environment object whose episodes do not end


def train(
    env: Any,
    algorithm: str = "hpo",
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    num_updates: int | None = None,
    tests: Tested = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    allow: Sequence[str] = (),
    **settings: Any,
) -> Run:
    """Train a policy, and leave the folder of a run.

    Args:
        env: an environment object, on which the policy is trained; the class of one, which is
            built with ``env={...}``; or the name of a configured one, as in ``env=`` on the command
            line (a list of overrides is taken as well: ``["env=inventory", "env.num_items=3"]``).
        algorithm: name of the algorithm.
        folder: where the run goes; by default a new folder under ``runs/``, which is printed.
        seed: seed of the initial weights, the sampled actions, and an environment that is built.
        num_updates: number of updates; as configured by default.
        tests: what the policy is tested on, one evaluation or several by name; the first is the
            primary one, and is used during training too. By default as configured, and for an
            environment object a copy of it over 300 steps (an episode, if it has an end).
        callbacks: what else happens; see :class:`~hpo_torchrl.training.Callback`.
        resume: go on with the run in ``folder``.
        allow: modules outside this package whose classes may be built when a run is resumed.
        settings: what is configured otherwise: by its own name (``learning_rate=1e-3``) where only
            one section has it, by section (``trainer={"eval_every": 5}``), or dotted
            (``**{"policy.hidden": [8]}``).

    Returns:
        The run, with its policy and its figures.

    Raises:
        FileExistsError: the folder holds a run already.
        ValueError: a setting is unknown or refused; the message names it.
        TypeError: a setting is not a plain value, or has the wrong type.
        NonFiniteError: training met NaN or infinity.

    Examples:
        >>> import tempfile
        >>> from hpo_torchrl import train
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> env = InventoryEnv(batch_size=8, initial_state="random", seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = train(env, folder=folder, num_updates=2, progress=False)
        ...     action, _ = run.policy.predict([2.0, 0.0])
        >>> action["discrete"].shape, action["continuous"].shape
        ((), (1,))
    """
    given = _flat(settings)
    if num_updates is not None:
        given["trainer.num_updates"] = num_updates
    chosen = [f"algorithm={algorithm}", f"seed={seed}"]
    built: EnvBase | None = None
    if isinstance(env, (str, list, tuple)):
        named = [env] if isinstance(env, str) else env
        chosen += [text if "=" in text else f"env={text}" for text in named]
    elif isinstance(env, type) and issubclass(env, EnvBase) and _importable(env):
        chosen.append(f"env._target_={env.__module__}.{env.__qualname__}")
        allow = [*allow, env.__module__]
    else:
        built = _object(env, seed, given)
        spaces = Spaces.of(built)
        spaces["name"] = spaces["original"]
        given["collect.batch_size"] = [*built.batch_size] or None
        chosen.append(f"env._target_={Spaces.__module__}.Spaces")
        chosen += [f"env.{key}={_word(key, value)}" for key, value in spaces.items()]
    config = _configured(chosen, given)
    name = f"{config['env']['name']}-{algorithm}-seed{seed}-{datetime.now():%Y%m%d-%H%M%S}"
    files = RunFolder(folder or Path("runs") / name)
    if not resume:
        files.check_new()
    if folder is None and config["trainer"]["progress"]:
        print(f"{'folder':<17}{files.path}", flush=True)
    with _threads(config):
        learner = build_algorithm(config, env=built)
        known = _tests(config, built, tests)
        start(make_trainer(config, files.path, learner, known, callbacks=callbacks), resume=resume)
    return Run(files.path, allow=allow, env=built, tests=tests)


def load_run(
    folder: str | Path,
    *,
    allow: Sequence[str] = (),
    env: EnvBase | None = None,
    tests: Tested = None,
) -> Run:
    """Return the run of a folder.

    Args:
        folder: its folder.
        allow: modules outside this package whose classes may be built.
        env: the environment, if the run was trained on an environment object.
        tests: what it is tested on, if that was given to :func:`train`.

    Raises:
        RunFolderError: the folder holds no run.
    """
    load_config(folder, allow)  # refuse what is no run, or not allowed
    return Run(folder, allow=allow, env=env, tests=tests)


def load_policy(
    folder: str | Path, *, allow: Sequence[str] = (), env: EnvBase | None = None
) -> TrainedPolicy:
    """Return the policy that a run ends with: of its newest checkpoint, or the one selected.

    Args:
        folder: folder of the run.
        allow: modules outside this package whose classes may be built.
        env: the environment, if the run was trained on an environment object and the policy is to
            act on states.

    Raises:
        RunFolderError: the folder holds no run, or its checkpoint is damaged.
    """
    config = load_config(folder, allow)
    with torch.random.fork_rng():  # initial weights are drawn, and then replaced
        algorithm: Any = build_algorithm(config, env=env)
    restore_policy(algorithm, config, folder, only_policy=True)
    return TrainedPolicy(algorithm.policy, algorithm.env)


class Run:
    """A run in its folder: the policy, the figures, and the means to test it again.

    Arguments are those of :func:`load_run`.

    Attributes:
        folder: the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        allow: Sequence[str] = (),
        env: EnvBase | None = None,
        tests: Tested = None,
    ) -> None:
        self.folder = Path(folder)
        self._files, self._allow, self._env, self._tests = RunFolder(folder), allow, env, tests

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration."""
        return load_config(self.folder, self._allow)

    @cached_property
    def policy(self) -> TrainedPolicy:
        """The policy that the run ends with."""
        return load_policy(self.folder, allow=self._allow, env=self._env)

    @property
    def summary(self) -> dict[str, Any]:
        """The content of ``summary.json``."""
        return self._files.read_summary()

    @property
    def gap(self) -> float | None:
        """Test cost / optimal cost - 1; ``None`` where no optimum is known."""
        return self.summary.get("gap")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.csv``; ``pandas.DataFrame(run.metrics)`` makes a table of them."""
        return self._files.read_metrics()

    def evaluate(self) -> dict[str, Any]:
        """Test the policy again, and return a summary like that of training; change no file."""
        config = self.config
        with _threads(config), torch.random.fork_rng():
            learner: Any = build_algorithm(config, env=copy.deepcopy(self._env))
            if isinstance(learner.env, Spaces):
                raise learner.env.missing()
            tests = _tests(config, self._env, self._tests)
            trainer = make_trainer(config, self.folder, learner, tests, progress=False, logs=False)
            trainer.restore()
            return trainer.summary()

    def __repr__(self) -> str:
        names = f"{self.config['env']['name']}, {self.config['algorithm']['name']}"
        if not self._files.summary.exists():
            return f"Run({str(self.folder)!r}: {names}, not finished)"
        cost = self.summary["test_cost"]
        shown = f"test cost {cost:.4f}"
        if "test_reward" in self.summary:
            shown = f"test reward {-cost:.4f}"
        gap = "" if self.gap is None else f", gap {self.gap:+.2%}"
        return f"Run({str(self.folder)!r}: {names}, {shown}{gap})"


# -- settings --------------------------------------------------------------------------------------


def _importable(env: type) -> bool:
    """Whether another process finds a class by its name."""
    return env.__module__ != "__main__" and "<locals>" not in env.__qualname__


def _object(env: Any, seed: int, given: dict[str, Any]) -> EnvBase:
    """Return an environment object, built from a class and the settings for it where need be."""
    if isinstance(env, type) and issubclass(env, EnvBase):
        own = {key[4:]: given.pop(key) for key in [*given] if key.startswith("env.")}
        env = env(**{"batch_size": given.pop("batch_size", 128), "seed": seed, **own})
    if not isinstance(env, EnvBase):
        raise TypeError(
            "env must be an environment (a DifferentiableEnv, or any EnvBase whose step keeps the "
            f"graph), the class of one, or a name such as 'inventory'; got {env!r}."
        )
    return env


def _flat(settings: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value and (at or key.split(".")[0] in _SECTIONS):
            found |= _flat(value, f"{at}{key}.")
        else:
            found[f"{at}{key}"] = value
    return found


def _configured(chosen: list[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Compose a configuration, with settings under their full names."""
    config = compose_config(chosen)
    for key in given:
        if key in NOT_SETTINGS:
            raise ValueError(f"{key} belongs to the command line; use folder=... and resume=True.")
    named = {key if "." in key else _full(key, config): value for key, value in given.items()}
    return compose_config([*chosen, *(f"{key}={_word(key, v)}" for key, v in named.items())])


def _full(key: str, config: Mapping[str, Any]) -> str:
    """Return the full name of a setting that is given by its own name alone."""
    if key in config:
        return key
    sections = {name: config[name] for name in _SECTIONS if isinstance(config.get(name), dict)}
    targets = {name: part["_target_"] for name, part in sections.items() if "_target_" in part}
    taken = {name: accepted(locate(f"{name}._target_", path)) for name, path in targets.items()}
    # A key that the files do not list may still be an argument of what a section builds.
    listed = [f"{name}.{key}" for name, section in sections.items() if key in section]
    found = listed or [f"{name}.{key}" for name, arguments in taken.items() if key in arguments]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{key} is a setting of several sections; name one: {', '.join(found)}, as in "
            f"train(..., **{{{found[0]!r}: ...}})."
        )
    known = [name for section in (*sections.values(), *taken.values()) for name in section]
    raise ValueError(
        f"Unknown setting {key!r}.{did_you_mean(key, known)} Sections and their settings stand in "
        "configs/; hpo-train --cfg prints them all."
    )


def _word(key: str, value: Any) -> str:
    """Write a plain value as on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float, np.number)):
        return repr(value.item() if isinstance(value, np.number) else value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (str, Path)):
        escaped = str(value).replace("'", "\\'")
        return f"'{escaped}'"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_word(key, entry) for entry in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{_word(key, entry)}' for name, entry in value.items())}}}"
    raise TypeError(
        f"{key} must be a plain value (number, text, list or mapping), got {type(value).__name__}; "
        "an environment with other arguments is given as an object: train(MyEnv(...))."
    )


def _tests(
    config: Mapping[str, Any],
    env: EnvBase | None,
    tests: Tested,
) -> Tests:
    """Return the tests by name, the primary one's name, and that of use during training."""
    if tests is None and env is None:
        return build_tests(config)
    if tests is None:
        settings, steps = config["evaluation"], getattr(env, "horizon", None) or _STEPS
        tests = {
            name: Evaluation(
                copy.deepcopy(env),
                num_steps=test.get("num_steps") or steps,
                skip=test.get("skip", 0),
                seed=settings["seed"],
            )
            for name, test in settings["tests"].items()
        }
    named = {"test": tests} if isinstance(tests, Evaluation) else dict(tests)
    primary = next(iter(named))
    return named, primary, named[primary]


@contextmanager
def _threads(config: Mapping[str, Any]) -> Any:
    """Compute with as many threads as configured, and leave torch as it was."""
    before = torch.get_num_threads()
    try:
        set_threads(config)
        yield
    finally:
        torch.set_num_threads(before)
