"""The commands ``hpo-train``, ``hpo-eval``, ``hpo-data``, ``hpo-order``, ``hpo-export``, ..."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

# Before torch is loaded: threads that wait for each other sleep. Waiting awake, they are a quarter
# faster on free cores, and two to four times slower beside anything else that runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import yaml
from omegaconf import OmegaConf

from hpo_torchrl import __version__, reporting
from hpo_torchrl.core import ranks
from hpo_torchrl.core.console import announced, run_command
from hpo_torchrl.experiments.api import load_run
from hpo_torchrl.experiments.config import (
    choices,
    compose_command,
    compose_config,
    explain_config,
    full_names,
    key_of,
    load_config,
)
from hpo_torchrl.experiments.export import FORMATS
from hpo_torchrl.experiments.pins import files_of
from hpo_torchrl.experiments.run import gradients_run, new_folder, train_run
from hpo_torchrl.experiments.sweep import run_sweep
from hpo_torchrl.experiments.targets import build_callbacks
from hpo_torchrl.training.policy_folder import PolicyFolder
from hpo_torchrl.training.run_folder import RunFolder


class _Parser(argparse.ArgumentParser):
    """Says to who types dashes that a setting has none."""

    def error(self, message: str) -> NoReturn:
        """End the command with a line that shows how settings among the options are written."""
        words = re.findall(r"--?([\w.]+)", message) if "unrecognized" in message else []
        names = {word: full_names(word)[0] or [word] for word in words}
        fixes = [f"{found[0]}=VALUE" for found in names.values()]
        hint = f"; settings have no dashes: {' '.join(fixes)}" if fixes else ""
        super().error(message + hint)


def train(argv: Sequence[str] | None = None) -> None:
    """Train from the command line: ``hpo-train [KEY=VALUE ...]``; see ``configs/``.

    With ``--multirun`` a sweep, which goes on where it stopped when the command is given again.
    Under ``torchrun`` the processes share one training.

    Args:
        argv: the arguments; those of the process by default.
    """
    about = "Train a policy; every setting of configs/ can be given."
    parser = _parser("hpo-train", about, add_help=False)
    shows = "show this, and every setting of the run that is asked for, with what it means"
    parser.add_argument("-h", "--help", action="store_true", help=shows)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the run")
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="a sweep: KEY=VALUE,VALUE makes several runs"
    )
    parser.add_argument("--cfg", action="store_true", help="show the configuration and stop")
    parser.epilog = ".  ".join(
        f"{section}: {', '.join(choices(section))}" for section in ("env", "algorithm")
    )
    parser.set_defaults(usage=parser.format_help())
    run_command(parser, argv, _train)


def evaluate(argv: Sequence[str] | None = None) -> None:
    """Evaluate a run: ``hpo-eval DIR [KEY=FILE ...]``; ``argv`` as for :func:`train`."""
    parser = _parser("hpo-eval", "Evaluate the newest checkpoint of a run on its tests.")
    _add_run(parser, "or other data to test on")
    details = "write what is done with each item or unit, a table and a picture, to this folder"
    parser.add_argument("--details", metavar="DIR", help=details)
    run_command(parser, argv, _evaluate)


def _add_run(parser: argparse.ArgumentParser, other: str) -> None:
    """Let a command take a run, and files that its own have moved to, or others."""
    parser.add_argument("run_dir", metavar="DIR", help="folder of the run")
    where = f"where a file of the run, as env.path, lies now; {other}"
    parser.add_argument("files", nargs="*", metavar="KEY=FILE", help=where)


def data(argv: Sequence[str] | None = None) -> None:
    """Show how a file of demand is understood: ``hpo-data FILE [KEY=VALUE ...]``, as in training.

    Args:
        argv: the arguments; those of the process by default.
    """
    parser = _parser("hpo-data", "Show how a file of demand is understood, split, and what is odd.")
    parser.add_argument("file", metavar="FILE", help="a .csv, .xlsx or .parquet file")
    settings = "settings of env=inventory_from_file, such as columns={period: Date}; env. may lack"
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=settings)
    run_command(parser, argv, _data)


def order(argv: Sequence[str] | None = None) -> None:
    """Say what to do now: ``hpo-order DIR --stock FILE``; ``argv`` as for :func:`train`."""
    about = "Say what a trained policy does as things are now: orders, or tomorrow's schedule."
    parser = _parser("hpo-order", about)
    _add_run(parser, "or one with newer demand, or the forecast of tomorrow")
    columns = (
        "a .csv or .xlsx file: item, on_hand, arriving_1, ... (by period), pack; "
        "of generating units: unit, hours (on, or minus those off), power"
    )
    parser.add_argument("--stock", metavar="FILE", required=True, help=columns)
    parser.add_argument("--out", metavar="FILE", help="a .csv or .xlsx file to write the table to")
    run_command(parser, argv, _order)


def export(argv: Sequence[str] | None = None) -> None:
    """Write a policy for use elsewhere: ``hpo-export DIR --format FORMAT``; see :func:`train`."""
    parser = _parser("hpo-export", "Write a trained policy to files that need nothing of this.")
    _add_run(parser, "or one of the same layout")
    kinds = "policy.onnx; policy.pt2 for torch.export.load; or policy.py and .npz for NumPy alone"
    parser.add_argument("--format", choices=FORMATS, required=True, help=kinds)
    parser.add_argument("--out", metavar="DIR", help="where they go; by default DIR/export")
    run_command(parser, argv, _export)


def gradients(argv: Sequence[str] | None = None) -> None:
    """Measure gradient estimators: ``hpo-gradients DIR``, or settings; see :func:`train`."""
    parser = _parser(
        "hpo-gradients", "Compare gradient estimators: signal, noise, alignment and bias of each."
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="DIR | KEY=VALUE",
        help="folder of a run, whose newest checkpoint is measured (with the new place of a file "
        "that moved); or settings as of hpo-train, whose untrained policy is",
    )
    parser.add_argument("--output", metavar="DIR", help="folder of gradients.csv and gradients.png")
    parser.add_argument("--batches", type=int, default=40, help="batches per estimator")
    parser.add_argument("--reference", type=int, default=160, help="batches of the reference")
    run_command(parser, argv, _gradients)


def _parser(name: str, description: str, **others: Any) -> argparse.ArgumentParser:
    parser = _Parser(prog=name, description=description, allow_abbrev=False, **others)
    parser.add_argument("--version", action="version", version=f"hpo_torchrl {__version__}")
    parser.add_argument(
        "--allow",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module whose classes the folder of a run may name; repeat it for several",
    )
    parser.add_argument(
        "--config-dir", metavar="DIR", help="a folder of further files, laid out like configs/"
    )
    return parser


def _evaluate(given: argparse.Namespace) -> None:
    run = load_run(given.run_dir, allow=given.allow, files=_named(given.files))
    for key, path, known, found in files_of(run.config):
        note = "" if found == known else ": not the data of the training, whose units stay"
        print(f"{'file':<17}{path} ({key}{note})")
    with announced(f"testing {given.run_dir}"):
        summary = run.evaluate()
    print(reporting.format_summary(summary))
    if given.details is not None:
        table = run.details(given.details)
        print(f"\n{table.to_string(index=False, float_format='{:.4g}'.format)}")
        print(f"\nwritten: a table and a picture to {Path(given.details)}")


def _data(given: argparse.Namespace) -> None:
    from hpo_torchrl.problems.inventory.demand_file import FORMAT_NAMES, read_demand
    from hpo_torchrl.problems.inventory.demand_report import describe_demand
    from hpo_torchrl.problems.inventory.instances import SEASONS_TO_FIT
    from hpo_torchrl.problems.inventory.ordering import joint_cost

    settings = ["env=inventory_from_file", "env.path='{}'".format(given.file.replace("'", "\\'"))]
    for text in given.settings:
        key = key_of(text)
        settings.append(text if key.startswith("env.") else f"env.{text}")
    env = compose_config(settings, given.config_dir)["env"]
    written = {name: env[name] for name in FORMAT_NAMES if name in env}
    source = read_demand(env["path"], **written)
    periods = env["lead_time"]
    longest = max(periods) if isinstance(periods, list) else periods
    fixed = joint_cost(env.get("features"), env["fixed_cost_per_item"])

    def show(parts: dict[str, tuple[int, int]]) -> None:
        season = source.season(env["season"], parts["train"], SEASONS_TO_FIT)
        print(describe_demand(source, parts, fixed, season))

    try:
        show(source.split(env["fractions"], history=env["history"], least=longest + 2))
    except ValueError:  # too short to be split, but not to be looked at
        show({"train": (0, len(source.periods))})
        raise


def _order(given: argparse.Namespace) -> None:
    out = None if given.out is None else Path(given.out)
    if out is not None and out.suffix.lower() not in (".csv", ".xlsx"):
        raise ValueError(f"--out {str(out)!r} must end in .csv or .xlsx.")
    run = load_run(given.run_dir, allow=given.allow, files=_named(given.files))
    orders = run.decide(given.stock)
    print(orders.to_string(index=False, float_format="{:g}".format))
    alone = PolicyFolder(given.run_dir).found  # what was measured stayed with the run
    if words := "" if alone else reporting.recommendation(run.summary):
        print(f"\n{words}")
    if out is not None:
        orders.to_csv(out, index=False) if out.suffix.lower() == ".csv" else orders.to_excel(
            out, index=False
        )
        print(f"\nwritten: {out}")


def _export(given: argparse.Namespace) -> None:
    run = load_run(given.run_dir, allow=given.allow, files=_named(given.files))
    with announced(f"exporting {given.run_dir}"):
        made = run.export(given.format, given.out)
    print(f"{'written':<17}{', '.join(map(str, made.files))}")
    left = f"; {made.ties} ties of discrete actions fell otherwise" if made.ties else ""
    print(
        f"{'checked':<17}{made.states:,} states: equal discrete actions, continuous ones within "
        f"{made.error:.1g} of their size{left}"
    )


def _gradients(given: argparse.Namespace) -> None:
    folders = [text for text in given.what if "=" not in text or Path(text).is_dir()]
    run_dir = folders[0] if folders else None
    if run_dir is None:
        config = compose_config(given.what, given.config_dir)
    else:
        others = _named([text for text in given.what if text != run_dir])
        config = load_config(run_dir, given.allow, files=others)
    output = Path(given.output or run_dir or ".")
    report = gradients_run(
        config,
        run_dir,
        output_dir=output,
        num_batches=given.batches,
        num_reference=given.reference,
    )
    print(
        reporting.format_gradients(
            report.rows, ceiling=report.ceiling, num_reference=report.num_reference
        )
    )
    print(f"\nwritten: {output / 'gradients.csv'}, {output / 'gradients.png'}")


def _train(given: argparse.Namespace) -> None:
    if given.help:
        print(given.usage + "\n" + explain_config(given.settings, given.config_dir))
        return
    with ranks.joined():
        if given.multirun:
            if ranks.active():
                raise ValueError(
                    f"--multirun starts its runs itself, but there are {ranks.size()} ranks, which "
                    "share one run; leave torchrun out, and see docs/scaling.md for clusters."
                )
            run_sweep(given.settings, given.config_dir)
            return
        if (wanted := ranks.from_main(partial(_wanted, given))) is None:
            return
        config, folder, resume, how = wanted
        how["callbacks"] = build_callbacks(how["callbacks"])
        with RunFolder(folder).advising("resume" if resume else "output_dir"):
            summary = train_run(config, folder, resume=resume, **how)
        if ranks.main():
            many = isinstance(summary, list)
            form = reporting.format_seeds if many else reporting.format_summary
            print(form(summary))


def _wanted(given: argparse.Namespace) -> tuple[dict[str, Any], Path, bool, dict] | None:
    """Return configuration and folder of a run, whether it goes on, and how; ``None`` for --cfg."""
    given.settings, files = _moved(given.settings)
    config, command = compose_command(given.settings, given.config_dir)
    if given.cfg:
        print(yaml.safe_dump({**config, **command}, sort_keys=False), end="")
        return None
    resume = command["resume"] is not None
    folder = Path(str(command["resume"] or command["output_dir"] or new_folder(config)))
    with RunFolder(folder).advising("resume" if resume else "output_dir"):
        if resume:
            config = _saved(folder, {**config, **command}, given, files)
    print(f"{'folder':<17}{folder}", flush=True)
    how = {key: command[key] for key in ("num_seeds", "changed_files", "callbacks")}
    return config, folder, resume, how


def _named(texts: Sequence[str]) -> dict[str, str]:
    """Return files by the keys that overrides name them by."""
    return {key_of(text): text.partition("=")[2].strip("'\"") for text in texts}


def _moved(settings: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the overrides of a resumed run, and those that say where its files lie now."""
    name, pins = _named(settings).get("resume"), {}
    if name:
        folder = RunFolder(name)
        with folder.advising("resume"):
            if folder.found:
                pins = folder.read_config(of_seeds=folder.seeds.is_file()).get("files", {})
    files = [text for text in settings if key_of(text) in pins]
    return [text for text in settings if text not in files], _named(files)


