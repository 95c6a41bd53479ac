"""What is saved is what is loaded: no code runs, no damage is silent, a folder has one owner."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import random
import shutil
import signal

import numpy as np
import pytest
import torch
import yaml
from shrunk import SMALL

import hpo_torchrl
from hpo_torchrl.algorithms import NonFiniteError
from hpo_torchrl.experiments import cli
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.experiments.run import train_run
from hpo_torchrl.training import Checkpoint, CheckpointError, RunFolder
from hpo_torchrl.training.checkpoint import DamagedError, Saved, packed, read_together

FEW = [*SMALL, "trainer.num_updates=3", "trainer.checkpoint_every=1", "trainer.progress=false"]
OPENERS = {
    "hpo-eval": lambda run: cli.evaluate([str(run)]),
    "resume": lambda run: cli.train([f"resume={run}"]),
    "load_policy": hpo_torchrl.load_policy,
    "hpo-gradients": lambda run: cli.gradients([str(run), "--batches", "2", "--reference", "2"]),
}


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, mark) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_run(compose_config(FEW), folder)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def newest(run):
    return max((run / "checkpoints").glob("*"))


def rewrite(path, change):
    """Change the content of a checkpoint, and give it the digest that it should have."""
    content = torch.load(io.BytesIO(path.read_bytes()[32:]), weights_only=True)
    change(content)
    path.write_bytes(packed(Saved(**content)))


def in_config(change):
    def plant(run, mark):
        config = yaml.safe_load((run / "config.yaml").read_text())
        change(config, mark)
        (run / "config.yaml").write_text(yaml.safe_dump(config))

    return plant


def in_checkpoints(change):
    """Plant something in all of them: else there would be a way back."""

    def plant(run, mark):
        for path in (run / "checkpoints").glob("*"):
            rewrite(path, lambda content: change(content, mark))

    return plant


def bare(run, mark):
    for path in (run / "checkpoints").glob("*"):
        content = pickle.dumps(Bomb(mark))
        path.write_bytes(hashlib.sha256(content).digest() + content)


PAYLOADS = {
    "a component": in_checkpoints(lambda c, mark: c["states"].update(policy=Bomb(mark))),
    "a weight": in_checkpoints(lambda c, mark: c["states"]["policy"].update(more=Bomb(mark))),
    "the counters": in_checkpoints(lambda c, mark: c["counters"].update(more=Bomb(mark))),
    "a bare pickle": bare,
    "a python tag": lambda run, mark: (run / "config.yaml").write_text(
        f"env: !!python/object/apply:os.mkdir ['{mark}']\n"
    ),
    "a tag in the seeds": lambda run, mark: (
        (run / "config.yaml").unlink(),
        (run / "seeds.yaml").write_text(f"seeds: !!python/object/apply:os.mkdir ['{mark}']\n"),
    ),
    "the class of the env": in_config(
        lambda c, mark: c["env"].update(_target_="os.mkdir", path=str(mark))
    ),
    "the class of the algorithm": in_config(
        lambda c, mark: c["algorithm"].update(_target_="os.mkdir", path=str(mark))
    ),
    "a nested class": in_config(
        lambda c, mark: c["policy"].update(network={"_target_": "os.mkdir", "path": str(mark)})
    ),
    "a class in a list": in_config(
        lambda c, mark: c["env"].update(features=[{"_target_": "os.mkdir", "path": str(mark)}])
    ),
    "a callback of hydra": in_config(
        lambda c, mark: c.update(
            hydra={"callbacks": {"mine": {"_target_": "os.mkdir", "path": str(mark)}}}
        )
    ),
    "demand of objects": in_config(
        lambda c, mark: (
            np.save(f"{mark}.npy", np.array([Bomb(mark)]), allow_pickle=True),
            c["env"].update(demand={"name": "traces", "traces": f"{mark}.npy"}, num_items=None),
        )
    ),
}


@pytest.mark.parametrize("place", PAYLOADS)
def test_opening_a_run_executes_nothing(run, tmp_path, place, capsys):
    mark = tmp_path / "mark"
    PAYLOADS[place](run, mark)
    for open_run in OPENERS.values():
        copy = shutil.copytree(run, tmp_path / "copy")
        with contextlib.suppress(SystemExit, ValueError, TypeError, UserWarning):
            open_run(copy)
        assert not mark.exists()
        shutil.rmtree(copy)


def test_every_change_of_a_checkpoint_is_noticed(run):
    """An edited, cut, lengthened or older file; and one of another update under its own digest."""
    config = RunFolder(run).read_config()
    old, new = sorted((run / "checkpoints").glob("*"))[-2:]
    data, chance, mutants = new.read_bytes(), random.Random(0), {"older": old.read_bytes()}
    for number in range(200):
        at = chance.randrange(len(data))
        mutants[f"byte {at}"] = data[:at] + bytes([data[at] ^ 1 << number % 8]) + data[at + 1 :]
    mutants |= {f"first {size}": data[:size] for size in (0, 20, 32, len(data) // 2, len(data) - 1)}
    mutants["one more"] = data + b"0"
    checkpoint = Checkpoint(run, {}, config=config)
    update = checkpoint.updates()[-1]
    checkpoint.read(update)
    for what, content in mutants.items():
        new.write_bytes(content)
        with pytest.raises(DamagedError):
            print(what, checkpoint.read(update))
    new.write_bytes(data)
    for wrong in (1, update + 1):
        rewrite(new, lambda content, wrong=wrong: content.update(update=wrong))
        with pytest.raises(DamagedError, match=f"it is of update {wrong}, not {update}"):
            checkpoint.read(update)
    rewrite(new, lambda content: content.update(update=update) or content["states"].pop("rng"))
    with pytest.raises(DamagedError, match="it holds no rng"):
        checkpoint.read(update)


def test_a_damaged_checkpoint_is_passed_over_with_a_word(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    whole = RunFolder(run).read_summary()
    newest(run).write_bytes(newest(run).read_bytes()[:-50])
    (run / "summary.json").unlink()
    with pytest.warns(UserWarning, match=r"0+3\.ckpt is damaged .*Going on from update 2"):
        cli.train(["resume=run"])
    again = RunFolder(run).read_summary()
    assert again | {"wall_seconds": 0} == whole | {"wall_seconds": 0}
    for path in (run / "checkpoints").glob("*"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="No other checkpoint is left"):
        hpo_torchrl.load_policy(run)


def test_a_checkpoint_is_that_of_its_update(tmp_path):
    net = torch.nn.Linear(2, 1)
    checkpoint = Checkpoint(tmp_path, {"net": net}, config={})
    for update in (3, 5, 9):
        net.weight.data.fill_(update)
        path = checkpoint.save(update, {"at": update})
        assert path == checkpoint.newest()
    assert checkpoint.updates() == [5, 9]  # the newest two
    for update in (5, 9, None):
        net.weight.data.zero_()
        assert checkpoint.load(update) == (update or 9, {"at": update or 9})
        assert net.weight.tolist() == [[update or 9] * 2]
    for absent in (3, 4, 6, 10):
        with pytest.raises(CheckpointError, match=f"no checkpoint of update {absent}"):
            checkpoint.load(absent)
    assert checkpoint.load(5, components=["rng"])[0] == 5
    assert net.weight.tolist() == [[9, 9]]
    checkpoint.forget(9)
    checkpoint.forget(5)
    assert checkpoint.updates() == [5]
    other = Checkpoint(tmp_path / "other", {"net": net}, config={})
    other.save(4, {})
    with pytest.raises(CheckpointError, match="different updates, 4 to 5"):
        read_together([checkpoint, other])
    for update in (5, 6):
        other.save(update, {})
    assert [saved.update for saved in read_together([checkpoint, other])] == [5, 5]
    assert [saved.update for saved in read_together([other, other])] == [6, 6]


def test_a_failing_disk_is_no_damage(run, monkeypatch):
    checkpoint = Checkpoint(run, {}, config=RunFolder(run).read_config())

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.read_bytes", full)
    with pytest.raises(CheckpointError, match=r"No space left.*well be whole.*resume=") as found:
        checkpoint.load()
    assert not isinstance(found.value, DamagedError)


def test_what_is_not_finite_is_neither_saved_nor_loaded(tmp_path):
    net = torch.nn.Linear(2, 1)
    checkpoint = Checkpoint(tmp_path, {"net": net}, config={})
    path = checkpoint.save(0, {})
    net.bias.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"Update 1 spoilt net\.bias.*checkpoint-0+0\.ckpt"):
        checkpoint.save(1, {})
    assert checkpoint.newest() == path
    rewrite(path, lambda content: content["states"].update(net=net.state_dict()))
    with pytest.raises(DamagedError, match=r"net\.bias is not finite"):
        checkpoint.load()


def test_a_folder_has_one_owner(run):
    folder = RunFolder(run)
    with folder.owned():
        child = os.fork()
        if not child:  # another process
            code = 1
            try:
                with contextlib.redirect_stderr(io.StringIO()) as said:
                    cli.train([f"resume={run}"])
            except SystemExit:
                code = 0 if f"in use by process {os.getppid()}" in said.getvalue() else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with folder.owned():  # and is free again
        pass
    assert not (run / ".lock").exists()


def test_a_killed_owner_owns_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with folder.owned():
            os.write(write, b"x")
            signal.pause()
    os.read(read, 1)
    with pytest.raises(FileExistsError, match=f"process {child}"), folder.owned():
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with folder.owned():
        pass
    assert not folder.path.exists()  # nothing was written there


def test_several_seeds_go_on_wherever_they_were_killed(tmp_path):
    whole = RunFolder(tmp_path / "whole")
    cli.train([*FEW, "trainer.num_updates=1", "num_seeds=2", f"output_dir={whole.path}"])
    config = whole.read_config(of_seeds=True)
    for left in ("the seeds", "one configuration", "one checkpoint"):
        parts = RunFolder(tmp_path / left)
        parts.write_seeds([0, 1], config)
        if left != "the seeds":
            parts.of_seed(0).write_config(config)
        if left == "one checkpoint":
            shutil.copytree(whole.of_seed(0).checkpoints, parts.of_seed(0).checkpoints)
            newest(parts.of_seed(0).path).unlink()
        train_run(config, parts.path, resume=True)
        for seed in (0, 1):
            one, other = (folder.of_seed(seed).read_summary() for folder in (whole, parts))
            assert one | {"wall_seconds": 0} == other | {"wall_seconds": 0}


def test_a_run_killed_before_its_first_checkpoint_is_resumed(run, whole):
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    (run / "metrics.csv").unlink()
    cli.train([f"resume={run}"])
    one, other = (RunFolder(folder).read_summary() for folder in (run, whole))
    assert one | {"wall_seconds": 0} == other | {"wall_seconds": 0}
