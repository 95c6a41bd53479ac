"""From a configuration to the objects of a run, with errors that name the key.

A section names what it builds in ``_target_``; its other keys are arguments of that. Constructors
are the only source of defaults and checks, of this package's classes and of anybody's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchrl.envs import EnvBase
from torchrl.modules import ValueOperator

from hpo_torchrl.algorithms import Algorithm
from hpo_torchrl.core.checks import accepted, check_choice, check_int, first_line
from hpo_torchrl.envs import ReplicatedEnv
from hpo_torchrl.experiments.targets import (
    BUILT,
    check_section,
    instantiate,
    target_of,
)
from hpo_torchrl.modules import replicate
from hpo_torchrl.training import Evaluation

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Periods of a test of an environment whose episodes do not end.
_TEST_STEPS = 300


def build_env(config: Mapping[str, Any], section: str = "env", **changes: Any) -> EnvBase:
    """Build the environment of a configuration.

    Args:
        config: the whole configuration.
        section: what the arguments are called in messages.
        changes: arguments that replace those of the configuration.

    Raises:
        ValueError: a key is unknown or a value is refused; the message names it.
        TypeError: a value has the wrong type.
    """
    settings = {**config["env"], **changes}
    settings.pop("name", None)
    known = accepted(target_of("env", settings))
    shared: dict[str, Any] = {key: config[key] for key in ("device", "dtype", "seed")}
    shared["batch_size"] = config["collect"]["batch_size"]
    for key, value in shared.items():
        if key in known:
            settings.setdefault(key, value)
        elif key != "seed" and value not in ("cpu", "float32", None):
            raise ValueError(
                f"{key}={value!r} cannot be given to {settings['_target_']}, which takes no {key}: "
                "let its __init__ take **others and hand them on to super().__init__."
            )
    if settings.get("batch_size", 0) is None:
        del settings["batch_size"]
    if isinstance(settings.get("dtype"), str):
        settings["dtype"] = DTYPES[check_choice("dtype", settings["dtype"], DTYPES)]
    if settings.get("device") is not None:
        _check_device(str(settings["device"]))
    return _checked(section, instantiate(section, settings), EnvBase)


def build_algorithm(
    config: Mapping[str, Any], seeds: Sequence[int] | None = None, *, env: EnvBase | None = None
) -> Algorithm:
    """Build environment, policy, critic and algorithm; the seed decides all initial weights.

    Args:
        config: the whole configuration.
        seeds: the seeds to train as one computation; ``None`` trains that of the configuration.
        env: the environment of a single seed, if it is not to be built.

    Raises:
        ValueError: a key is unknown or a value is refused; the message names it.
        TypeError: a value has the wrong type.
    """
    if seeds is None:
        parts = _build_parts(config, env)
    else:
        members = [_build_parts({**config, "seed": seed}) for seed in seeds]
        envs, policies, critics = zip(*members, strict=True)
        parts = ReplicatedEnv(envs), replicate(policies), replicate(critics)
    settings = {**config["algorithm"], **_collecting(config)}
    given = dict(zip(("env", "policy", "critic"), parts, strict=True))
    if "seed" in accepted(target_of("algorithm", settings)):
        given["seed"] = config["seed"] if seeds is None else seeds
    elif seeds is not None:
        raise ValueError(
            f"num_seeds above 1 needs an algorithm that trains several seeds at once (hpo or ppo), "
            f"got {config['algorithm']['name']!r}; train one after another by --multirun seed=0,1"
        )
    return _checked("algorithm", instantiate("algorithm", settings, **given), Algorithm)


def _build_parts(config: Mapping[str, Any], env: EnvBase | None = None) -> tuple[Any, Any, Any]:
    torch.manual_seed(check_int("seed", config["seed"], minimum=0))
    env = build_env(config) if env is None else env
    policy = _checked("policy", instantiate("policy", config["policy"], env=env), nn.Module)
    critic = config["critic"]
    if critic.get("network") is None:
        return env, policy, _checked("critic", instantiate("critic", critic, env=env), nn.Module)
    spec = env.observation_spec["observation"]
    make = instantiate("critic.network", critic["network"])
    net = make(spec.shape[-1], device=spec.device, dtype=spec.dtype)
    return env, policy, ValueOperator(net, in_keys=["observation"])


def build_tests(config: Mapping[str, Any]) -> tuple[dict[str, Evaluation], str, Evaluation]:
    """Build the evaluations of a configuration.

    Args:
        config: the whole configuration.

    Returns:
        The tests by name, the name of the primary one, and the validation for use in training.
    """
    settings = config["evaluation"]
    tests = settings["tests"]
    primary = check_choice("evaluation.primary", settings["primary"], tests)

    def build(name: str, changes: Mapping[str, Any], place: str) -> Evaluation:
        arguments = {"num_steps": None, "skip": 0, **tests[name], **changes}
        steps, skip = arguments.pop("num_steps"), arguments.pop("skip")
        env = build_env(config, place, **{"seed": settings["seed"], **arguments})
        if steps is None:
            steps = getattr(env, "num_periods", None) or getattr(env, "horizon", None)
        return Evaluation(env, num_steps=steps or _TEST_STEPS, skip=skip, seed=settings["seed"])

    changes = dict(settings["validation"])
    like = check_choice("evaluation.validation.like", changes.pop("like", primary), tests)
    built = {name: build(name, {}, f"evaluation.tests.{name}") for name in tests}
    # The same test is one object: its reference, minutes of work on some problems, is found once.
    return built, primary, build(like, changes, "evaluation.validation") if changes else built[like]


def check_config(config: Mapping[str, Any]) -> None:
    """Check the keys of all sections that build something, without building it.

    Raises:
        ValueError: a target cannot be found, or a key is unknown or missing.
    """
    for section, given in BUILT.items():
        settings = config[section]
        if section == "algorithm":
            settings = {**settings, **_collecting(config)}
        check_section(section, settings, given)


def _collecting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the ``collect`` section that its algorithm is given."""
    given = {k: v for k, v in config["collect"].items() if k != "batch_size" and v is not None}
    target = target_of("algorithm", config["algorithm"])
    if not getattr(target, "learns", True):
        return {}  # a rule collects nothing
    known = accepted(target)
    # Settings of graphs, which only batches of the simulator's gradients have.
    graph = () if getattr(target, "differentiable", True) else ("checkpoint_steps", "compile")
    for key, value in given.items():
        if key not in known or (value and key in graph):
            raise ValueError(
                f"collect.{key}={value!r} cannot be given to algorithm="
                f"{config['algorithm'].get('name')}, which takes no {key}; leave it null."
            )
    for key in config["collect"]:
        if key in config["algorithm"] and key != "batch_size":
            raise ValueError(
                f"algorithm.{key} is a setting of how batches are collected: collect.{key}="
                f"{config['algorithm'][key]}."
            )
    return given


def _checked(section: str, built: Any, kind: type) -> Any:
    if not isinstance(built, kind):
        raise TypeError(
            f"{section}._target_ must build a {kind.__name__}, got a {type(built).__name__}."
        )
    return built


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here ({first_line(error)}); use device=cpu."
        ) from error
