"""Bad commands, each of which must end in a line; ``python -m benchmarks.faults.commands``.

A command is a line of ``TABLE``: what a person types, and after a bar the words that the message
must hold. Without words it must end well. Else it must end with exit code 2 and, as the last line
on standard error, its name, "error:" and the message. *Accepted* is one that ends well; *raw* is
one that shows a trace, ends otherwise, or leaves out a word.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import hpo_torchrl
from hpo_torchrl.experiments import cli
from hpo_torchrl.reporting import report

TINY = (
    "trainer.num_updates=1 trainer.progress=false collect.batch_size=4 collect.unroll_length=4 "
    "policy.hidden=[4] critic.hidden=[4]"
)
SMALL = TINY + (
    " evaluation.tests.long_run.batch_size=4 evaluation.tests.long_run.num_steps=20"
    " evaluation.tests.long_run.skip=4 evaluation.tests.protocol.batch_size=4"
    " evaluation.tests.protocol.num_steps=20 evaluation.validation.batch_size=4"
    " evaluation.validation.num_steps=12 evaluation.validation.skip=4"
)
LONG = "x" * 300
# By kind. A line begins with the command if it is not hpo-train. SMALL and TINY, wherever they
# stand, are settings in front of the others that keep a run short that is accepted. file is a file,
# folder an empty folder, run a run, record.csv recorded demand.
TABLE = {
    "sections that are no sections": """
env=null                                    | env | inventory, inventory_from_file
env=5                                       | env | inventory
env=[inventory,switched_lqr]                | env
'env={num_items: 3}'                          | env | env.num_items
policy=null                                 | policy | mlp
policy=5                                    | policy | mlp
critic=null                                 | critic | mlp
critic=5                                    | critic | mlp
algorithm=null                              | algorithm | hpo
algorithm=5                                 | algorithm | hpo
trainer=null                                | trainer | default
trainer=5                                   | trainer | default
'trainer={num_updates: 3}'                    | trainer | trainer.num_updates
logger=null                                 | logger | csv
logger=5                                    | logger | csv
collect=null                                | collect | default
collect=5                                   | collect | default
evaluation=null                             | evaluation | inventory
evaluation=5                                | evaluation | inventory
experiment=no_such                          | experiment | no_such | lqr_sizes
~env                                        | env
~trainer                                    | trainer
~evaluation                                 | evaluation
~collect                                    | collect
~logger                                     | logger
~policy                                     | policy
""",
    "names that are unknown": """
env=inventry                                | env=inventry | Did you mean 'inventory'
algorithm=hop                               | algorithm=hop | Did you mean 'hpo'
logger=tensorbord                           | logger=tensorbord | Did you mean 'tensorboard'
trainer=fast                                | trainer=fast | default
hydra/launcher=nothing                      | hydra/launcher=nothing
env.nmu_items=2                             | env.nmu_items | Did you mean 'num_items'
num_items=3                                 | num_items | env.num_items
num_updates=3                               | num_updates | trainer.num_updates
learning_rate=3                             | learning_rate | algorithm.learning_rate
trainer.num_update=3                        | trainer.num_update | num_updates
hydra.rum.dir=x                             | hydra.rum
env.path=record.csv                         | env.path | env=inventory_from_file
env=inventory_from_file                     | env.path | .csv
env=inventory_from_file env.path=absent.csv | absent.csv
env=inventory_from_file env.path=file       | .csv
env=inventory_from_file env.path=null       | path | text
env=inventory_from_file env.path=5          | path | text
env=switched_lqr env.num_items=3            | env.num_items | Known keys of env: dim, num_modes
env=switched_lqr env.demand=3               | env.demand | dim
env=switched_lqr env.groth=3                | env.groth | Did you mean 'growth'
env=inventory_from_file env.path=record.csv env.demand=3      | demand | leave it out
env=inventory_from_file env.path=record.csv env.demand=fited  | demand | 'fitted'
env=inventory_from_file env.path=record.csv env.evaluation.quick.num_steps=60 | env.evaluation
algorithm=ppo algorithm.cross_term=true     | algorithm.cross_term | Known keys of algorithm
algorithm=s_S algorithm.learning_rate=1     | algorithm.learning_rate
algorithm=fixed_mode                        | fixed_mode
env=switched_lqr algorithm=s_S              | s_S
""",
    "syntax": """
