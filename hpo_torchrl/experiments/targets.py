"""Targets: the classes that a configuration names, their arguments, and which can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from hydra._internal.utils import _locate

from hpo_torchrl.core.checks import NAMED, accepted, did_you_mean, first_line, signatures
from hpo_torchrl.modules.network import HybridNetwork

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
# Nested targets of these names are finished by who takes them: classes with some arguments.
_PARTIAL = ("loss", "network")
# Arguments that a policy network is given besides its sizes, if it takes them.
_FACTS = ("continuous_bounds", "branch_bounds", "num_heads", "action_scale", "device", "dtype")
_SIZES = ("observation_dim", "num_discrete", "continuous_dim")
# Rooms of this package whose classes any run's folder may name.
_SAFE_ROOMS = ("algorithms", "envs", "modules", "objectives", "problems")


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
    built = {key: _built(f"{section}.{key}", value) for key, value in arguments.items()}
    known = accepted(target)
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
    target = target_of(section, settings)
    known: dict[str, Any] = accepted(target)
    required = [] if _is_partial(section, settings) else _required(target)
    own = settings.get("network")
    if section == "policy" and getattr(target, "__name__", None) == "for_env":
        network = HybridNetwork if own is None else target_of("policy.network", own)
        known = {**accepted(network), **known}
        given = (*given, *_SIZES, *_FACTS)
    elif section == "critic" and own is not None:
        known, required = {"network": None}, []
    known = {name: known[name] for name in known if name not in given}
    left_out = ("_target_", "_partial_", *(["name"] if section in BUILT else []))
    arguments = {key: value for key, value in settings.items() if key not in left_out}
    check_keys(section, arguments, known)
    for key, value in _nested(section, arguments):
        check_section(key, value)
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
    for key, path in _targets("", config):
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


def _required(target: Callable) -> list[str]:
    first = next(signatures(target))
    return [p.name for p in first if p.kind in NAMED and p.default is p.empty]


def target_of(section: str, settings: Mapping[str, Any]) -> Callable:
    """Return what a section builds; see :func:`locate`."""
    return locate(f"{section}._target_", settings.get("_target_", _DEFAULTS.get(section)))


def _is_target(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _is_partial(section: str, settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("_partial_", section.rpartition(".")[2] in _PARTIAL))


def _built(section: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_built(f"{section}[{i}]", entry) for i, entry in enumerate(value)]
    return instantiate(section, value) if _is_target(value) else value


def _nested(place: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The outermost sections with a target in a value, with their names."""
    if isinstance(value, Mapping):
        entries = [(f"{place}.{key}" if place else str(key), entry) for key, entry in value.items()]
    else:
        entries = [(f"{place}[{i}]", entry) for i, entry in enumerate(value)]
    for name, entry in entries:
        if _is_target(entry):
            yield name, entry
        elif isinstance(entry, (Mapping, list, tuple)):
            yield from _nested(name, entry)


def _targets(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """All targets in a value, with their keys."""
    for name, section in _nested(place, value):
        yield f"{name}._target_", section["_target_"]
        yield from _targets(name, section)


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
