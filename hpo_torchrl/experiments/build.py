"""From a configuration to the objects of a run, with errors that name the key.

A section names what it builds in ``_target_``; its other keys are arguments of that. Constructors
are the only source of defaults and checks, of this package's classes and of anybody's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra._internal.utils import _locate
from torch import nn
from torchrl.envs import EnvBase
from torchrl.modules import ValueOperator

from hpo_torchrl.algorithms import Algorithm
from hpo_torchrl.core.checks import check_choice, check_int, did_you_mean, first_line
from hpo_torchrl.modules.network import HybridNetwork
from hpo_torchrl.training import Evaluation

# Sections that build a class of anybody's, and what their builder hands over itself.
BUILT = {
    "env": (),
    "policy": ("env",),
    "critic": ("env",),
    "algorithm": ("env", "policy", "critic", "seed"),
}
_DEFAULTS = {
    "policy": "hpo_torchrl.modules.HybridPolicy.for_env",
    "critic": "hpo_torchrl.modules.make_value_network",
}
# Entry-point groups in which installed packages offer classes for a section.
PLUGINS = {"env": "hpo_torchrl.problems", "algorithm": "hpo_torchrl.algorithms"}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Nested targets of these names are finished by who takes them: classes with some arguments.
_PARTIAL = ("loss", "network")
# Arguments that a policy network is given besides its sizes, if it takes them.
_FACTS = ("continuous_bounds", "branch_bounds", "num_heads", "action_scale", "device", "dtype")
_SIZES = ("observation_dim", "num_discrete", "continuous_dim")
# Rooms of this package whose classes any run's folder may name.
_SAFE_ROOMS = ("algorithms", "envs", "modules", "objectives", "problems")
# Periods of a test of an environment whose episodes do not end.
_TEST_STEPS = 300
# until merged: new names of arguments, and the old ones where a class still has them.
_RENAMED = {
    "unroll_length": "window",
    "target_action_change": "target_move",
    "discrete_action": "option",
}


# -- from a configuration to objects ---------------------------------------------------------------


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
    known = accepted(_target("env", settings))
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
    if isinstance(settings.get("demand_traces"), str):
        settings["demand_traces"] = _load_tensor("env.demand_traces", settings["demand_traces"])
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
        from hpo_torchrl.envs import ReplicatedEnv  # type: ignore[attr-defined]  # until merged
        from hpo_torchrl.modules import replicate  # type: ignore[attr-defined]  # until merged

        members = [_build_parts({**config, "seed": seed}) for seed in seeds]
        envs, policies, critics = zip(*members, strict=True)
        parts = ReplicatedEnv(envs), replicate(policies), replicate(critics)
    settings = {**config["algorithm"], **_collecting(config)}
    given = dict(zip(("env", "policy", "critic"), parts, strict=True))
    if "seed" in accepted(_target("algorithm", settings)):
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
    return built, primary, build(like, changes, "evaluation.validation")


# -- targets ---------------------------------------------------------------------------------------


def instantiate(section: str, settings: Mapping[str, Any], **given: Any) -> Any:
    """Build what a section names, after checking its keys.

    Args:
        section: its name in messages: ``"env"``, ``"algorithm.loss"``, ...
        settings: ``_target_`` and the arguments, in which nested targets are built as well: a
            ``loss`` or ``network`` (or with ``_partial_: true``) as a partial of the class.
        given: further arguments, which the section may not set.

    Raises:
        ValueError: the target cannot be found, or a key is unknown or missing.
    """
    target, arguments = check_section(section, settings, given)
    built = {
        key: instantiate(f"{section}.{key}", value) if _is_target(value) else value
        for key, value in arguments.items()
    }
    known = accepted(target)
    for new, old in _RENAMED.items():  # until merged
        if new in built and new not in known and old in known:
            built[old] = built.pop(new)
    if section.endswith(".network"):
        # A network takes those of the offered facts that it asks for.
        return lambda *sizes, **facts: target(
            *sizes, **{key: fact for key, fact in facts.items() if key in known}, **built
        )
    if _is_partial(section, settings):
        return partial(target, **built)
    return target(**given, **built)


def call_with(section: str, function: Callable, arguments: Mapping[str, Any]) -> Any:
    """Call ``function`` with a section's keys, refusing the ones it does not take.

    Raises:
        ValueError: a key is unknown; the message names it, its value and the known ones.
    """
    check_keys(section, arguments, accepted(function))
    return function(**arguments)


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


def check_section(
    section: str, settings: Mapping[str, Any], given: Collection[str] = ()
) -> tuple[Callable, dict[str, Any]]:
    """Check the keys of a section; return its target and the arguments that it sets.

    Args:
        section: its name.
        settings: ``_target_`` and arguments.
        given: names of the arguments that it may not set.

    Raises:
        ValueError: the target cannot be found, or a key is unknown or missing.
    """
    target = _target(section, settings)
    known: dict[str, Any] = accepted(target)
    for new, old in _RENAMED.items():  # until merged
        if old in known and new not in known:
            known[new] = known.pop(old)
    required = [] if _is_partial(section, settings) else _required(target)
    own = settings.get("network")
    if section == "policy" and getattr(target, "__name__", None) == "for_env":
        network = HybridNetwork if own is None else _target("policy.network", own)
        known = {**accepted(network), **known}
        given = (*given, *_SIZES, *_FACTS)
    elif section == "critic" and own is not None:
        known, required = {"network": None}, []
    known = {name: known[name] for name in known if name not in given}
    left_out = ("_target_", "_partial_", *(["name"] if section in BUILT else []))
    arguments = {key: value for key, value in settings.items() if key not in left_out}
    check_keys(section, arguments, known)
    for key, value in arguments.items():
        if _is_target(value):
            check_section(f"{section}.{key}", value)
    shared = ("batch_size", "device", "dtype", "seed")  # an environment is given these anyway
    lacking = [name for name in required if name not in (*arguments, *given, *shared)]
    if lacking and section in BUILT:
        raise ValueError(
            f"{section}.{lacking[0]} must be given: {settings['_target_']} has no default for it."
        )
    return target, arguments


def check_keys(section: str, arguments: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise a ``ValueError`` that names the first unknown key, its value and the known ones."""
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(
                f"Unknown key {section}.{key}={value!r}.{did_you_mean(key, known)} "
                f"Known keys of {section}: {', '.join(known)}."
            )


