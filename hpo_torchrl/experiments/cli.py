"""The commands ``hpo-train``, ``hpo-eval`` and ``hpo-gradients``."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

# Before torch is loaded: threads that wait for each other sleep. Waiting awake, they are a quarter
# faster on free cores, and two to four times slower beside anything else that runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpo_torchrl.algorithms import NonFiniteError
from hpo_torchrl.core.checks import check_int, did_you_mean
from hpo_torchrl.experiments.jobs import make_job, train_job
from hpo_torchrl.experiments.run import (
    NOT_SETTINGS,
    evaluate_run,
    gradients_run,
    load_config,
    run_settings,
    train_run,
)
from hpo_torchrl.experiments.seeds import load_seeds, seed_folder, train_seeds
from hpo_torchrl.experiments.sweep import SweepRefused, shows_bars
from hpo_torchrl.reporting import format_gradients, format_seeds, format_summary
from hpo_torchrl.training import CheckpointError

_PACKAGE = Path(__file__).parents[1]
# The wheel carries the configs inside the package; a checkout has them beside it.
CONFIGS = next(
    path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()
)
_INTERRUPTED = (
    "interrupted; a training goes on with hpo-train resume=FOLDER, a sweep with its own command."
)


def train() -> None:
    """Train from the command line: ``hpo-train [KEY=VALUE ...]``; see ``configs/``.

    With ``--multirun`` a sweep, which goes on where it stopped when the command is given again.
    """
    sys.argv[1:] = [_quote_folder(argument) for argument in sys.argv[1:]]
    _check_overrides(sys.argv[1:])
    _or_exit("hpo-train", _start_hydra)


def _start_hydra() -> None:
    try:
        _hydra_train()
    except SweepRefused as refused:
        cause = refused.__cause__
        if isinstance(cause, (HydraException, OmegaConfBaseException)):
            _check_overrides(refused.overrides)  # exits, with the words for it
        if cause is not None:
            raise cause from None
        raise


@hydra.main(config_path=str(CONFIGS), config_name="train", version_base="1.3")
def _hydra_train(config: DictConfig) -> Any:
    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    if settings.mode == RunMode.MULTIRUN:
        job = make_job(config, overrides, settings.runtime.choices.get("experiment"))
        return train_job(job, progress=shows_bars(settings) and config.trainer.progress)
    return _or_exit("hpo-train", lambda: _train(config, overrides))


def evaluate() -> None:
    """Evaluate a run from the command line: ``hpo-eval DIR``."""
    parser = argparse.ArgumentParser(
        prog="hpo-eval", description="Evaluate the newest checkpoint of a run on its tests."
    )
    parser.add_argument("run_dir", metavar="DIR", help="folder of the run")
    parser.add_argument("--device", help="where to evaluate; the run's own device by default")
    given = parser.parse_args()
    _or_exit(
        "hpo-eval", lambda: print(format_summary(evaluate_run(given.run_dir, device=given.device)))
    )


def gradients() -> None:
    """Measure gradient estimators from the command line: ``hpo-gradients DIR``, or settings."""
    parser = argparse.ArgumentParser(
        prog="hpo-gradients",
        description="Compare gradient estimators: signal, noise, alignment and bias of each.",
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="DIR | KEY=VALUE",
        help="folder of a run, whose newest checkpoint is measured; or settings as of hpo-train, "
        "whose untrained policy is",
    )
    parser.add_argument("--output", metavar="DIR", help="folder of gradients.csv and gradients.png")
    parser.add_argument("--batches", type=int, default=40, help="batches per estimator")
    parser.add_argument("--reference", type=int, default=160, help="batches of the reference")
    parser.add_argument("--seed", type=int, default=0, help="seed of the batches")
    given = parser.parse_intermixed_args()
    _or_exit("hpo-gradients", lambda: _gradients(given))


def compose_config(overrides: list[str]) -> dict[str, Any]:
    """Return the configuration of a run under these settings, as ``hpo-train`` would resolve it."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        settings: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
    return run_settings(settings)


def _gradients(given: argparse.Namespace) -> None:
    run_dir = None
    folders = [text for text in given.what if "=" not in text or Path(text).is_dir()]
    for flag in ("batches", "reference"):
        check_int(f"--{flag}", getattr(given, flag), minimum=2)
    if folders:
        if len(given.what) > 1:
            raise ValueError(
                f"A run is measured under its own configuration: give {folders[0]} alone, or "
                "settings alone for an untrained policy."
            )
        run_dir = Path(folders[0])
        config = load_config(run_dir)
    else:
        for text in given.what:
            if text.lstrip("+~").split("=", 1)[0] in NOT_SETTINGS:
                raise ValueError(f"{text!r} is of hpo-train; use --output DIR, or give the run.")
        _check_overrides(given.what, "hpo-gradients")
        config = compose_config(given.what)
    output = Path(given.output) if given.output else run_dir or Path(".")
    report = gradients_run(
        config,
        run_dir,
        output_dir=output,
        num_batches=given.batches,
        num_reference=given.reference,
        seed=given.seed,
    )
    print(format_gradients(report.rows, ceiling=report.ceiling, num_reference=report.num_reference))
    print(f"\nwritten: {output / 'gradients.csv'}, {output / 'gradients.png'}")


