"""Targets: the classes that a configuration names, their arguments, and which can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from hpo_torchrl.core.checks import NAMED, accepted, did_you_mean, first_line, signatures
from hpo_torchrl.core.extras import MissingExtraError
from hpo_torchrl.experiments.files import choices_with, fixed_keys
from hpo_torchrl.modules.network import HybridNetwork
from hpo_torchrl.training.callbacks import Callback

# Sections that build a class of anybody's, and what their builder hands over itself.
BUILT = {
    "env": (),
    "policy": ("env",),
    "critic": ("env",),
    "algorithm": ("env", "policy", "critic", "seed"),
}
SECTIONS = (*BUILT, "collect", "evaluation", "trainer", "logger")
# Keys that runs of before they were there lack, and that change nothing of a run.
_LATER = ("logger.name", "logger.group", "logger.options")
_ALWAYS = ("seed", "device", "dtype", "gradients")
_DEFAULTS = {
    "policy": "hpo_torchrl.modules.HybridPolicy.for_env",
    "critic": "hpo_torchrl.modules.make_value_network",
}
# Arguments that every environment is given, if it takes them.
_SHARED = ("batch_size", "device", "dtype", "seed")
# Entry-point groups in which installed packages offer classes for a section.
PLUGINS = {"env": "hpo_torchrl.problems", "algorithm": "hpo_torchrl.algorithms"}
# Nested targets of these names are finished by who takes them: classes with some arguments.
_PARTIAL = ("loss", "network")
# Keys of a section that are no arguments of what it builds, besides its name in ``BUILT``.
_MARKS = ("_target_", "_partial_")
# Arguments that a policy network is given, of which the latter only if it takes them.
_OFFERED = (
    *("observation_dim", "num_discrete", "continuous_dim"),
    *("continuous_bounds", "branch_bounds", "num_heads", "action_scale", "device", "dtype"),
)
# Updates from which on a run with collect.compile=auto is compiled; see docs/performance.md.
_BREAK_EVEN = 200
# Rooms of this package whose classes any run's folder may name.
_REGISTRY = "hpo_torchrl.envs.gym"  # makes environments by names that may import modules
_SAFE_ROOMS = ("algorithms", "envs", "modules", "objectives", "problems")


def instantiate(section: str, settings: Mapping[str, Any], **given: Any) -> Any:
    """Build what a section names.

    Args:
        section: its name in messages: ``"env"``, ``"algorithm.loss"``, ...
        settings: ``_target_`` and the arguments, in which nested targets are built as well: a
            ``loss`` or ``network`` (or with ``_partial_: true``) as a partial of the class.
        given: further arguments.
    """
    target = target_of(section, settings)
    marks = (*_MARKS, "name") if section in BUILT else _MARKS
    arguments = {key: value for key, value in settings.items() if key not in marks}
    built = {key: _built(f"{section}.{key}", value) for key, value in arguments.items()}
    if not settings.get("_partial_", section.rpartition(".")[2] in _PARTIAL):
        return target(**given, **built)
    if not section.endswith(".network"):
        return partial(target, **built)
    known = accepted(target)

    def network(*sizes: int, **facts: Any) -> Any:
        # A network takes those of the offered facts that it asks for.
        return target(*sizes, **{key: facts[key] for key in facts if key in known}, **built)

    return network


def build_callbacks(settings: Any) -> list[Callback]:
    """Build the callbacks of a command, ``callbacks=[{_target_: my_package.MyCallback}]``.

    Args:
        settings: a list with ``_target_`` and arguments of each; ``None`` are none.

    Raises:
        TypeError: it is no such list, or builds something else.
        ValueError: a target cannot be found, or does not take an argument.
    """
    if settings is not None and not isinstance(settings, list):
        raise TypeError(
            "callbacks must be a list, as in 'callbacks=[{_target_: my_package.MyCallback}]', got "
            f"{settings!r}."
        )
    built = []
    for at, one in enumerate(settings or ()):
        name = f"callbacks[{at}]"
        check_keys(name, one if isinstance(one, Mapping) else {}, accepted(target_of(name, one)))
        built.append(instantiate(name, one))
        if not isinstance(built[-1], Callback):
            raise TypeError(
                f"{name}._target_ must build a Callback of hpo_torchrl.training, got a "
                f"{type(built[-1]).__name__}."
            )
    return built


def check_sections(config: Mapping[str, Any]) -> None:
    """Check that all sections are there, with those keys that every run has.

    Raises:
        TypeError: a section is no mapping.
        ValueError: a section or key is missing, or unknown.
    """

    def check(place: str, held: Mapping[str, Any], keys: Iterable[str], mappings: bool) -> None:
        for key in keys:
            name = f"{place}{key}"
            if key not in held:
                raise ValueError(f"{name} is missing; every run has it.")
            if mappings and not isinstance(held[key], Mapping):
                raise TypeError(f"{name} must hold keys and values, got {name}={held[key]!r}.")

    check("", config, SECTIONS, mappings=True)
    check("", config, _ALWAYS, mappings=False)
    for section in set(SECTIONS) - set(BUILT):
        always = [key for key in fixed_keys(section) if f"{section}.{key}" not in _LATER]
        check(f"{section}.", config[section], always, mappings=False)
        check_keys(section, config[section], fixed_keys(section))
    evaluation = config["evaluation"]
    check("evaluation.", evaluation, ("tests", "validation"), mappings=True)
    check("evaluation.tests.", evaluation["tests"], evaluation["tests"], mappings=True)


def check_config(config: Mapping[str, Any]) -> None:
    """Check the keys of all sections that build something, without building it.

    Raises:
        TypeError: a section that names a class is no mapping.
        ValueError: a target cannot be found, or a key is unknown or missing.
    """
    for section in ("env", "algorithm"):
        if not isinstance(name := config[section].get("name"), str):
            raise TypeError(f"{section}.name must be a text, which reports show; got {name!r}.")
    collecting(config)
    for section, given in BUILT.items():
        settings, target = config[section], target_of(section, config[section])
        for name in _PARTIAL:
            if settings.get(name) is not None:
                target_of(f"{section}.{name}", settings[name])
        check_keys(section, settings, known_keys(section, settings))
        for parameter in next(signatures(target)):
            required = parameter.kind in NAMED and parameter.default is parameter.empty
            if required and parameter.name not in (*settings, *given, *_SHARED):
                raise ValueError(
                    f"{section}.{parameter.name} must be given: {settings['_target_']} has no "
                    "default for it."
                )
        for name, nested in _targets(section, settings):
            if name != section:
                check_keys(name, nested, accepted(target_of(name, nested)))
    tests = config["evaluation"]["tests"]
    places = {f"evaluation.tests.{name}": test for name, test in tests.items()}
    places["evaluation.validation"] = config["evaluation"]["validation"]
    own = ("num_steps", "skip", "objective", "discount", "like")
    known = [*known_keys("env", config["env"]), *_SHARED, *own]
    for place, changes in places.items():
        check_keys(place, changes, known)


def known_keys(section: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the arguments that a section may set, without those that it is given anyway."""
    target, network = target_of(section, settings), settings.get("network")
    known, given = dict.fromkeys(accepted(target)), BUILT[section]
    if section == "policy" and getattr(target, "__name__", None) == "for_env":
        own = HybridNetwork if network is None else target_of("policy.network", network)
        known, given = dict.fromkeys([*accepted(own), *known]), (*given, *_OFFERED)
    elif section == "critic" and network is not None:
        known = {"network": None}
    return [name for name in known if name not in given]


