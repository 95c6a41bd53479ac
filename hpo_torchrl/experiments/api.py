"""The front door: train, load a run, and use its policy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.core import ranks
from hpo_torchrl.core.checks import accepted
from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.envs.wrapped import Spaces
from hpo_torchrl.experiments.build import build_algorithm, build_tests
from hpo_torchrl.experiments.config import SECTIONS, compose_config, load_config
from hpo_torchrl.experiments.export import Exported, export_policy
from hpo_torchrl.experiments.run import (
    Tests,
    in_short,
    make_trainer,
    new_folder,
    restore_policy,
    threads,
    train_run,
)
from hpo_torchrl.training import Callback, RunFolder


def train(
    env: Any,
    algorithm: str = "hpo",
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    tests: Tests = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    changed_files: bool = False,
    allow: Sequence[str] = (),
    **settings: Any,
) -> Run:
    """Train a policy, and leave the folder of a run.

    Args:
        env: an environment object, on which the policy is trained; the class of one, which
            the settings build; or the name of a configured one, as in ``env=`` on the command
            line (a list of overrides is taken as well: ``["env=inventory", "env.num_items=3"]``).
        algorithm: name of the algorithm.
        folder: where the run goes; by default a new folder under ``runs/``, which is printed.
        seed: seed of the initial weights, the sampled actions, and an environment that is built.
        tests: what the policy is tested on, one evaluation or several by name; the first is the
            primary one, and is used during training too. By default as configured, and for an
            environment object a copy of it over 300 steps (an episode, if it has an end).
        callbacks: what else happens; see :class:`~hpo_torchrl.training.Callback`.
        resume: go on with the run in ``folder``, under its own settings; only ``learning_rate`` may
            be another one, and a file that they name may have moved.
        changed_files: whether such a file may have another content, on a resume.
        allow: modules outside this package whose classes may be built when a run is resumed.
        settings: what is configured otherwise: by its own name (``num_updates=100``) where only
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
    chosen = [f"algorithm={algorithm}", f"seed={seed}"]
    built: EnvBase | None = None
    if isinstance(env, (str, list, tuple)):
        named = [env] if isinstance(env, str) else env
        chosen += [text if "=" in text else f"env={text}" for text in named]
    elif _is_env_class(env) and env.__module__ != "__main__" and "." not in env.__qualname__:
        chosen.append(f"env._target_={env.__module__}.{env.__qualname__}")
        allow = [*allow, env.__module__]
    else:  # an object, or a class that another process does not find by its name
        built = _object(env, seed, settings)
        spaces = Spaces.of(built)
        target = {"_target_": f"{Spaces.__module__}.Spaces", "name": spaces["original"]}
        chosen.append("env=custom")
        settings = {"env": {**target, **spaces}, **settings}
        settings["collect.batch_size"] = [*built.batch_size] or None
    files = [key for key, value in settings.items() if key in SECTIONS and isinstance(value, str)]
    chosen += [f"{section}={settings.pop(section)}" for section in files]
    config = compose_config(chosen, **settings)
    how: dict[str, Any] = {"env": built, "tests": tests, "callbacks": callbacks}
    with ranks.joined():
        place = Path(folder or ranks.from_main(partial(new_folder, config)))
        if folder is None and config["trainer"]["progress"] and ranks.main():
            print(f"{'folder':<17}{place}", flush=True)
        train_run(config, place, resume=resume, changed_files=changed_files, **how)
    return Run(place, allow=allow, env=built, tests=tests)


def load_policy(
    folder: str | Path,
    *,
    allow: Sequence[str] = (),
    env: EnvBase | None = None,
    files: Mapping[str, Any] | None = None,
) -> TrainedPolicy:
    """Return the policy that a run ends with: of its newest checkpoint, or the one selected.

    Args:
        folder: folder of the run, or its folder ``policy/`` alone, wherever that lies now.
        allow: modules outside this package whose classes may be built.
        env: the environment, if the run was trained on an environment object and the policy is to
            act on states.
        files: see :class:`Run`.

    Raises:
        RunFolderError: the folder holds no run, or its checkpoint is damaged.
        FileNotFoundError: a file that it was trained on is missing.
        ValueError: such a file has another content.
    """
    return Run(folder, allow=allow, env=env, files=files).policy


