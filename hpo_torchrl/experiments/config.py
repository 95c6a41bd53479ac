"""Configurations: YAML and overrides, composed by Hydra, named, checked, and read from a run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from torch.utils._pytree import tree_map

from hpo_torchrl.core.checks import did_you_mean
from hpo_torchrl.experiments.pins import check_files, is_file, moved, pinned
from hpo_torchrl.experiments.targets import BUILT, check_config, check_targets, known_keys, plugins
from hpo_torchrl.training.run_folder import RunFolder

_PACKAGE = Path(__file__).parents[1]
# The wheel carries the configs inside the package; a checkout has them beside it.
CONFIGS = next(
    path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()
)
SECTIONS = (*BUILT, "collect", "evaluation", "trainer", "logger")
# Sections whose keys are those of a constructor, which may take more than the YAML lists.
_FREE = (*BUILT, "evaluation.validation", "evaluation.tests")
# Keys of a command, not of a run: where it goes and what is said about it.
COMMAND_KEYS = (
    *("output_dir", "resume", "changed_files", "num_seeds", "sweep_dir"),
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
                f"{text!r} is of hpo-train: in Python use folder=... and resume=True, with "
                "hpo-gradients use --output DIR, or give the folder of the run."
            )
    return compose_command(overrides, config_dir, **settings)[0]


def compose_command(
    overrides: Sequence[str], config_dir: str | None = None, **settings: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do what :func:`compose_config` does, and return the values of ``COMMAND_KEYS`` besides."""
    with hydra_session():
        config = compose("train", prepare(overrides, config_dir), return_hydra_config=True)
        for section in _FREE:
            OmegaConf.set_struct(OmegaConf.select(config, section), False)
        for key, value in settings.items():
            plain = json.loads(json.dumps(value, default=partial(_plain, key)))
            OmegaConf.update(config, _full_name(key, config), plain)
        return resolve(config)


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
    parsed = OverridesParser.create().parse_overrides(texts)
    for words in BasicSweeper.split_arguments(parsed, None)[0]:
        whole = [*config.hydra.overrides.hydra, *words]
        runs.append((words, resolve(compose("train", whole, return_hydra_config=True))[0]))
    return config, runs


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
        run_dir: folder of the run.
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
    config = RunFolder(run_dir).read_config(of_seeds=of_seeds)
    check_targets(config, allow)
    config = moved(config, files or {})
    check_files(config, run_dir, config.get("files", {}) if changed_files else files or {})
    return config


def choices(section: str) -> list[str]:
    """Return the names that a section can be chosen by: of YAML files and of plug-ins."""
    files = (path.stem for path in (CONFIGS / section).glob("*.yaml"))
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
    """
    keys = {text.split("=", 1)[0] for text in overrides}
    folder = [] if config_dir is None else [f"hydra.searchpath=['{Path(config_dir).absolute()}']"]
    own = [
        f"{section}=custom"
        for section in BUILT
        if section not in keys and keys & {f"{section}._target_", f"{section}.network._target_"}
    ]
    return [*folder, *own, *(_quote_folder(free_key(text)) for text in overrides)]


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
    settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
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


def _quote_folder(argument: str) -> str:
    """Quote a folder for Hydra, for which commas and signs in a run's name have a meaning."""
    key, _, folder = argument.partition("=")
    plain = re.fullmatch(r"[\w./~+-]*|'.*'|\".*\"|.*\$\{.*", folder)
    if key not in ("output_dir", "resume", "sweep_dir") or plain:
        return argument
    escaped = folder.replace("'", "\\'")
    return f"{key}='{escaped}'"


def _full_name(key: str, config: DictConfig) -> str:
    """Return the full name of a setting that may be given by its own name alone."""
    if key.split(".")[0] in config:
        return key
    # A key that the files do not list may still be an argument of what a section builds.
    listed = {section: [*map(str, config[section])] for section in SECTIONS}
    taken = {section: known_keys(section, config[section]) for section in BUILT}
    places = [f"{section}.{key}" for section, names in listed.items() if key in names]
    found = places or [f"{section}.{key}" for section, names in taken.items() if key in names]
    if len(found) == 1:
        return found[0]
    hint = did_you_mean(key, chain(*listed.values(), *taken.values()))
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
    if not isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        return " ".join(str(error).split())
    given = re.search(r"To append to your config use \+(.*)", str(error))
    where = f" in {given.group(1)!r}" if given else ""
    known = [str(name) for name in cause.parent_node or () if name != "hydra"]
    return (
        f"Unknown key {cause.full_key}{where}.{did_you_mean(str(cause.key), known)} "
        f"Known keys: {', '.join(known)}."
    )