def check_keys(section: str, settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise a ``ValueError`` that names the first unknown key, its value and the known ones."""
    for key, value in settings.items():
        if key not in known and key not in (*_MARKS, "name"):
            others = choices_with(section, key)
            hint = f" {' and '.join(others)} would know it." if others else ""
            raise ValueError(
                f"Unknown key {section}.{key}={value!r}.{did_you_mean(key, known)}{hint} "
                f"Known keys of {section}: {', '.join(known)}."
            )


def collecting(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the ``collect`` section that its algorithm is given.

    Raises:
        ValueError: the algorithm does not take one of them.
    """
    target = target_of("algorithm", config["algorithm"])
    if not getattr(target, "learns", True):
        return {}  # a rule collects nothing
    known = {*accepted(target), "gradients"}
    if not getattr(target, "differentiable", True):
        known -= {"gradients", "checkpoint_steps"}  # of the simulator's gradients
        known -= set() if getattr(target, "compiles_passes", False) else {"compile"}
    settings = {**config["collect"]}
    pays = "compile" in known and config["trainer"]["num_updates"] >= _BREAK_EVEN
    if settings.get("compile") == "auto" and not pays:
        settings["compile"] = None
    given = {f"collect.{key}": value for key, value in settings.items()}
    del given["collect.batch_size"]  # the environment's
    for key, value in {**given, "gradients": config.get("gradients")}.items():
        if value and key.removeprefix("collect.") not in known:
            raise ValueError(
                f"{key}={value!r} cannot be given to algorithm={config['algorithm'].get('name')}, "
                "which has no use for it; leave it null."
            )
    return {key: value for key, value in settings.items() if key in known and value is not None}


def check_targets(config: Any, allow: Sequence[str] = ()) -> None:
    """Check that a configuration from a folder names only classes that may be built.

    These are classes of this package, of installed plug-ins, and of modules that the caller names.

    Args:
        config: the configuration, or a part of it.
        allow: names of modules, such as ``"my_package"``, whose classes may be built.

    Raises:
        ValueError: another class is named; the message says how to allow it.
    """
    installed = [path for section in PLUGINS for path in plugins(section).values()]
    trusted = [*allow, *(path.split(".")[0] for path in installed)]
    for name, section in _targets("", config):
        path = str(section["_target_"])
        found = target_of(name, section) if _within(path, [*trusted, "hpo_torchrl"]) else None
        owner = getattr(found, "__self__", found)
        # Its own classes, their class methods, and the functions that make networks.
        own = _SAFE_ROOMS if isinstance(owner, type) else ["modules"]
        known = [*trusted, *(f"hpo_torchrl.{room}" for room in own)]
        if not all(_within(str(getattr(one, "__module__", "")), known) for one in (found, owner)):
            root = path.split(".")[0]
            raise ValueError(
                f"{name}._target_={path!r} of this run is not a class of this package that runs "
                f"are built from, and its folder may come from anyone. If you trust it, allow its "
                f"module: --allow {root} on the command line, allow=[{root!r}] in Python."
            )
        # A name in Gymnasium's registry may ask for a module to be imported.
        module, colon, _ = str(section.get("id", "")).rpartition(":")
        if colon and path.startswith(_REGISTRY) and not _within(module, trusted):
            raise ValueError(
                f"{name}.id={section['id']!r} of this run imports {module}, and its folder may "
                f"come from anyone. If you trust it, allow it: --allow {module} on the command "
                f"line, allow=[{module!r}] in Python."
            )


def plugins(section: str) -> dict[str, str]:
    """Return the classes that installed packages offer for a section, by name.

    A package offers an environment in its ``pyproject.toml``::

        [project.entry-points."hpo_torchrl.problems"]
        battery = "my_package.battery:BatteryEnv"
    """
    found = entry_points(group=PLUGINS[section]) if section in PLUGINS else ()
    return {point.name: point.value.replace(":", ".") for point in found}


def target_of(section: str, settings: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the class, class method or function that a section names.

    Raises:
        TypeError: the section is no mapping.
        ValueError: it cannot be imported or called; the message names the key.
    """
    if not isinstance(settings, Mapping):
        raise TypeError(
            f"{section} must name a class, as in {section}._target_=my_package.MyClass; got "
            f"{section}={settings!r}."
        )
    path = settings.get("_target_", _DEFAULTS.get(section))
    try:
        found = _located(path)
        if callable(found):
            return found
        cause = f"it is a {type(found).__name__}"
    except MissingExtraError as error:
        raise ValueError(f"{section}: {error}") from error
    except Exception as error:
        cause = first_line(error)
    raise ValueError(
        f"{section}._target_={path!r} cannot be imported or called ({cause}): give the full name "
        "of a class, my_package.MyClass, in an installed module or one of the current directory."
    )


def _located(path: str) -> Any:
    """Return what a full name stands for; an import that fails says why."""
    name, *parts = path.split(".")
    found: Any = import_module(name)
    for part in parts:
        name = f"{name}.{part}"
        found = getattr(found, part) if hasattr(found, part) else import_module(name)
    return found


def _built(section: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_built(section, entry) for entry in value]
    is_target = isinstance(value, Mapping) and "_target_" in value
    return instantiate(section, value) if is_target else value


def _targets(place: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All sections in a value that name a target, with their names."""
    entries: dict[str, Any] = {}
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield place, value
        entries = {f"{place}.{key}".lstrip("."): entry for key, entry in value.items()}
    elif isinstance(value, (list, tuple)):
        entries = {f"{place}[{i}]": entry for i, entry in enumerate(value)}
    for name, entry in entries.items():
        yield from _targets(name, entry)


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
