"""Configurations: YAML and overrides, composed by Hydra, named, checked, and read from a run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from hpo_torchrl.core.checks import did_you_mean
from hpo_torchrl.experiments.build import check_config
from hpo_torchrl.experiments.targets import BUILT, check_targets, plugins
from hpo_torchrl.training.run_folder import RunFolder

_PACKAGE = Path(__file__).parents[1]
# The wheel carries the configs inside the package; a checkout has them beside it.
CONFIGS = next(
    path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()
)
# Sections whose keys are those of a constructor, which refuses unknown ones itself.
_FREE = (*(f"{name}." for name in BUILT), "evaluation.validation.", "evaluation.tests.")
# Keys of a command, not of a run: where it goes and what is said about it.
NOT_SETTINGS = ("output_dir", "resume", "num_seeds", "sweep_dir", "sweep_estimate")


def compose_config(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
    """Return the configuration of a run under these settings, as ``hpo-train`` resolves it.

    Args:
        overrides: ``key=value`` texts as on the command line.
        config_dir: a folder of further YAML files, laid out like ``configs/``.

    Raises:
        ValueError: a key or file is unknown, or a value cannot be read; the message names it.
    """
    return run_settings(compose_settings(overrides, config_dir))


def compose_settings(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
    """Do what :func:`compose_config` does, and keep the keys of the command."""
    with hydra_session():
        return resolve(compose_worded(prepare(overrides, config_dir)))


def run_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run is bound to: without the keys of the command."""
    return {key: value for key, value in settings.items() if key not in NOT_SETTINGS}


def load_config(run_dir: str | Path, allow: Sequence[str] = ()) -> dict[str, Any]:
    """Read the configuration of a run, and check that it is safe to build.

    Args:
        run_dir: folder of the run.
        allow: modules, besides this package and installed plug-ins, whose classes it may name.

    Raises:
        RunFolderError: the folder holds no run, or its configuration is damaged.
        ValueError: the configuration names a class of another module.
    """
    config = RunFolder(run_dir).read_config()
    check_targets(config, allow)
    return config


def choices(section: str) -> list[str]:
    """Return the names that a section can be chosen by: of YAML files and of plug-ins."""
    files = (path.stem for path in (CONFIGS / section).glob("*.yaml"))
    return sorted({*files, *plugins(section)})


@contextmanager
def hydra_session() -> Iterator[None]:
    """Let Hydra find the configs of this package, installed plug-ins, and empty sections."""
    store = ConfigStore.instance()
    for section in BUILT:
        store.store(group=section, name="custom", node={})
        for name, target in plugins(section).items():
            store.store(group=section, name=name, node={"_target_": target})
    with initialize_config_dir(str(CONFIGS), job_name="hpo-train", version_base="1.3"):
        yield


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
    return f"++{override}" if override.startswith(_FREE) else override


def compose_worded(overrides: Sequence[str]) -> DictConfig:
    """Compose with Hydra's own section; an error names key, value and fix as a ``ValueError``."""
    try:
        return compose("train", list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(str(error), overrides)) from error


def resolve(config: DictConfig, hydra_config: DictConfig | None = None) -> dict[str, Any]:
    """Return a composed configuration as plain values, with names and checked keys.

    Args:
        config: the configuration; with Hydra's own section if that is not given.
        hydra_config: Hydra's own section.

    Raises:
        ValueError: a key is unknown or missing; the message names it.
    """
    chosen = (config.hydra if hydra_config is None else hydra_config).runtime.choices
    with read_write(config), open_dict(config):
        config.pop("hydra", None)
    try:
        settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(" ".join(str(error).split())) from error
    for section in ("env", "algorithm"):
        name = settings[section].pop("name", None) or chosen[section]
        if name == "custom":
            name = str(settings[section].get("_target_")).rpartition(".")[2]
        settings[section] = {"name": name, **settings[section]}
    settings["env"] = _absolute(settings["env"])
    check_config(settings)
    return settings


def _absolute(value: Any) -> Any:
    """Name files by their full paths, so that a run can be resumed from another folder."""
    if isinstance(value, Mapping):
        return {key: _absolute(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_absolute(entry) for entry in value]
    is_file = isinstance(value, str) and Path(value).suffix and Path(value).is_file()
    return str(Path(value).absolute()) if is_file else value


def _quote_folder(argument: str) -> str:
    """Quote a folder for Hydra, for which commas and signs in a run's name have a meaning."""
    key, _, folder = argument.partition("=")
    plain = re.fullmatch(r"[\w./~+-]*|'.*'|\".*\"|.*\$\{.*", folder)
    if key not in ("output_dir", "resume", "sweep_dir") or plain:
        return argument
    escaped = folder.replace("'", "\\'")
    return f"{key}='{escaped}'"


def explain(message: str, overrides: Sequence[str]) -> str:
    """Say what is wrong with an override, given Hydra's own words, within :func:`hydra_session`."""
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown is None:
        return " ".join(message.split())
    key = unknown.group(1)
    given = next((text for text in overrides if text.split("=", 1)[0].lstrip("+~") == key), key)
    section, _, leaf = key.rpartition(".")
    config = compose("train")
    node = OmegaConf.select(config, section) if section else config
    if not isinstance(node, DictConfig):
        known = [str(name) for name in config]
        return f"Unknown key in {given!r}: there is no section {section!r}. Sections: {known}."
    known = [str(name) for name in node]
    place = f"{section}." if section else ""
    return (
        f"Unknown key in {given!r}.{did_you_mean(leaf, known)} "
        f"Known keys: {', '.join(place + name for name in known)}."
    )