class Run:
    """A run in its folder: the policy, the figures, and the means to test it again.

    Args:
        folder: its folder; or that of its policy alone, ``policy/``.
        allow: modules outside this package whose classes may be built.
        env: the environment, if the run was trained on an environment object.
        tests: what it is tested on, if that was given to :func:`train`.
        files: where files that it was trained on lie now, as ``{"env.path": "new/demand.csv"}``; or
            other data to test it on. Observations and orders stay in the units of its training.

    Attributes:
        folder: the folder.
        config: the configuration.

    Raises:
        RunFolderError: the folder holds no run.
        FileNotFoundError: a file that it was trained on is missing.
        ValueError: its configuration names a class of another module, or such a file has another
            content and is not in ``files``.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        allow: Sequence[str] = (),
        env: EnvBase | None = None,
        tests: Tests = None,
        files: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self._files = Path(folder), RunFolder(folder)
        self.config = load_config(folder, allow, files=files)
        self._env, self._tests = env, tests

    @cached_property
    def policy(self) -> TrainedPolicy:
        """The policy that the run ends with."""
        with torch.random.fork_rng():  # initial weights are drawn, and then replaced
            algorithm: Any = build_algorithm(self.config, env=self._env)
        restore_policy(algorithm, self.config, self.folder, only_policy=True)
        return TrainedPolicy(algorithm.policy, algorithm.env)

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
        quiet = partial(make_trainer, progress=False, logs=False)
        with threads(self.config), torch.random.fork_rng():
            env = copy.deepcopy(self._env)
            trainer = quiet(self.config, self.folder, env=env, tests=self._tests)
            trainer.restore()
            return trainer.summary()

    def export(self, format: str, folder: str | Path | None = None) -> Exported:
        """Write the policy to files that need no part of this library, and check them.

        Args:
            format: ``"onnx"``, ``"pt2"`` or ``"numpy"``, see
                :func:`~hpo_torchrl.experiments.export.export_policy`.
            folder: where they go; by default ``export/`` in the run's folder.

        Raises:
            ValueError: the format is unknown, its packages are missing, or the policy cannot be
                expressed in it.
            TypeError: the policy is a rule.
            ExportError: what was written acts differently.
        """
        return export_policy(self.policy, format, folder or self.folder / "export")

    def decide(self, given: Any) -> Any:
        """Return what to do now, as a table: what to order, or the schedule of a day.

        Args:
            given: how things are: a stock, see
                :func:`~hpo_torchrl.problems.inventory.decision.decide_orders`, or generating units,
                see :func:`~hpo_torchrl.problems.unit_commitment.decision.decide_schedule`.

        Raises:
            TypeError: the environment has no such table.
            ValueError: what is given is not of this problem.
        """
        env = plain(self.policy.env)
        if not hasattr(env, "decide"):
            raise TypeError(
                f"{type(env).__name__} has no table of decisions; call run.policy on a state."
            )
        return env.decide(self.policy, given)

    def details(self, folder: str | Path | None = None) -> Any:
        """Return what the policy does in the primary test, as a table beside a rule or optimum.

        Args:
            folder: where the table and a picture go; ``None`` writes none.

        Raises:
            TypeError: the environment has no details.
            ValueError: it has none of these orders.
        """
        tests, primary, _ = build_tests(self.config, copy.deepcopy(self._env), self._tests)
        env = plain(tests[primary].env)
        if not hasattr(env, "details"):
            raise TypeError(f"{type(env).__name__} has no details.")
        with threads(self.config):
            policies = {"policy": self.policy.module}
            known = tests[primary].reference()
            if known.policy is not None:
                name = "rule" if known.optimal_cost is None else "optimal"
                policies[name] = known.policy
            return env.details(tests[primary], policies, folder)

    def __repr__(self) -> str:
        done = in_short(self.summary) if self._files.summary.exists() else "not finished"
        names = f"{self.config['env']['name']}, {self.config['algorithm']['name']}"
        return f"Run({str(self.folder)!r}: {names}, {done})"


load_run = Run  # to open a run is to read its configuration


class TrainedPolicy(TensorDictModuleBase):
    """A policy to be used: on observations, on states, and on tensordicts.

    Called with an observation ``(*B, observation_dim)``, with a mapping that holds it as
    ``"observation"`` (and ``"action_mask"`` where there is one), or with a mapping of all state
    entries (``"step"`` may be left out), it returns the action: ``"discrete"``, int64 ``(*B,)``,
    and ``"continuous"``, ``(*B, n)``. Called with a tensordict it writes ``"action"`` there and
    returns it, so it can be given to ``env.rollout``.

    Args:
        module: the policy, a :class:`~hpo_torchrl.modules.HybridPolicy` or a rule.
        env: an environment of the problem, which turns states into observations.

    Raises:
        ValueError: an entry is unknown or missing, or has another shape.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.experiments.api import TrainedPolicy
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> env = InventoryEnv(lead_time=2)
        >>> policy = TrainedPolicy(HybridPolicy.for_env(env), env)
        >>> policy({"inventory": torch.tensor([[30.0, 12.0]])})["discrete"]
        tensor(0)
        >>> action, _ = policy.predict([[3.0, 1.2], [0.5, 0.0]])
        >>> action["continuous"].shape
        (2, 1)
    """

    env: EnvBase

    def __init__(self, module: TensorDictModuleBase, env: EnvBase) -> None:
        super().__init__()
        self.module = module
        self.in_keys, self.out_keys = list(module.in_keys), list(module.out_keys)
        object.__setattr__(self, "env", env)  # a module too, but no part of this one

    def forward(self, given: Any, *, deterministic: bool = True) -> Any:
        """Return the action, or the tensordict that was given, with the action.

        Args:
            given: an observation, a mapping of entries, or a tensordict.
            deterministic: whether to take the most probable discrete action and the mean of the
                continuous one, instead of drawing them.
        """
        kind = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
        with torch.no_grad(), set_exploration_type(kind):
            if not isinstance(given, TensorDictBase):
                entries = given if isinstance(given, Mapping) else {"observation": given}
                answer = self.module(self._read(entries))
                return {key: answer["action", key] for key in ("discrete", "continuous")}
            if not set(self.module.in_keys) <= {*given.keys()}:
                known = given.select(*self.env.observation_spec.keys(), strict=False)
                given.update(self._read(known))
            return self.module(given)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[dict[str, np.ndarray], None]:
        """Act on arrays, in the manner of Stable-Baselines3.

        Args:
            observation: one observation, a batch of them, or a mapping as for a call.
            state: not used; a policy has no memory.
            episode_start: not used.
            deterministic: whether to take the most probable action.

        Returns:
            The action, ``"discrete"`` and ``"continuous"`` as arrays, and ``None`` for the state.
        """
        action = self(observation, deterministic=deterministic)
        return {key: value.cpu().numpy() for key, value in action.items()}, None

    def _read(self, given: Mapping[str, Any] | TensorDictBase) -> TensorDict:
        """Return what the policy reads, of the entries of a state or an observation."""
        spec, batch = self.env.observation_spec, len(self.env.batch_size)
        known, names, reads = {*spec.keys()}, {*given.keys()}, {*self.module.in_keys}
        state = {*getattr(self.env, "state_names", ())} - {"step"}
        if not names <= known or not (reads <= names or (state and state <= names)):
            raise ValueError(
                f"The policy reads {' together with '.join(sorted(reads))}, or a whole state "
                f"({', '.join(sorted(state)) or 'which is not known here'}); got "
                f"{', '.join(names)}. Give several entries as {{name: value, ...}}. A run on an "
                "environment object knows its state if it is loaded with env=..."
            )
        entries, shape = {}, torch.Size()
        for name, value in given.items():
            entries[name] = torch.as_tensor(value, dtype=spec[name].dtype, device=self.env.device)
            own, found = spec[name].shape[batch:], entries[name].shape
            shape = found[: len(found) - len(own)]
            if found[len(shape) :] != own:
                raise ValueError(
                    f"{name} must have the shape {tuple(own)}, or that after batch dimensions; got "
                    f"{tuple(found)}."
                )
        if not reads <= names:
            entries.setdefault("step", torch.zeros((*shape, 1), dtype=torch.int64))
            entries |= self.env.show(entries)
        return TensorDict(entries, batch_size=shape, device=self.env.device)


def _is_env_class(env: Any) -> bool:
    return isinstance(env, type) and issubclass(env, EnvBase)


def _object(env: Any, seed: int, settings: dict[str, Any]) -> EnvBase:
    """Return an environment object, built from a class and its part of the settings if need be."""
    if _is_env_class(env):
        given = {"batch_size": 128, "seed": seed}
        for name in accepted(env):
            for key in {name, f"env.{name}"} & {*settings}:
                given[name] = settings.pop(key)
        env = env(**given)
    if not isinstance(env, EnvBase):
        raise TypeError(
            "env must be an environment (a DifferentiableEnv, or any EnvBase whose step keeps the "
            f"graph), the class of one, or a name such as 'inventory'; got {env!r}."
        )
    return env
