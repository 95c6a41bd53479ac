"""Configurations: YAML and overrides, composed by Hydra, named, checked, and read from a run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from torch.utils._pytree import tree_map

from hpo_torchrl.core.checks import did_you_mean
from hpo_torchrl.experiments.files import CONFIGS, comment_on, explained
from hpo_torchrl.experiments.pins import check_files, is_file, moved, pinned
from hpo_torchrl.experiments.targets import (
    BUILT,
    SECTIONS,
    check_config,
    check_sections,
    check_targets,
    known_keys,
    plugins,
)
from hpo_torchrl.training.policy_folder import PolicyFolder
from hpo_torchrl.training.run_folder import RunFolder, RunFolderError

# Sections whose keys are those of a constructor, which may take more than the YAML lists.
_FREE = (*BUILT, "evaluation.validation", "evaluation.tests", "logger.options")
# Keys of a command, not of a run: where it goes and what is said about it.
COMMAND_KEYS = (
    "output_dir",
    "resume",
    "changed_files",
    "num_seeds",
    "callbacks",
    "sweep_dir",
    "sweep_estimate",
)


def compose_config(
    overrides: Sequence[str], config_dir: str | None = None, **settings: Any
) -> dict[str, Any]:
    """Return the configuration of a run under these settings, as ``hpo-train`` resolves it.

    Args:
        overrides: ``key=value`` texts as on the command line.
        config_dir: a folder of further YAML files, laid out like ``configs/``.
        settings: further values, by full name (``"policy.hidden"``), by section, or by their own
            name where only one section has it.

    Raises:
        ValueError: a key or file is unknown, or a value cannot be read; the message names it.
        TypeError: a value of ``settings`` is not a plain one.
    """
    for text in (*overrides, *settings):
        if key_of(text) in COMMAND_KEYS:
            raise ValueError(
                f"{text!r} is of hpo-train: in Python use folder=..., resume=True and "
                "callbacks=[...], with hpo-gradients use --output DIR, or give the run's folder."
            )
    return compose_command(overrides, config_dir, **settings)[0]


def compose_command(
    overrides: Sequence[str], config_dir: str | None = None, **settings: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do what :func:`compose_config` does, and return the values of ``COMMAND_KEYS`` besides."""
    with hydra_session():
        config = compose("train", prepare(overrides, config_dir), return_hydra_config=True)
        for section in _FREE:
            if isinstance(part := OmegaConf.select(config, section), DictConfig):
                OmegaConf.set_struct(part, False)
        for key, value in settings.items():
            plain = json.loads(json.dumps(value, default=partial(_plain, key)))
            OmegaConf.update(config, _full_name(key, config), plain)
        return resolve(config)


def explain_config(overrides: Sequence[str], config_dir: str | None = None) -> str:
    """Return the settings of a run, as the files that it is composed of explain them."""
    with hydra_session():
        config = compose("train", prepare(overrides, config_dir), return_hydra_config=True)
        return explained(
            config.hydra.runtime.choices, CONFIGS if config_dir is None else config_dir
        )


def compose_sweep(
    overrides: Sequence[str], config_dir: str | None = None
) -> tuple[DictConfig, list[tuple[list[str], dict[str, Any]]]]:
    """Compose all runs of a sweep, within :func:`hydra_session`.

    Returns:
        The configuration of the sweep, with the keys of the command and Hydra's own, and for each
        run the overrides that make it and its configuration.
    """
    hydra = GlobalHydra.instance().hydra
    config = hydra.compose_config(
        "train", prepare(overrides, config_dir), RunMode.MULTIRUN, with_log_configuration=True
    )
    # An experiment's keys as the command line's: the same key given there takes their place.
    params = (config.hydra.sweeper.get("params") or {}).items()
    texts = [*(free_key(f"{key}={value}") for key, value in params), *config.hydra.overrides.task]
    runs = []
    for words in _combinations(texts):
        whole = [*config.hydra.overrides.hydra, *words]
        runs.append((words, resolve(compose("train", whole, return_hydra_config=True))[0]))
    return config, runs


