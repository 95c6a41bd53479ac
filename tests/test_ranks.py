"""Ranks share a training: to rounding they come to what one process comes to, and fail together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rank_cases import CASES, SETTINGS, run, trained

from hpo_torchrl import load_run
from hpo_torchrl.__main__ import main
from hpo_torchrl.core import ranks
from hpo_torchrl.experiments import commands
from hpo_torchrl.training import Checkpoint

HERE = Path(__file__).parent
DYING = """
import os, signal
from hpo_torchrl.problems import InventoryEnv

class DyingEnv(InventoryEnv):
    def dynamics(self, state, action, noise):
        if os.environ["RANK"] == "1" and os.path.exists("run/metrics.csv"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().dynamics(state, action, noise)
"""


def torchrun(*command, folder, number=2):
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={number}"]
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [*launch, *map(str, command)],
        cwd=folder,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What two ranks have done, after one process has begun a run that they go on with."""
    folder = tmp_path_factory.mktemp("ranks")
    assert run(folder / "alone", stop=9)
    done = torchrun(HERE / "rank_cases.py", folder, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [torch.load(folder / f"rank{at}.pt", weights_only=False) for at in range(2)]
    return folder, found


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_come_to_what_one_process_comes_to(name, shared):
    _, (found, _) = shared
    expected = trained(name)
    both = {key: float(value) for key, value in expected.items() if key != "weights"}
    torch.testing.assert_close(found[name].pop("weights"), expected["weights"], rtol=0, atol=1e-12)
    assert found[name] == pytest.approx(both, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("fault", ["gradients apart", "means apart"])
def test_the_comparison_notices_what_is_not_shared(fault, shared):
    _, (found, _) = shared
    for name, spoilt in found[fault].items():
        assert (spoilt["weights"] - trained(name)["weights"]).abs().max() > 1e-6


def final(folder):
    """The weights and the selection of a run's last checkpoint."""
    saved = Checkpoint(folder, {}, config=yaml.safe_load((folder / "config.yaml").read_text()))
    states = saved.read(saved.updates()[-1]).states
    return {
        **states["policy"],
        **{f"carried {key}": value for key, value in states["collector"]["carried"].items()},
        "frames": torch.tensor(states["collector"]["frames"]),
        "selected": torch.tensor(states["selection"]["cost"]),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    assert not run(folder / "whole")
    return folder / "whole"


def test_a_run_of_two_ranks_is_that_of_one_process(shared, whole):
    """With scouting, starts, selection, evaluations and checkpoints of the whole batch."""
    folder, _ = shared
    torch.testing.assert_close(final(folder / "whole"), final(whole), rtol=1e-12, atol=1e-12)
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in (folder / "whole").iterdir()} == names
    ours, theirs = load_run(folder / "whole").summary, load_run(whole).summary
    assert ours.keys() == theirs.keys()
    numbers = [key for key, value in theirs.items() if isinstance(value, float)]
    numbers.remove("wall_seconds")
    assert [ours[key] for key in numbers] == pytest.approx([theirs[key] for key in numbers])


def test_a_run_goes_on_with_another_number_of_ranks(shared, whole):
    folder, (first, second) = shared
    assert first["stopped"]
    assert second["stopped"]
    assert not first["resumed"]
    assert not run(folder / "stopped", resume=True)
    for other in ("stopped", "alone"):
        torch.testing.assert_close(final(folder / other), final(whole), rtol=1e-12, atol=1e-12)


def test_only_rank_0_writes(shared):
    _, (first, second) = shared
    assert any("metrics.csv" in name for name in first["written"])
    assert second["written"] == []


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("not joined", "with ranks.joined"),
        ("too many", "2 ranks cannot share a batch of 1"),
        ("several seeds", r"HPO with seed=\[0, 1\]"),
        ("ddpg", "DDPG"),
        ("other settings", "the setting seed of HPO must be the same in all, got '0'"),
        ("other problem", "draws and earns must be the same in all"),
        ("own loss", "OwnLoss takes means of this rank"),
        ("spoilt", "reward"),
    ],
)
def test_every_rank_refuses_what_cannot_be_shared(what, words, shared):
    _, found = shared
    for own in found:
        assert words.replace("\\", "") in own[what]


def test_ranks_may_train_each_for_itself(shared):
    _, found = shared
    expected = trained("gumbel")["weights"]
    for own in found:
        assert torch.equal(own["alone"]["weights"], expected)


def test_a_killed_rank_ends_all_with_a_reason(tmp_path):
    """And leaves a run that one process can go on with."""
    (tmp_path / "dying.py").write_text(DYING)
    settings = [text for text in SETTINGS if "num_updates" not in text]
    command = ["-m", "hpo_torchrl", "train", *settings, "env._target_=dying.DyingEnv"]
    done = torchrun(*command, "trainer.num_updates=60", "output_dir=run", folder=tmp_path)
    assert done.returncode == 1
    assert f"exitcode  : -{signal.SIGKILL:d}" in done.stderr
    assert not (tmp_path / "run" / "summary.json").exists()
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_every_command_has_a_name_behind_the_package(monkeypatch):
    called = []
    monkeypatch.setattr(commands, "report", lambda: called.append(sys.argv))
    monkeypatch.setattr(sys, "argv", ["hpo_torchrl", "report", "runs"])
    main()
    assert called == [["hpo-report", "runs"]]
    monkeypatch.setattr(sys, "argv", ["hpo_torchrl", "trian"])
    with pytest.raises(SystemExit, match=r"one of train, eval, .* got 'trian'"):
        main()


@pytest.mark.parametrize("number", range(2, 9))
def test_shares_are_all_rows_once_and_differ_by_one(number, monkeypatch):
    monkeypatch.setattr(ranks, "size", lambda: number)
    for rows in (number, number + 1, 100):
        own = [range(rows)[ranks.share(rows, of)] for of in range(number)]
        assert [row for part in own for row in part] == list(range(rows))
        assert max(map(len, own)) - min(map(len, own)) <= 1