def _train(config: DictConfig, overrides: list[str]) -> None:
    settings: Any = OmegaConf.to_container(config, resolve=True)
    number = check_int("num_seeds", settings["num_seeds"], minimum=1)
    if settings["resume"] is not None:
        print(_resume(settings, overrides))
        return
    folder = Path(str(settings["output_dir"] or _new_folder(settings)))
    print(f"{'folder':<17}{folder}", flush=True)
    if number == 1:
        print(format_summary(train_run(run_settings(settings), folder)))
    else:
        print(format_seeds(train_seeds(run_settings(settings), folder, number)))


def _resume(settings: dict[str, Any], overrides: list[str]) -> str:
    """Go on with the run, or the runs, of a folder; return what there is to print."""
    if settings["output_dir"] is not None:
        raise ValueError(
            "resume goes on in the folder of the run itself; leave output_dir="
            f"{settings['output_dir']} out."
        )
    folder = Path(str(settings["resume"]))
    print(f"{'folder':<17}{folder}", flush=True)
    seeds = load_seeds(folder)
    given = any(text.split("=", 1)[0].lstrip("+~") == "num_seeds" for text in overrides)
    found = 1 if seeds is None else len(seeds)
    if given and settings["num_seeds"] != found:
        raise ValueError(
            f"resume goes on with the {found} seed{'s' * (found > 1)} of {folder}, got num_seeds="
            f"{settings['num_seeds']}; leave it out."
        )
    saved = load_config(folder if seeds is None else seed_folder(folder, seeds[0]))
    _check_same(saved, settings, overrides)
    if seeds is None:
        return format_summary(train_run(saved, folder, resume=True))
    return format_seeds(train_seeds(saved, folder, len(seeds), resume=True))


def _new_folder(settings: dict[str, Any]) -> Path:
    seed, number = settings["seed"], settings["num_seeds"]
    seeds = f"seed{seed}" if number == 1 else f"seeds{seed}-{seed + number - 1}"
    name = f"{settings['env']['name']}-{settings['algorithm']['name']}-{seeds}"
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _check_same(saved: dict[str, Any], settings: dict[str, Any], overrides: list[str]) -> None:
    """Refuse overrides that would change a run on its way."""
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if key in NOT_SETTINGS:
            continue
        old = OmegaConf.select(OmegaConf.create(saved), key)
        new = OmegaConf.select(OmegaConf.create(settings), key)
        if old != new:
            raise ValueError(
                f"resume goes on under the run's own configuration, but {override!r} would change "
                f"{key}. Leave it out, or start a new run with output_dir=DIR."
            )


def _check_overrides(arguments: list[str], command: str = "hpo-train") -> None:
    """Give unknown keys and unreadable values an error that names key, value and fix."""
    overrides = [argument for argument in arguments if argument not in ("-m", "--multirun")]
    if any(argument.startswith("-") for argument in overrides):
        return  # Hydra's own flags: --help, --cfg; Hydra reports on those.
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            if len(overrides) < len(arguments):
                overrides = [_first_value(override) for override in overrides]
            compose("train", overrides)
        except (HydraException, OmegaConfBaseException) as error:
            _exit(command, _explain(str(error), overrides))


def _first_value(override: str) -> str:
    """The first value of a sweep: a key is known, or unknown, for all of them."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_discrete_sweep():
        return override
    return f"{parsed.get_key_element()}={next(iter(parsed.sweep_string_iterator()))}"


def _quote_folder(argument: str) -> str:
    """Quote a folder for Hydra, which takes the commas and signs in a run's name for its own."""
    key, _, folder = argument.partition("=")
    plain = re.fullmatch(r"[\w./~+-]*|'.*'|\".*\"|.*\$\{.*", folder)
    if key not in ("output_dir", "resume", "sweep_dir") or plain:
        return argument
    escaped = folder.replace("'", "\\'")
    return f"{key}='{escaped}'"


def _explain(message: str, overrides: list[str]) -> str:
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


def _or_exit(command: str, action: Callable[[], Any]) -> None:
    """Run a command; what a user can mend is told in one line, anything else with its trace."""
    expected = (ValueError, TypeError, OSError, CheckpointError, NonFiniteError)
    try:
        action()
    except expected as error:
        _exit(command, str(error))
    except KeyboardInterrupt:
        _exit(command, _INTERRUPTED, code=130)
    except RuntimeError as error:
        # Interrupted while it has swapped a module's parameters, tensordict 0.14 raises an error
        # of its own on top of the interrupt.
        if isinstance(error.__context__, KeyboardInterrupt):
            _exit(command, _INTERRUPTED, code=130)
        raise


def _exit(command: str, message: str, code: int = 2) -> NoReturn:
    print(f"{command}: error: {message}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    train()