--num_items 3                               | --num_items | env.num_items=VALUE
--env.num_items=3                           | --env.num_items | env.num_items=VALUE
--seed 3                                    | --seed | dashes: seed=VALUE
-x                                          | -x
trainer.num_updates = 5                     | trainer.num_updates=5 | blanks
trainer.num_updates= 5                      | trainer.num_updates=5 | blanks
trainer.num_updates                         | trainer.num_updates | KEY=VALUE
trainer.num_updates:5                       | trainer.num_updates:5 | KEY=VALUE
=5                                          | =5
env.demand=[1,2                             | env.demand=[1,2
env.demand={a                               | env.demand={a
env.demand=1,2                              | env.demand=1,2 | --multirun
"env.demand=range(1,3)"                     | env.demand=range(1,3) | --multirun
env.demand=${no.such}                       | no.such
env.demand=${env.demand}                    | env.demand
--config-dir absent                         | absent
+seed=1                                     | seed
~seed                                       | seed
~device                                     | device
~trainer.num_updates                        | trainer.num_updates
~evaluation.tests                           | evaluation.tests
~evaluation.primary                         | evaluation.primary
~collect.batch_size                         | collect.batch_size
~logger.backend                             | logger.backend
~env._target_                               | env._target_
~gradients                                  | gradients
~resume                                     | resume
""",
    "numbers": """
seed=1180591620717411303424 SMALL         | seed | 1180591620717411303424
seed=18446744073709551616 SMALL           | seed
seed=null SMALL                           | seed
seed=x SMALL                              | seed
seed=1.5 SMALL                            | seed
seed=[1,2] SMALL                          | seed
env.seed=1180591620717411303424 SMALL     | seed
num_seeds=0 SMALL                         | num_seeds
num_seeds=null SMALL                      | num_seeds
num_seeds=2 seed=18446744073709551615 SMALL                 | seed
num_seeds=2 algorithm=s_S SMALL           | num_seeds
device=5 SMALL                            | device
device=cuda SMALL                         | device
device=[cpu] SMALL                        | device
dtype=null SMALL                          | dtype
dtype=int64 SMALL                         | dtype
trainer.num_threads=0 SMALL               | trainer.num_threads
trainer.num_threads=x SMALL               | trainer.num_threads
trainer.num_threads=1.5 SMALL             | trainer.num_threads
trainer.num_threads=100000000000000000000 SMALL             | trainer.num_threads
trainer.num_updates=1e30 SMALL            | num_updates
trainer.num_updates=null SMALL            | num_updates
trainer.eval_every=0 SMALL                | eval_every
trainer.checkpoint_every=null SMALL       | checkpoint_every
trainer.log_every=x SMALL                 | log_every
trainer.progress=5 SMALL                  | progress
trainer.select=worst SMALL                | select
collect.batch_size=0 SMALL                | batch_size
collect.batch_size=-3 SMALL               | batch_size
collect.batch_size=x SMALL                | batch_size
collect.batch_size=1.5 SMALL              | batch_size
collect.unroll_length=0 SMALL             | unroll_length
collect.reset_fraction=2 SMALL            | reset_fraction
collect.reset_fraction=.nan SMALL         | reset_fraction
collect.reset_until=x SMALL               | reset_until
collect.checkpoint_steps=0 SMALL          | checkpoint_steps
collect.compile=5 SMALL                   | compile
policy.hidden=[0] SMALL                   | hidden
policy.hidden=[x] SMALL                   | hidden
policy.hidden=null SMALL                  | hidden
policy.hidden=x SMALL                     | hidden
policy.activation=foo SMALL               | activation
policy.activation=null SMALL              | activation
policy.scale=-1 SMALL                     | scale
policy.scale=nan SMALL                    | scale
policy.scale=x SMALL                      | scale
policy.linear_skip=5 SMALL                | linear_skip
policy.shared_trunk=x SMALL               | shared_trunk
policy.learn_scale=true SMALL             | scale
policy.network._target_=math.pi SMALL     | policy.network._target_
policy.network=5 SMALL                    | policy.network
critic.hidden=[-1] SMALL                  | hidden
critic.activation=5 SMALL                 | activation
critic.network=5                          | critic.network
algorithm.learning_rate=-1 SMALL          | learning_rate
algorithm.learning_rate=nan SMALL         | learning_rate
algorithm.learning_rate=null SMALL        | learning_rate
algorithm.epochs=-1 SMALL                 | epochs
algorithm.discount=2 SMALL                | discount
algorithm.loss=5 SMALL                    | algorithm.loss
algorithm.name=5 SMALL                    | algorithm.name
gradients=5 SMALL                         | gradients
'gradients={num_batches: x}' SMALL        | gradients.num_batches
logger.backend=5 SMALL                    | logger.backend
reference=fast SMALL                      | reference | 'exact', 'none'
reference=null SMALL                      | reference | 'exact', 'none'
""",
    "tests": """
evaluation.tests=null                       | evaluation.tests
evaluation.tests=5                          | evaluation.tests
evaluation.tests=[1]                        | evaluation.tests
evaluation.tests.long_run=null              | evaluation.tests.long_run
evaluation.tests.long_run=5                 | evaluation.tests.long_run
evaluation.primary=null SMALL             | evaluation.primary
evaluation.primary=5 SMALL                | evaluation.primary
evaluation.seed=null SMALL                | evaluation.seed
evaluation.seed=x SMALL                   | evaluation.seed
evaluation.seed=1180591620717411303424 SMALL                | evaluation.seed
evaluation.validation=null                  | evaluation.validation
evaluation.validation=5                     | evaluation.validation
SMALL evaluation.validation.like=null     | evaluation.validation.like
SMALL evaluation.tests.long_run.num_steps=0                 | num_steps
SMALL evaluation.tests.long_run.num_steps=x                 | num_steps
SMALL evaluation.tests.long_run.skip=-1   | skip
SMALL evaluation.tests.long_run.skip=20   | skip
SMALL evaluation.tests.long_run.skip=null | skip
SMALL evaluation.tests.long_run.batch_size=0                | batch_size
SMALL evaluation.tests.long_run.batch_size=x                | batch_size
SMALL evaluation.tests.long_run.horizon=0 | horizon
SMALL evaluation.tests.long_run.initial_state=full          | initial_state
""",
    "problems": """
env.num_items=0 SMALL                     | num_items
env.num_items=x SMALL                     | num_items
env.num_items=1.5 SMALL                   | num_items
env.lead_time=-1 SMALL                    | lead_time
env.lead_time=null SMALL                  | lead_time
env.demand=null SMALL                     | demand
env.demand=x SMALL                        | demand
env.demand=nan SMALL                      | demand
env.demand=inf SMALL                      | demand
env.demand=-1 SMALL                       | demand
env.demand=[] SMALL                       | demand
env.demand=[1,2] env.num_items=3 SMALL    | demand
'env.demand={mean: 5}' SMALL              | name
'env.demand={name: normal, men: 5}' SMALL | men
'env.demand={name: record, record: absent.npy}' TINY evaluation=default | absent.npy
env.holding_cost=-1 SMALL                 | holding_cost
env.holding_cost=nan SMALL                | holding_cost
env.holding_cost=null SMALL               | holding_cost
env.fixed_cost_per_item=-1 SMALL          | fixed_cost_per_item
env.lost_sales=5 SMALL                    | lost_sales
env.initial_state=full SMALL              | initial_state
env.horizon=0 SMALL                       | horizon
env.horizon=x SMALL                       | horizon
env.features=5 SMALL                      | features
env.features=[5] SMALL                    | features
'env.features=[{name: nothing}]' env.fixed_cost_per_item=null SMALL    | nothing
env._target_=null SMALL                   | env._target_
env._target_=5 SMALL                      | env._target_
env._target_=builtins.print SMALL         | print
env=switched_lqr env.growth=1e30 TINY     | growth
env=switched_lqr env.growth=1e100 TINY    | growth
env=switched_lqr env.growth=1e100 dtype=float64 TINY        | growth
env=switched_lqr env.growth=1e30 dtype=float64 TINY         | growth
env=switched_lqr env.growth=1e30 algorithm=fixed_mode         | growth
env=switched_lqr env.growth=nan TINY      | growth
env=switched_lqr env.dim=0 TINY           | dim
env=switched_lqr env.dim=x TINY           | dim
env=switched_lqr env.num_modes=9 TINY     | num_modes
env=switched_lqr env.horizon=0 TINY       | horizon
env=switched_lqr env.horizon=null TINY    | horizon
env=switched_lqr env.process_noise=-1 TINY                  | process_noise
env=switched_lqr env.initial_range=0 TINY | initial_range
env=switched_lqr env.state_limit=-1 TINY  | state_limit
env=switched_lqr env.coupling=x TINY      | coupling
env=switched_lqr_2d TINY env.A=[[[1e30,0],[0,1e30]],[[1e30,0],[0,1]]]  | A
env=switched_lqr_2d TINY env.A=[[[1,0],[0]]]                | A
env=switched_lqr_2d TINY env.A=x          | A
env=switched_lqr_2d TINY env.A=null       | A
env=switched_lqr_2d TINY env.R=[[-1]]     | R
env=inventory_from_file env.path=record.csv env.fractions=[1,1,1] TINY | fractions
env=inventory_from_file env.path=record.csv env.history=x TINY         | history
env=inventory_traces env.demand.traces=null TINY            | traces
""",
    "sizes": """
env.num_items=200000 SMALL                | GB | env.num_items
env.num_items=4000000000 SMALL            | num_items
SMALL collect.batch_size=100000000000     | batch_size
SMALL collect.batch_size=9223372036854775807                | batch_size
SMALL collect.batch_size=99999999999999999999               | batch_size
SMALL evaluation.tests.long_run.batch_size=100000000000     | batch_size
SMALL policy.hidden=[1000000,1000000]     | hidden
SMALL policy.hidden=[99999999999999999999]                  | hidden
SMALL critic.hidden=[1000000,1000000]     | hidden
env.lead_time=10000000000 SMALL           | lead_time
env=switched_lqr env.dim=100000 TINY      | dim
env=switched_lqr env.dim=100000000000 TINY                  | dim
""",
    "folders": """
output_dir=file SMALL                     | output_dir
output_dir=file/sub SMALL                 | output_dir | file
output_dir=LONG SMALL                   | output_dir | too long
output_dir=/proc/no_such SMALL            | output_dir | /proc/no_such
output_dir=run SMALL                      | output_dir | resume=run
resume=absent                               | absent
resume=file                                 | file
resume=folder                               | folder
resume=LONG                               | resume | too long
resume=run seed=9                           | seed
resume=run env=switched_lqr                 | env
resume=run trainer.num_update=9             | num_update
resume=run trainer=null                     | trainer
hpo-eval absent                             | absent
hpo-eval file                               | file
hpo-eval folder                             | folder
hpo-eval LONG                             | too long
hpo-eval run more                           | more
hpo-eval                                    | DIR
hpo-eval run --allow                        | --allow
hpo-gradients absent                        | absent
hpo-gradients folder                        | folder
hpo-gradients run env.num_items=2           | run
hpo-gradients run --batches 0               | batches
hpo-gradients run --batches x               | --batches
hpo-gradients run --batches 99999999999999999999             | batches
hpo-gradients run --reference -1            | reference
hpo-gradients run --batches 2 --reference 2 --output file     | file
hpo-gradients run --batches 2 --reference 2 --output file/sub | file
hpo-gradients algorithm=s_S SMALL --batches 2 --reference 2 | Rule
hpo-gradients output_dir=x                  | output_dir
hpo-gradients num_items=3                   | env.num_items
hpo-report absent                           | absent
hpo-report file                             | file
hpo-report folder                           | folder
hpo-report                                  | DIR
hpo-report run --target 0                   | target
hpo-report run --target nan                 | target
hpo-report run --target x                   | --target
hpo-report run --output file                | file
hpo-report run --output file/sub            | file
hpo-report run --output /proc/no_such       | /proc/no_such
hpo-report LONG                           | too long
""",
    "extreme, and possible: exit 0": """
env.demand=1e18 env.lost_sales=true SMALL
env.demand=1e18 SMALL
env=inventory_from_file env.path=huge.csv TINY
env=switched_lqr env.growth=1e10 TINY
reference=none SMALL
reference=none env.demand=1e6 SMALL
reference=none algorithm=s_S SMALL
reference=none env=switched_lqr TINY
reference=none env=inventory_from_file env.path=record.csv TINY
reference=none num_seeds=2 SMALL
reference=none dtype=float64 SMALL
--multirun seed=0,1 reference=none SMALL
seed=9223372036854775807 SMALL
""",
    "sweeps": """
--multirun env=inventry,inventory           | env=inventry | Did you mean 'inventory'
--multirun seed=1,1 SMALL                 | once
--multirun seed=0,1 trainer=null            | trainer
--multirun seed=0,1 output_dir=x            | output_dir
--multirun seed=0,1 num_seeds=2             | num_seeds
--multirun seed=0,1 sweep_dir=file SMALL  | file
--multirun seed=0,1 sweep_dir=LONG SMALL                  | sweep_dir | too long
--multirun seed=0,1 sweep_dir=/proc/no_such SMALL           | /proc/no_such
--multirun seed=0,1 sweep_estimate=5 SMALL| sweep_estimate
--multirun seed=0,1 hydra/launcher=nothing  | hydra/launcher=nothing
--multirun seed = 0,1                       | seed=0,1 | blanks
--multirun num_items=1,2                    | env.num_items
--multirun experiment=lqr_size              | experiment=lqr_size | Did you mean 'lqr_sizes'
--multirun env.demand=range(1               | env.demand=range(1
--multirun env=switched_lqr env.num_items=1,2                 | env.num_items | dim
--multirun seed=0,1 trainer.num_threads=100000 SMALL        | trainer.num_threads
""",
}
COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "hpo-train": cli.train,
    "hpo-eval": cli.evaluate,
    "hpo-gradients": cli.gradients,
    "hpo-report": report.main,
}
_SECONDS = 30
_MEMORY = 24 * 2**30


class Late(BaseException):
    """Raised in a command that has not ended in time; no handler of errors catches it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the table, damaged configurations, and a few commands in processes of their own.

    Args:
        argv: ``--only WORD`` runs the lines that hold a word; ``--verbose`` shows all messages.

    Returns:
        The number of commands that were accepted or raw.
    """
    parser = argparse.ArgumentParser("benchmarks.faults.commands", description=__doc__)
    parser.add_argument("--only", metavar="WORD", default="")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args(argv)
    tried = accepted = raw = 0
    with _place():
        kinds: dict[str, list[tuple[list[str], list[str]]]] = {}
        for kind, lines in TABLE.items():
            kinds[kind] = [_parsed(line) for line in lines.strip().splitlines()]
        kinds["damaged configurations"] = list(_damaged())
        for kind, cases in kinds.items():
            cases = [case for case in cases if given.only in " ".join(case[0])]
            verdicts = [_tried(*case, verbose=given.verbose) for case in cases]
            bad = verdicts.count("accepted"), verdicts.count("raw")
            if cases:
                print(f"  {kind:<32}{len(cases):4d} inputs, accepted {bad[0]}, raw {bad[1]}")
            tried, accepted, raw = tried + len(cases), accepted + bad[0], raw + bad[1]
        if not given.only:
            bad = _processes()
            print(f"  {'processes':<32}{len(PROCESSES):4d} inputs, accepted 0, raw {bad}")
            tried, raw = tried + len(PROCESSES), raw + bad
    print(f"commands: {tried} inputs, nonsense accepted {accepted}, raw {raw}")
    return accepted + raw


def said(arguments: Sequence[str]) -> tuple[Any, str]:
    """Run a command in this process, and return how it ended and what it printed as errors.

    The end is an exit code, or the error that came out of it.
    """
    name, rest = "hpo-train", list(arguments)
    if rest and rest[0] in COMMANDS:
        name, rest = rest[0], rest[1:]
    errors, code = io.StringIO(), 0

    def late(*_: Any) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(errors),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            COMMANDS[name](rest)
    except SystemExit as stop:
        return stop.code, errors.getvalue()
    except BaseException as error:
        return error, errors.getvalue() + traceback.format_exc()
    finally:
        signal.alarm(0)
    return code, errors.getvalue()


def _tried(arguments: list[str], words: list[str], *, verbose: bool) -> str:
    start = time.perf_counter()
    end, errors = said(arguments)
    seconds = time.perf_counter() - start
    last = ["", *errors.strip().splitlines()][-1]
    if end == 1 and "--multirun" in arguments and "runs failed" in errors:  # they are listed
        end, last = 2, f"hpo-train: error: {errors}"
    lacking = [word for word in words if word not in last]
    verdict = "good"
    if not words:
        verdict = "good" if end == 0 else "raw"
    elif end == 0 or isinstance(end, Late):
        verdict = "accepted"
    elif end != 2 or "Traceback" in errors or not re.match(r"hpo-\w+: error: ", last) or lacking:
        verdict = "raw"
    if verbose or verdict != "good":
        shown = (
            " ".join(arguments).replace(SMALL, "SMALL").replace(TINY, "TINY").replace(LONG, "x*300")
        )
        print(f"{verdict} ({end!r:.60}, {seconds:.1f} s): {shown}")
        print(f"    lacks {lacking}" if lacking else "", f"    {last[:600]}", sep="\n")
    return verdict


def _parsed(line: str) -> tuple[list[str], list[str]]:
    text, *words = line.split("|")
    name, *rest = shlex.split(text)
    first = [name] if name in COMMANDS else []
    rest = rest if first else [name, *rest]
    for word, settings in (("SMALL", SMALL), ("TINY", TINY)):
        if word in rest:  # to the front, where they can be overridden
            rest = [*shlex.split(settings), *(text for text in rest if text != word)]
    return [*first, *(text.replace("LONG", LONG) for text in rest)], [
        word.strip() for word in words
    ]


@contextlib.contextmanager
def _place() -> Iterator[None]:
    """Work in an empty folder with the files that the table names, in bounded memory."""
    before, limit = Path.cwd(), resource.getrlimit(resource.RLIMIT_AS)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, limit[1]))
        try:
            Path("file").touch()
            Path("folder").mkdir()
            for name, odd in (("record", "3"), ("huge", "1e18")):
                rows = [f"{day},A,{odd if day == 9 else day % 5}" for day in range(1, 200)]
                Path(f"{name}.csv").write_text("\n".join(["period,item,demand", *rows, ""]))
            np.save("demand.npy", np.ones((30, 1)))
            end, errors = said([*shlex.split(SMALL), "output_dir=run"])
            if end != 0:
                raise RuntimeError(f"The run to be damaged did not train: {errors}")
            yield
        finally:
            os.chdir(before)
            resource.setrlimit(resource.RLIMIT_AS, limit)


def _damaged() -> Iterator[tuple[list[str], list[str]]]:
    """Yield commands on runs whose configuration lacks a key, or holds nonsense in its place."""
    whole = yaml.safe_load(Path("run", "config.yaml").read_text())
    places = [(key,) for key in whole]
    places += [
        (key, inner) for key, value in whole.items() if isinstance(value, dict) for inner in value
    ]
    free = {("env", name) for name in whole["env"] if name not in ("_target_",)}
    places.remove(("algorithm", "learning_rate"))  # a run may go on with another one
    for place in places:
        for number, value in enumerate((None, 5, [], {}, "x", "absent")):
            *path, last = place
            if value is None and (place in free or len(place) == 2):
                continue  # null is a value of many settings
            changed = yaml.safe_load(Path("run", "config.yaml").read_text())
            section = changed[path[0]] if path else changed
            if value == "absent":
                del section[last]
            elif len(place) == 2:
                continue
            else:
                section[last] = value
            if changed == whole or (place == ("gradients",) and value in (None, {})):
                continue
            folder = Path(f"damaged-{'-'.join(place)}-{number}")
            shutil.copytree("run", folder)
            (folder / "config.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
            command = ["hpo-eval", str(folder)] if number % 2 else [f"resume={folder}"]
            yield command, [".".join(place)]


_INTERRUPT = """
import os, signal, sys, threading, time
sys.argv = ["hpo-train", *{argv!r}]
threading.Timer({after}, os.kill, (os.getpid(), signal.SIGINT)).start()
from hpo_torchrl.experiments.{module} import train
train()
"""
# Code to run, exit code, words.
PROCESSES = [
    (_INTERRUPT.format(argv=[], after=after, module="commands"), 130, "interrupted")
    for after in (0.2, 0.6, 1.2, 2.0, 4.0)
] + [
    (
        "from hpo_torchrl.experiments.cli import train; "
        f"train([*{shlex.split(SMALL)!r}, 'trainer.num_threads={number}'])",
        2,
        "trainer.num_threads",
    )
    for number in (5000, 100000)
]


def _processes() -> int:
    """Run the commands that may end their process; return how many ended otherwise."""
    failed = 0
    for code, expected, words in PROCESSES:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(hpo_torchrl.__file__).parents[1])},
        )
        last = ["", *ended.stderr.strip().splitlines()][-1]
        if ended.returncode != expected or words not in last or "Traceback" in ended.stderr:
            failed += 1
            print(f"raw ({ended.returncode}): {code.strip()[-120:]}\n    {ended.stderr[-900:]}")
    return failed


if __name__ == "__main__":
    sys.exit(main() > 0)