def check_targets(config: Any, allow: Sequence[str] = ()) -> None:
    """Check that a configuration from a folder names only classes that may be built.

    These are classes of this package, of installed plug-ins, and of modules that the caller names.

    Args:
        config: the configuration, or a part of it.
        allow: names of modules, such as ``"my_package"``, whose classes may be built.

    Raises:
        ValueError: another class is named; the message says how to allow it.
    """
    trusted = [*allow, *(name.split(".")[0] for part in PLUGINS for name in plugins(part).values())]
    for key, path in _targets(config, ""):
        root = str(path).split(".")[0]
        own = root == "hpo_torchrl"
        found = locate(key, path) if own or _within(str(path), trusted) else None
        owner = getattr(found, "__self__", found)
        rooms = trusted
        if own:  # classes, their own class methods, and the functions that make networks
            is_class = isinstance(owner, type)
            rooms = [f"hpo_torchrl.{room}" for room in (_SAFE_ROOMS if is_class else ["modules"])]
        safe = all(_within(str(getattr(one, "__module__", "")), rooms) for one in (found, owner))
        if not safe:
            raise ValueError(
                f"{key}={path!r} of this run is not a class of this package that runs are built "
                f"from, and its folder may come from anyone. If you trust it, allow its module: "
                f"--allow {root} on the command line, allow=[{root!r}] in Python."
            )


