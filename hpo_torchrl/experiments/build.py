"""From a configuration to the objects of a run, with errors that name the key.

A section names what it builds in ``_target_``; its other keys are arguments of that. Constructors
are the only source of defaults and checks, of this package's classes and of anybody's own.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchrl.envs import EnvBase
from torchrl.modules import ValueOperator

from hpo_torchrl.algorithms import Algorithm
from hpo_torchrl.core import ranks
from hpo_torchrl.core.checks import accepted, check_choice, check_int, first_line
from hpo_torchrl.core.objective import discounted_steps, endings
from hpo_torchrl.envs import ReplicatedEnv
from hpo_torchrl.experiments.pins import with_units
from hpo_torchrl.experiments.targets import collecting, instantiate, target_of
from hpo_torchrl.modules import replicate
from hpo_torchrl.training import Evaluation

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Periods of a test where episodes do not end, and how many of them are over before it counts.
_TEST_STEPS = 400
_WARM_UP = 100


def build_env(config: Mapping[str, Any], **changes: Any) -> EnvBase:
    """Build the environment of a configuration.

    Args:
        config: the whole configuration.
        changes: arguments that replace those of the configuration.

    Raises:
        ValueError: a value is refused; the message names its key.
        TypeError: a value has the wrong type.
    """
    settings = with_units(config, {**config["env"], **changes})
    known = accepted(target_of("env", settings))
    shared: dict[str, Any] = {key: config[key] for key in ("device", "dtype", "seed")}
    shared["device"] = ranks.local_device(shared["device"])
    shared["batch_size"] = config["collect"]["batch_size"]
    for key, value in shared.items():
        if key in known or (key == "batch_size" and "num_envs" in known):
            settings.setdefault(key, value)
        elif key != "seed" and value not in ("cpu", "float32", None):
            raise ValueError(
                f"{key}={value!r} cannot be given to {settings['_target_']}, which takes no {key}: "
                "let its __init__ take **others and hand them on to super().__init__."
            )
    if settings.get("batch_size", 0) is None:
        del settings["batch_size"]
    if "batch_size" in settings and "batch_size" not in known and "num_envs" in known:
        settings["num_envs"] = settings.pop("batch_size")  # Gymnasium's name for it
    if isinstance(settings.get("dtype"), str):
        settings["dtype"] = DTYPES[check_choice("dtype", settings["dtype"], DTYPES)]
    try:
        torch.empty(0, device=settings.get("device"))
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device={settings['device']!r} cannot be used here ({first_line(error)}); use "
            "device=cpu."
        ) from error
    return _build("env", settings, EnvBase)


def build_algorithm(
    config: Mapping[str, Any], seeds: Sequence[int] | None = None, *, env: EnvBase | None = None
) -> Algorithm:
    """Build environment, policy, critic and algorithm; the seed decides all initial weights.

    Args:
        config: the whole configuration.
        seeds: the seeds to train as one computation; ``None`` trains that of the configuration.
        env: the environment of a single seed, if it is not to be built.

    Raises:
        ValueError: a value is refused; the message names its key.
        TypeError: a value has the wrong type.
    """
    if seeds is None:
        parts = _build_parts(config, env)
    else:
        members = [_build_parts({**config, "seed": seed}) for seed in seeds]
        envs, policies, critics = zip(*members, strict=True)
        parts = ReplicatedEnv(envs), replicate(policies), replicate(critics)
    settings = {**collecting(config), **config["algorithm"]}
    given = dict(zip(("env", "policy", "critic"), parts, strict=True))
    if "seed" in accepted(target_of("algorithm", settings)):
        given["seed"] = config["seed"] if seeds is None else seeds
    elif seeds is not None:
        raise ValueError(
            f"num_seeds above 1 needs an algorithm that trains several seeds at once (hpo or ppo), "
            f"got {config['algorithm']['name']!r}; train one after another by --multirun seed=0,1"
        )
    return _build("algorithm", settings, Algorithm, **given)


def build_tests(
    config: Mapping[str, Any],
    env: EnvBase | None = None,
    tests: Evaluation | Mapping[str, Evaluation] | None = None,
    run: Any = None,
) -> tuple[Mapping[str, Evaluation], str, Evaluation]:
    """Build the evaluations of a configuration.

    Args:
        config: the whole configuration.
        env: an environment, of which each test gets a copy; by default one is built for each.
        tests: the tests, if they are not to be built; the first is the primary one.
        run: the algorithm, whose objective those tests measure that name none.

    Returns:
        The tests by name, the name of the primary one, and the validation for use in training.
    """
    if tests is not None:
        given = {"test": tests} if isinstance(tests, Evaluation) else tests
        primary = next(iter(given))
        return given, primary, given[primary]
    settings = config["evaluation"]
    check_int("evaluation.seed", settings["seed"], minimum=0)
    primary = check_choice("evaluation.primary", settings["primary"], settings["tests"])

    def build(
        num_steps: int | None = None,
        skip: int | None = None,
        objective: str | None = None,
        discount: float | None = None,
        **changes: Any,
    ) -> Evaluation:
        seed = check_int("seed", changes.setdefault("seed", settings["seed"]), minimum=0)
        place = build_env(config, **changes) if env is None else env
        place = copy.deepcopy(place) if place is env else place
        own = getattr(place, "num_periods", None) or getattr(place, "horizon", None)
        steps, (_, continuing) = own or _TEST_STEPS, endings(place)
        trained = getattr(run, "objective", None)
        # An average, or the return of whole episodes, is recognised by its steps.
        if objective is discount is None and trained in ("discounted", "return"):
            gamma = run.discount if trained == "discounted" else None
            least = steps if own or gamma is None else discounted_steps(gamma)
            follow: dict[str, Any] = {"objective": trained, "discount": gamma, "seed": seed}
            with contextlib.suppress(ValueError):  # it restarts on the way, or the like
                return Evaluation(place, num_steps=max(least, num_steps or 0), **follow)
        steps = steps if num_steps is None else check_int("num_steps", num_steps, minimum=1)
        if skip is None:
            averages = continuing and objective in (None, "average")
            skip = min(_WARM_UP, steps // 4) if averages else 0
        given: dict[str, Any] = {"num_steps": steps, "skip": skip, "discount": discount}
        return Evaluation(place, objective=objective, seed=seed, **given)

    changes = dict(settings["validation"])
    like = changes.pop("like", primary)
    check_choice("evaluation.validation.like", like, settings["tests"])
    built = {name: build(**test) for name, test in settings["tests"].items()}
    # The same test is one object: its reference, minutes of work on some problems, is found once.
    validation = build(**{**settings["tests"][like], **changes}) if changes else built[like]
    return built, primary, validation


def _build_parts(config: Mapping[str, Any], env: EnvBase | None = None) -> tuple[Any, Any, Any]:
    torch.manual_seed(check_int("seed", config["seed"], minimum=0))
    env = build_env(config, **_of_one_worker(config)) if env is None else env
    policy, critic = _build("policy", config["policy"], nn.Module, env=env), config["critic"]
    if critic.get("network") is None:
        return env, policy, _build("critic", critic, nn.Module, env=env)
    spec = env.observation_spec["observation"]
    make = instantiate("critic.network", critic["network"])
    net = make(spec.shape[-1], device=spec.device, dtype=spec.dtype)
    return env, policy, ValueOperator(net, in_keys=["observation"])


def _of_one_worker(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the batch size of a worker of Ray, if workers collect and share one.

    Raises:
        ValueError: the workers cannot share the instances equally.
    """
    workers = config["collect"].get("ray_workers")
    whole = config["env"].get("batch_size", config["collect"]["batch_size"])
    if workers is None or whole is None:
        return {}
    number = check_int("collect.ray_workers", workers, minimum=1)
    if check_int("collect.batch_size", whole, minimum=1) % number:
        raise ValueError(
            f"collect.batch_size must be a multiple of collect.ray_workers={number}, which share "
            f"the instances, got {whole}."
        )
    return {"batch_size": whole // number}


def _build(section: str, settings: Mapping[str, Any], kind: type, **given: Any) -> Any:
    built = instantiate(section, settings, **given)
    if not isinstance(built, kind):
        raise TypeError(
            f"{section}._target_ must build a {kind.__name__}, got a {type(built).__name__}."
        )
    return built