def _combinations(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield the overrides of each run: every combination of the values that keys are given.

    Raises:
        ValueError: a key is given a range to draw from.
    """
    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides([*texts]):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ValueError(
                f"{override.input_line!r} is an interval, and a sweep needs values: give them by "
                "commas; examples/search.py draws from intervals."
            )
        swept = override.is_sweep_override()
        values = (
            override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
        )
        key = override.get_key_element()
        choices[key] = [f"{key}={value}" for value in values]
    yield from map(list, product(*choices.values()))


def load_config(
    run_dir: str | Path,
    allow: Sequence[str] = (),
    *,
    of_seeds: bool = False,
    files: Mapping[str, Any] | None = None,
    changed_files: bool = False,
) -> dict[str, Any]:
    """Read the configuration of a run, and check that it is safe to build and of the same data.

    Args:
        run_dir: folder of the run, or of its policy alone (``policy/``).
        allow: modules, besides this package and installed plug-ins, whose classes it may name.
        of_seeds: see :meth:`~hpo_torchrl.training.RunFolder.read_config`.
        files: where files of the run lie now, by their names such as ``"env.path"``. Those that are
            named here may have another content; the units of the policy stay.
        changed_files: whether any file may have another content.

    Raises:
        RunFolderError: the folder holds no run, or its configuration is damaged.
        FileNotFoundError: a file that it was trained on is missing.
        ValueError: the configuration names a class of another module, or such a file has another
            content.
    """
    folder, kept = RunFolder(run_dir), PolicyFolder(run_dir)
    config = kept.read_config() if kept.found else folder.read_config(of_seeds=of_seeds)
    check_targets(config, allow)
    try:
        check_sections(config)
        check_config(config)
    except (TypeError, ValueError) as error:
        file = kept.description if kept.found else folder.seeds if of_seeds else folder.config
        raise RunFolderError(f"{file} is damaged, or of another version: {error}") from error
    config = moved(config, files or {})
    check_files(config, run_dir, config.get("files", {}) if changed_files else files or {})
    return config


def choices(section: str) -> list[str]:
    """Return the names that a section can be chosen by: of YAML files and of plug-ins."""
    folder = CONFIGS / section
    files = (p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))
    return sorted({*files, *plugins(section)})


@contextmanager
def hydra_session() -> Iterator[None]:
    """Let Hydra find the configs of this package, installed plug-ins, and empty sections.

    Raises:
        ValueError: Hydra refused something in this time; the message names key, value and fix.
    """
    store = ConfigStore.instance()
    for section in BUILT:
        store.store(group=section, name="custom", node={})
        for name, target in plugins(section).items():
            store.store(group=section, name=name, node={"_target_": target})
    try:
        with initialize_config_dir(str(CONFIGS), job_name="hpo-train", version_base="1.3"):
            yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_worded(error)) from error


def prepare(overrides: Sequence[str], config_dir: str | None = None) -> list[str]:
    """Return overrides of the command line as Hydra is to read them.

    Folders are quoted; a key of a section that builds something may be new (its constructor
    decides); a class of one's own starts from an empty section, without another one's values.

    Raises:
        NotADirectoryError: there is no such ``config_dir``.
        ValueError: an override cannot be read.
    """
    keys = {text.split("=", 1)[0].lstrip("+") for text in overrides}
    folder = []
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise NotADirectoryError(f"--config-dir {config_dir} is not a folder.")
        folder = [f"hydra.searchpath=['{Path(config_dir).absolute()}']"]
    own = [
        f"{section}=custom"
        for section in BUILT
        if section not in keys and keys & {f"{section}._target_", f"{section}.network._target_"}
    ]
    texts = [_quote_folder(free_key(text)) for text in overrides]
    for text, prepared in zip(overrides, texts, strict=True):
        _check_override(text, prepared, overrides)
    return [*folder, *own, *texts]


def free_key(override: str) -> str:
    """Let Hydra take a key that the YAML of its section does not list."""
    return f"++{override}" if override.startswith(tuple(f"{name}." for name in _FREE)) else override


def key_of(override: str) -> str:
    """Return the key of an override."""
    return override.split("=", 1)[0].lstrip("+~")


def resolve(config: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a composed configuration, and the keys of the command, as plain and checked values.

    Args:
        config: what Hydra composed, with its own section.

    Raises:
        ValueError: a key is unknown or missing; the message names it.
    """
    chosen = config.hydra.runtime.choices
    with read_write(config), open_dict(config):
        config.pop("hydra")
    for missing in sorted(OmegaConf.missing_keys(config)):
        section, *_, key = missing.split(".")
        comment = comment_on(section, str(chosen.get(section)), key)
        raise ValueError(
            f"{missing} must be given, as in {missing}=VALUE: {comment or 'it has no default'}."
        )
    settings: Any = OmegaConf.to_container(config, resolve=True)
    check_sections(settings)
    for key in COMMAND_KEYS:
        if isinstance(settings.setdefault(key), (dict, list)) and key != "callbacks":
            raise TypeError(f"{key} must be one value, got {settings[key]}.")
    for section in ("env", "algorithm"):
        name = settings[section].pop("name", None) or chosen[section]
        if name == "custom":
            name = str(settings[section].get("_target_")).rpartition(".")[2]
        settings[section] = {"name": name, **settings[section]}
    command = {key: settings.pop(key) for key in COMMAND_KEYS}
    check_config(settings)
    return pinned(tree_map(_absolute, settings)), command


def _absolute(value: Any) -> Any:
    """Name a file by its full path, so that a run can be resumed from another folder."""
    return str(Path(value).absolute()) if is_file(value) else value


def _check_override(text: str, prepared: str, overrides: Sequence[str]) -> None:
    """Check one of several overrides, as given and as prepared for Hydra."""
    try:
        override = OverridesParser.create().parse_override(prepared)
    except HydraException as error:
        raise ValueError(_unreadable(text, overrides)) from error
    value, section, sections = override.value(), override.key_or_group, {*SECTIONS, "experiment"}
    if not section:
        raise ValueError(_unreadable(text, overrides))
    named = isinstance(value, (str, list)) or override.is_sweep_override() or override.is_delete()
    if section in sections and not named and (section, value) != ("experiment", None):
        inner = next(iter(value.items()), None) if isinstance(value, dict) else None
        key, own = inner or ("KEY", "VALUE")
        raise ValueError(
            f"{text!r}: {section} is chosen by its name, one of {', '.join(choices(section))}; "
            f"its keys are given one by one, as in {section}.{key}={own}."
        )


def _unreadable(text: str, overrides: Sequence[str]) -> str:
    """Say how an override that Hydra cannot read should be written."""
    joined = re.sub(r"\s*=\s*", "=", " ".join(overrides)).split()
    whole = [word for word in joined if word not in overrides and text in word.split("=")]
    if whole:
        return f"{text!r} is no setting: write {whole[0]} without blanks around the sign."
    if "=" not in text.strip("="):
        return f"{text!r} is no setting: write KEY=VALUE, as in env.num_items=3."
    return (
        f"{text!r} cannot be read: is a bracket, brace or quote open? Quote for the shell what "
        "holds blanks, braces or brackets, as in 'env.demand={name: normal, mean: 10}'."
    )


def _quote_folder(argument: str) -> str:
    """Quote a folder for Hydra, for which commas and signs in a run's name have a meaning."""
    key, _, folder = argument.partition("=")
    plain = re.fullmatch(r"[\w./~+-]*|'.*'|\".*\"|.*\$\{.*", folder)
    if key not in ("output_dir", "resume", "sweep_dir") or plain:
        return argument
    escaped = folder.replace("'", "\\'")
    return f"{key}='{escaped}'"


def full_names(key: str, config: DictConfig | None = None) -> tuple[list[str], str]:
    """Return the full names of a setting that is given by its own name alone.

    Args:
        key: its own name.
        config: the configuration; the default one by default.

    Returns:
        The names, and a hint where there is none, which may be empty.
    """
    if config is None:
        with hydra_session():
            config = compose("train")
    if key.split(".")[0] in config:
        return [key], ""
    # A key that the files do not list may still be an argument of what a section builds.
    parts = {section: config.get(section) for section in SECTIONS}
    listed = {section: [*map(str, part)] for section, part in parts.items() if part}
    taken = {section: known_keys(section, parts[section]) for section in BUILT if parts[section]}
    places = [f"{section}.{key}" for section, names in listed.items() if key in names]
    found = places or [f"{section}.{key}" for section, names in taken.items() if key in names]
    return found, did_you_mean(key, chain(*listed.values(), *taken.values()))


def _full_name(key: str, config: DictConfig) -> str:
    """Return the full name of a setting that may be given by its own name alone."""
    found, hint = full_names(key, config)
    if len(found) == 1:
        return found[0]
    if found:
        hint = f" Name one of {', '.join(found)}, as in train(..., **{{{found[0]!r}: ...}})."
    raise ValueError(
        f"Unknown setting {key!r}: {len(found)} sections have it.{hint} Sections and their "
        "settings stand in configs/; hpo-train --cfg prints them all."
    )


def _plain(key: str, value: Any) -> Any:
    """Return a value that JSON does not know as one that it does."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (torch.dtype, Path)):
        return str(value).removeprefix("torch.")
    raise TypeError(
        f"{key} must be a plain value (number, text, list or mapping), got {type(value).__name__}; "
        "an environment with other arguments is given as an object: train(MyEnv(...))."
    )


def _worded(error: Exception) -> str:
    """Say which key Hydra or OmegaConf does not know, and which there are; else what they say."""
    cause = error.__cause__ or error
    if isinstance(error, MissingConfigException) and error.options is not None:
        section, _, name = str(error.missing_cfg_file).rpartition("/")
        known = [option for option in error.options if option != "custom"]
        return (
            f"{section}={name} is unknown.{did_you_mean(name, known)} "
            f"{section} is one of {', '.join(known)}."
        )
    if not isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        return " ".join(str(error).split())
    given = re.search(r"To append to your config use \+(.*)", str(error))
    where = f" in {given.group(1)!r}" if given else ""
    node = cause.parent_node
    known = [str(name) for name in node or () if name != "hydra"]
    hint = did_you_mean(str(cause.key), known)
    if isinstance(node, DictConfig) and {*SECTIONS} & {*node}:  # at the top
        found = full_names(str(cause.key), node)[0]
        hint = f" Did you mean {' or '.join(found)}?" if found else hint
    return f"Unknown key {cause.full_key}{where}.{hint} Known keys: {', '.join(known)}."