def _saved(
    folder: Path, settings: dict[str, Any], given: argparse.Namespace, files: dict[str, str]
) -> dict[str, Any]:
    """Return the configuration of the run, or the first of the runs, that a folder holds.

    Args:
        folder: its folder.
        settings: what was composed of the overrides.
        given: the command line.
        files: where files of the run lie now.

    Raises:
        ValueError: an override would change the run on its way.
    """
    seeds = RunFolder(folder).read_seeds()
    changed: dict[str, Any] = {"files": files, "changed_files": settings["changed_files"]}
    config = load_config(folder, given.allow, of_seeds=seeds is not None, **changed)
    saved = OmegaConf.create({**config, "num_seeds": 1 if seeds is None else len(seeds)})
    wanted = OmegaConf.create(settings)
    for override in given.settings:
        key = key_of(override)
        new = OmegaConf.select(wanted, key)
        if key == "algorithm.learning_rate":
            config["algorithm"]["learning_rate"] = new
        elif (
            key not in ("resume", "changed_files", "callbacks")
            and OmegaConf.select(saved, key) != new
        ):
            raise ValueError(
                f"resume goes on under the run's own configuration, in its own folder, but "
                f"{override!r} would change {key}. Leave it out, or start a new run with "
                "output_dir=DIR. Only algorithm.learning_rate may be another one, and a file such "
                "as env.path may have moved."
            )
    return config


if __name__ == "__main__":
    train()