def plugins(section: str) -> dict[str, str]:
    """Return the classes that installed packages offer for a section, by name.

    A package offers an environment in its ``pyproject.toml``::

        [project.entry-points."hpo_torchrl.problems"]
        battery = "my_package.battery:BatteryEnv"
    """
    found = entry_points(group=PLUGINS[section]) if section in PLUGINS else ()
    return {point.name: point.value.replace(":", ".") for point in found}


def locate(key: str, path: Any) -> Callable[..., Any]:
    """Return the class, class method or function with a full name.

    Raises:
        ValueError: it cannot be imported or called; the message names the key.
    """
    try:
        found = _locate(path)
    except Exception as error:
        cause = error if error.__cause__ is None else error.__cause__
        raise ValueError(
            f"{key}={path!r} cannot be imported ({first_line(cause)}): give the full name of a "
            "class, my_package.MyClass, in an installed module or one of the current directory."
        ) from error
    if not callable(found):
        raise ValueError(f"{key}={path!r} is no class or function but {type(found).__name__}.")
    return found


def accepted(function: Callable) -> dict[str, inspect.Parameter]:
    """Return the arguments that a function, class or class method takes, by name.

    ``**kwargs`` stands for the arguments of the next constructor: a class's own of the next class
    that it derives from, a class method's of its class.
    """
    found: dict[str, inspect.Parameter] = {}
    for parameters in _signatures(function):
        found |= {p.name: p for p in parameters if p.kind in _NAMED and p.name not in found}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    if isinstance(function, partial):
        found = {name: p for name, p in found.items() if name not in function.keywords}
    return found


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _signatures(function: Callable) -> Iterator[list[inspect.Parameter]]:
    function = function.func if isinstance(function, partial) else function
    owner = function if inspect.isclass(function) else getattr(function, "__self__", None)
    chain = [] if inspect.isclass(function) else [function]
    if isinstance(owner, type):
        # The constructors' own signatures: TorchRL's metaclass hides them.
        chain += [vars(cls)["__init__"] for cls in owner.__mro__ if "__init__" in vars(cls)]
    for target in chain:
        yield [p for p in inspect.signature(target).parameters.values() if p.name != "self"]


def _required(target: Callable) -> list[str]:
    first = next(_signatures(target))
    return [p.name for p in first if p.kind in _NAMED and p.default is p.empty]


def _target(section: str, settings: Mapping[str, Any]) -> Callable:
    return locate(f"{section}._target_", settings.get("_target_", _DEFAULTS.get(section)))


def _is_target(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _is_partial(section: str, settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("_partial_", section.rpartition(".")[2] in _PARTIAL))


def _targets(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """All targets of a configuration, with their keys."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            name = f"{place}.{key}" if place else str(key)
            if key == "_target_":
                yield name, entry
            else:
                yield from _targets(entry, name)
    elif isinstance(value, (list, tuple)):
        for i, entry in enumerate(value):
            yield from _targets(entry, f"{place}[{i}]")


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _collecting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the ``collect`` section that its algorithm is given."""
    given = {k: v for k, v in config["collect"].items() if k != "batch_size" and v is not None}
    target = _target("algorithm", config["algorithm"])
    if not getattr(target, "learns", True):
        return {}  # a rule collects nothing
    known = accepted(target)
    for key, value in given.items():
        if key not in known and _RENAMED.get(key) not in known:
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


def _load_tensor(key: str, name: str) -> torch.Tensor:
    path = Path(name)
    if path.suffix not in (".npy", ".pt"):
        raise ValueError(f"{key} must name a .npy or .pt file, got {name!r}.")
    if not path.is_file():
        raise ValueError(f"{key}={name!r} is not a file.")
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise ValueError(
            f"{key}={name!r} cannot be read as numbers: {first_line(error)}"
        ) from error
    if not isinstance(content, torch.Tensor):
        raise ValueError(f"{key}={name!r} must hold one tensor, got a {type(content).__name__}.")
    return content
