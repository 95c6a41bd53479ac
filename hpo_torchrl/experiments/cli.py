"""The commands ``hpo-train``, ``hpo-eval`` and ``hpo-gradients``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

# Before torch is loaded: threads that wait for each other sleep. Waiting awake, they are a quarter
# faster on free cores, and two to four times slower beside anything else that runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import yaml
from omegaconf import OmegaConf

from hpo_torchrl import reporting
from hpo_torchrl.algorithms import NonFiniteError
from hpo_torchrl.core.checks import check_int
from hpo_torchrl.experiments.config import (
    NOT_SETTINGS,
    choices,
    compose_config,
    compose_settings,
    load_config,
    run_settings,
)
from hpo_torchrl.experiments.run import evaluate_run, gradients_run, train_run
from hpo_torchrl.experiments.seeds import train_seeds
from hpo_torchrl.experiments.sweep import run_sweep
from hpo_torchrl.training import CheckpointError
from hpo_torchrl.training.run_folder import RunFolder

_INTERRUPTED = (
    "interrupted; a training goes on with hpo-train resume=FOLDER, a sweep with its own command."
)


def train(argv: Sequence[str] | None = None) -> None:
    """Train from the command line: ``hpo-train [KEY=VALUE ...]``; see ``configs/``.

    With ``--multirun`` a sweep, which goes on where it stopped when the command is given again.

    Args:
        argv: the arguments; those of the process by default.
    """
    parser = _parser("hpo-train", "Train a policy; every setting of configs/ can be given.")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the run")
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="a sweep: KEY=VALUE,VALUE makes several runs"
    )
    parser.add_argument("--cfg", action="store_true", help="show the configuration and stop")
    parser.epilog = ".  ".join(
        f"{section}: {', '.join(choices(section))}" for section in ("env", "algorithm")
    )
    _command("hpo-train", parser, argv, _train)


def evaluate(argv: Sequence[str] | None = None) -> None:
    """Evaluate a run from the command line: ``hpo-eval DIR``; ``argv`` as for :func:`train`."""
    parser = _parser("hpo-eval", "Evaluate the newest checkpoint of a run on its tests.")
    parser.add_argument("run_dir", metavar="DIR", help="folder of the run")
    parser.add_argument("--device", help="where to evaluate; the run's own device by default")
    _command(
        "hpo-eval",
        parser,
        argv,
        lambda given: print(
            reporting.format_summary(
                evaluate_run(given.run_dir, device=given.device, allow=given.allow)
            )
        ),
    )


def gradients(argv: Sequence[str] | None = None) -> None:
    """Measure gradient estimators: ``hpo-gradients DIR``, or settings; see :func:`train`."""
    parser = _parser(
        "hpo-gradients", "Compare gradient estimators: signal, noise, alignment and bias of each."
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
    _command("hpo-gradients", parser, argv, _gradients)


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name, description=description, allow_abbrev=False)
    parser.add_argument(
        "--allow",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module whose classes the folder of a run may name; repeat it for several",
    )
    if name != "hpo-eval":
        parser.add_argument(
            "--config-dir", metavar="DIR", help="a folder of further files, laid out like configs/"
        )
    return parser


def _command(
    name: str,
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    action: Callable[[argparse.Namespace], Any],
) -> None:
    given = parser.parse_intermixed_args(argv)
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # a module of one's own may lie there
    _or_exit(name, lambda: action(given))


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
        config = load_config(run_dir, given.allow)
    else:
        for text in given.what:
            if _key(text) in NOT_SETTINGS:
                raise ValueError(f"{text!r} is of hpo-train; use --output DIR, or give the run.")
        config = compose_config(given.what, given.config_dir)
    output = Path(given.output) if given.output else run_dir or Path(".")
    report = gradients_run(
        config,
        run_dir,
        output_dir=output,
        num_batches=given.batches,
        num_reference=given.reference,
        seed=given.seed,
    )
    print(
        reporting.format_gradients(
            report.rows, ceiling=report.ceiling, num_reference=report.num_reference
        )
    )
    print(f"\nwritten: {output / 'gradients.csv'}, {output / 'gradients.png'}")


def _train(given: argparse.Namespace) -> None:
    if given.multirun:
        run_sweep(given.settings, given.config_dir)
        return
    settings = compose_settings(given.settings, given.config_dir)
    if given.cfg:
        print(yaml.safe_dump(settings, sort_keys=False), end="")
        return
    number = check_int("num_seeds", settings["num_seeds"], minimum=1)
    if settings["resume"] is not None:
        print(_resume(settings, given))
        return
    folder = Path(str(settings["output_dir"] or _new_folder(settings)))
    print(f"{'folder':<17}{folder}", flush=True)
    if number == 1:
        print(reporting.format_summary(train_run(run_settings(settings), folder)))
    else:
        print(reporting.format_seeds(train_seeds(run_settings(settings), folder, number)))


def _resume(settings: dict[str, Any], given: argparse.Namespace) -> str:
    """Go on with the run, or the runs, of a folder; return what there is to print."""
    if settings["output_dir"] is not None:
        raise ValueError(
            "resume goes on in the folder of the run itself; leave output_dir="
            f"{settings['output_dir']} out."
        )
    folder = RunFolder(str(settings["resume"]))
    print(f"{'folder':<17}{folder.path}", flush=True)
    seeds = folder.read_seeds()
    found = 1 if seeds is None else len(seeds)
    if "num_seeds" in map(_key, given.settings) and settings["num_seeds"] != found:
        raise ValueError(
            f"resume goes on with the {found} seed{'s' * (found > 1)} of {folder.path}, got "
            f"num_seeds={settings['num_seeds']}; leave it out."
        )
    first = folder if seeds is None else folder.of_seed(seeds[0])
    saved = load_config(first.path, given.allow)
    _check_same(saved, settings, given.settings)
    if seeds is None:
        return reporting.format_summary(train_run(saved, folder.path, resume=True))
    return reporting.format_seeds(train_seeds(saved, folder.path, len(seeds), resume=True))


def _new_folder(settings: dict[str, Any]) -> Path:
    seed, number = settings["seed"], settings["num_seeds"]
    seeds = f"seed{seed}" if number == 1 else f"seeds{seed}-{seed + number - 1}"
    name = f"{settings['env']['name']}-{settings['algorithm']['name']}-{seeds}"
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _check_same(saved: dict[str, Any], settings: dict[str, Any], overrides: Sequence[str]) -> None:
    """Refuse overrides that would change a run on its way."""
    for override in overrides:
        key = _key(override)
        if key in NOT_SETTINGS:
            continue
        old = OmegaConf.select(OmegaConf.create(saved), key)
        new = OmegaConf.select(OmegaConf.create(settings), key)
        if old != new:
            raise ValueError(
                f"resume goes on under the run's own configuration, but {override!r} would change "
                f"{key}. Leave it out, or start a new run with output_dir=DIR."
            )


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def _or_exit(command: str, action: Callable[[], Any]) -> None:
    """Run a command; an error that a user can mend is one line, any other shows its trace."""
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
