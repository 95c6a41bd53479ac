"""Demand from a file: the reader's errors, the shipped sample, a run from the command line."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from hpo_torchrl.cli import train
from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.demand_file import DemandFileError, read_demand
from hpo_torchrl.envs import RecordedInventoryEnv
from hpo_torchrl.modules import HybridPolicy

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "examples" / "data" / "generated_demand.csv"


def test_the_sample_is_read_whole():
    record = read_demand(SAMPLE)
    lines = SAMPLE.read_text().splitlines()
    assert record.demand.size == len(lines) - 1
    head = lines[0].split(",")
    row = dict(zip(head, lines[5].split(","), strict=True))
    column = list(record.items).index(row["item"])
    place = [str(period) for period in record.periods].index(row["period"])
    assert record.demand[place, column] == float(row["demand"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("period,item\n1,a\n", "demand"),
        ("period,item,demand\n1,a,3\n2,a,many\n3,a,1\n", r"line 3.*many"),
        ("period,item,demand\n1,a,3\n2,a,-4\n3,a,1\n", "line 3"),
        ("period,item,demand\n1,a,3\n2,a,4\n2,a,5\n3,a,1\n", "line 4"),
        ("period,item,demand\n1,a,3\n2,a,4\n4,a,1\n", "3"),
        ("period,item,demand\n1,a,3\n1,b,3\n2,a,4\n", "b"),
        ("", "demand"),
    ],
)
def test_bad_files_say_where(tmp_path, text, words):
    path = tmp_path / "demand.csv"
    path.write_text(text)
    with pytest.raises(DemandFileError, match=f"(?s){words}"):
        read_demand(path)


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises((DemandFileError, FileNotFoundError), match=r"nothing\.csv"):
        read_demand(tmp_path / "nothing.csv")
    other = tmp_path / "demand.txt"
    other.write_text("period,item,demand\n1,a,1\n")
    with pytest.raises(DemandFileError, match=r"\.csv or \.parquet"):
        read_demand(other)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_the_environment_replays_its_split(split):
    env = RecordedInventoryEnv.from_file(str(SAMPLE), split=split, batch_size=8, seed=0)
    check_env_specs(env)
    policy, start = HybridPolicy.for_env(env, hidden=(8,)), env.reset()
    noise = env.sample_noise(6, start)
    with pytest.raises(ValueError, match="where a rollout starts"):
        env.sample_noise(6)
    runs = []
    for route in ("functional", "general"):
        torch.manual_seed(0)
        runs.append(
            differentiable_rollout(env, policy, 6, tensordict=start, noise=noise, route=route)
        )
    for key in ("observation", ("next", "reward")):
        assert torch.equal(runs[0][key], runs[1][key])


def test_a_run_compares_with_the_tuned_rule(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    arguments = [
        "env=inventory_from_file",
        f"env.path={SAMPLE}",
        "env.batch_size=8",
        "trainer.num_updates=2",
        "trainer.progress=false",
        "policy.hidden=[8]",
        "critic.hidden=[8]",
        f"output_dir={run}",
    ]
    monkeypatch.setattr("sys.argv", ["hpo-train", *arguments])
    train()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["baseline_costs"]["(s, S) rule"] > 0
    assert "(s, S) rule" in capsys.readouterr().out


def test_the_generator_reproduces_the_sample():
    script = ROOT / "examples" / "data" / "generate_demand.py"
    assert runpy.run_path(str(script))["generate"]() == SAMPLE.read_text()
