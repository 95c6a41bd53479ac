"""hpo-report and a run's own tables and figures: statistics, reading, grouping, files, errors."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from hpo_torchrl.problems.inventory.reference import InventoryPolicyView, plot_inventory_policy
from hpo_torchrl.reporting import format_summary, plot_learning_curve
from hpo_torchrl.reporting.compare import (
    compare_algorithms,
    compare_overall,
    compare_pairs,
    compare_times,
)
from hpo_torchrl.reporting.groups import Problem, find_families, group_runs
from hpo_torchrl.reporting.report import main
from hpo_torchrl.reporting.runs import read_runs
from hpo_torchrl.reporting.statistics import (
    estimate_improvement,
    estimate_iqm,
    estimate_median_ratio,
)

OPTIMUM = 100.0
# Gaps at the tests after 10, 20, ... updates: within 10 % for good from the third on.
ARRIVES = (2.0, 0.5, 0.09, 0.08, 0.05)


def write_run(
    folder: Path,
    *,
    seed=0,
    gap=0.05,
    gaps=ARRIVES,
    env=None,
    algorithm=None,
    reference="optimum",
    finished=True,
    **sections,
) -> Path:
    """Write the folder of a run that was tested every 10 updates of 640 steps and 2 seconds."""
    folder.mkdir(parents=True)
    config = {
        "env": {"name": "inventory", "num_items": 1, "seed": seed} | (env or {}),
        "collect": {"batch_size": 64},
        "algorithm": {"name": "hpo", "cross_term": True} | (algorithm or {}),
        "trainer": {"num_updates": 50},
        "seed": seed,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config | sections))
    column = {"optimum": "gap", "lower bound": "gap_to_lower_bound", "nothing": "unknown"}
    rows = ["update,env_steps,cost,test_cost,test_cost_se," + column[reference] + ",wall_seconds"]
    rows += ["5,3200,1.0,,,,10.0"]  # logged but not tested
    for k, g in enumerate(gaps, 1):
        rows.append(f"{10 * k},{6400 * k},1.0,{OPTIMUM * (1 + g)},0.1,{g},{20.0 * k}")
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    bounded = reference == "lower bound"
    summary = {"test_cost": OPTIMUM * (1.0 + gap), "test_cost_se": 0.1, "env_steps": 32000}
    summary |= {"updates": 50, "wall_seconds": 100.0 + seed}
    summary["optimal_cost"] = OPTIMUM if reference == "optimum" else None
    summary |= {"lower_bound": OPTIMUM, "upper_bound": 104.0} if bounded else {}
    summary["baseline_costs"] = {"best fixed mode": 150.0} if bounded else {}
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_gradients(folder: Path, signal) -> None:
    names = [f"{name}{end}" for name in ("signal_to_noise", "alignment") for end in ENDS]
    lines = [",".join(["group", "estimator", "whole", "known_bias", *names])]
    for group in ("discrete", "continuous"):
        lines.append(f"{group},mixed,True,none,{signal},0.0,2.0,0.8,0.7,0.9")
        lines.append(f"{group},cross,False,none,0.1,0.0,0.2,nan,nan,nan")
    (folder / "gradients.csv").write_text("\n".join(lines) + "\n")


ENDS = ("", "_low", "_high")


def grouped(root: Path):
    return group_runs(read_runs([root]).runs)


def report(root: Path, capsys) -> str:
    main([str(root)])
    return capsys.readouterr().out


def colours(path: Path) -> int:
    """Read a PNG back and count its colours: it must be a picture with something on it."""
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 200
    return len(np.unique((255 * pixels[..., :3]).astype(int) @ [1, 256, 65536]))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Statistics


@pytest.mark.parametrize("number", [1, 3, 4, 11])
def test_iqm_and_its_interval_are_scipys(number):
    scores = np.random.default_rng(number).exponential(size=number)
    estimate = estimate_iqm(scores)
    assert estimate == estimate_iqm(scores)
    assert estimate.value == pytest.approx(stats.trim_mean(scores, 0.25))
    if number == 1:
        assert estimate[1:] == (None, None)
        return
    settings = {"method": "percentile", "n_resamples": 20000, "random_state": 4}
    found = stats.bootstrap((scores,), lambda x, axis: stats.trim_mean(x, 0.25, axis), **settings)
    assert estimate[1:] == pytest.approx(tuple(found.confidence_interval), abs=0.06)
    narrow = estimate_iqm(scores, level=0.5)
    assert estimate.low <= narrow.low < narrow.high <= estimate.high
    curve = estimate_iqm([scores, 2.0 * scores])
    assert curve.value == pytest.approx([estimate.value, 2.0 * estimate.value])
    assert curve.low == pytest.approx(np.array([1.0, 2.0]) * estimate.low, abs=0.2)
    assert curve.high[1] == pytest.approx(2.0 * curve.high[0])  # the same resampled runs


def test_iqm_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    estimates = [estimate_iqm(generator.normal(3.0, 2.0, 20)) for _ in range(250)]
    covered = np.mean([low <= 3.0 <= high for _, low, high in estimates])
    assert 0.88 <= covered <= 0.99  # the standard deviation of this fraction is 0.015


def test_bootstrap_of_two_problems_draws_within_each():
    # Drawn from the pool, the fraction of nines would vary; within strata it cannot.
    assert estimate_iqm([1.0, 1.0, 1.0], [9.0, 9.0, 9.0]) == (5.0, 5.0, 5.0)


def test_improvement_is_the_mann_whitney_statistic():
    generator = np.random.default_rng(1)
    first, second = generator.integers(5, size=6), generator.integers(1, 7, size=4)
    statistic = stats.mannwhitneyu(second, first, alternative="greater").statistic
    estimate = estimate_improvement([first], [second])
    assert estimate.value == pytest.approx(statistic / 24)
    assert estimate.low < estimate.value < estimate.high
    assert estimate_improvement([second], [first]).value == pytest.approx(1.0 - estimate.value)
    both = estimate_improvement([first, [1.0, 1.0]], [second, [2.0, 2.0]])
    assert both.value == pytest.approx(0.5 * (estimate.value + 1.0))
    assert estimate_improvement([[1.0]], [[2.0, 3.0]]) == (1.0, None, None)


def test_ratio_of_times_with_runs_that_never_arrive():
    never = math.inf
    assert estimate_median_ratio([4.0, 6.0], [2.0]) == (2.5, None, None)
    assert estimate_median_ratio([40.0, 40.0], [20.0, 20.0]) == (2.0, 2.0, 2.0)
    assert estimate_median_ratio([never, never], [20.0, 20.0]) == (never, never, never)
    unknown = estimate_median_ratio([never, never], [never, never])
    assert math.isnan(unknown.value)
    assert unknown[1:] == (0.0, never)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate_iqm([]), "at least one number"),
        (lambda: estimate_iqm([1.0, math.nan]), "no NaN"),
        (estimate_iqm, "at least one problem"),
        (lambda: estimate_iqm([1.0, 2.0], level=95), "level must be a probability"),
        (lambda: estimate_improvement([[1.0]], []), "same problems"),
        (lambda: estimate_median_ratio([0.0], [1.0]), "positive"),
    ],
)
def test_statistics_refuse_what_they_cannot_use(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Reading and grouping


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        (ARRIVES, 30),
        ((0.09, 0.2, 0.10, 0.10), 30),  # one good test is luck; the target itself counts
        ((0.5, 0.3, 0.05), None),  # the last test has no second one to confirm it
        ((0.05, math.nan, 0.05), None),
        ((), None),
    ],
)
def test_time_to_target(tmp_path, gaps, expected):
    write_run(tmp_path / "run", gaps=gaps)
    (run,) = read_runs([tmp_path]).runs
    row = run.time_to_target(0.10, "gap")
    assert (row and row["update"]) == expected
    assert row is None or row["env_steps"] == 640 * expected


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    write_run(tmp_path / "a" / "b" / "c")
    write_run(tmp_path / ".hidden")
    found = read_runs([tmp_path, tmp_path / "a"])
    assert [run.folder for run in found.runs] == [tmp_path / "a" / "b" / "c"]


def test_runs_that_do_not_count_are_told(tmp_path, capsys):
    for seed in range(3):
        new = write_run(tmp_path / f"run{seed}", seed=seed)
    old = write_run(tmp_path / "z-old", seed=2, gap=0.5)
    for path in old.iterdir():
        os.utime(path, (1e9, 1e9))
    partial = write_run(tmp_path / "partial", seed=3, finished=False)
    with (partial / "metrics.csv").open("a") as file:
        file.write("60,384")  # killed while it wrote this row
    fresh = write_run(tmp_path / "fresh", seed=4, finished=False)
    (fresh / "metrics.csv").unlink()
    shown = report(tmp_path, capsys)
    assert "6 runs: 3 finished, 2 not finished, 1 replaced" in shown
    assert f"{old}: replaced (seed 2 again in {new}, which is newer and finished)" in shown
    assert f"{partial}: not finished, update 50 of 50." in shown
    assert f"{fresh}: not finished, update 0 of 50." in shown
    assert "| 3 of 5 |" in shown
    (row,) = rows_of(tmp_path / "comparison.csv")
    assert (row["seeds"], row["finished"], row["reached"]) == ("5", "3", "3")
    assert row["cost_iqm"] == "105.0"
    assert [row["status"] for row in rows_of(tmp_path / "runs.csv")][-1:] == ["replaced"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", '{"test_cost": ', "summary.json is damaged"),
        ("summary.json", "[]", "holds no names"),
        ("summary.json", '{"test_cost": null}', "test_cost must be a finite number, got None"),
        ("config.yaml", "env: [", "config.yaml is damaged"),
        ("config.yaml", "env: {name: x}", "lacks algorithm, trainer"),
        ("gradients.csv", "group,estimator\nx,y\n", "gradients.csv is damaged: 'whole'"),
    ],
)
def test_damaged_run_is_named_and_the_others_reported(tmp_path, capsys, file, content, message):
    write_run(tmp_path / "good")
    damaged = write_run(tmp_path / "bad", seed=1)
    (damaged / file).write_text(content)
    shown = report(tmp_path, capsys)
    assert message in shown
    assert str(damaged) in shown
    assert (damaged / file).read_text() == content


@pytest.mark.parametrize(
    "content", ["update,test_cost\nx,1\n2,1\n", "update,test_cost\nnan,1\n", "update\n1\n", None]
)
def test_finished_run_with_damaged_metrics_keeps_its_cost(tmp_path, capsys, content):
    path = write_run(tmp_path / "run") / "metrics.csv"
    path.unlink() if content is None else path.write_text(content)
    assert "counts as never reaching the target" in report(tmp_path, capsys)
    (row,) = rows_of(tmp_path / "comparison.csv")
    assert (row["cost_iqm"], row["reached"], row["updates_to_target"]) == ("105.0", "0", "inf")


def test_a_rule_has_no_training_to_time(tmp_path, capsys):
    path = write_run(tmp_path / "rule", algorithm={"name": "s_S"}) / "summary.json"
    (path.parent / "metrics.csv").unlink()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"updates": 0}))
    shown = report(tmp_path, capsys)
    assert "## Notes" not in shown
    assert "never" not in shown
    assert rows_of(tmp_path / "comparison.csv")[0]["reached"] == ""


def test_labels_show_the_settings_that_differ(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", algorithm={"cross_term": False})
    write_run(tmp_path / "c", env={"num_items": 50}, trainer={"num_updates": 100})
    write_run(tmp_path / "d", collect={"batch_size": 256}, env={"device": "cuda"})
    lqr = {"name": None, "_target_": "my.package.SwitchedLQR"}
    write_run(tmp_path / "e", env=lqr, algorithm={"name": "ppo"})
    problems, _, notes = grouped(tmp_path)
    assert {problem.label: list(problem.algorithms) for problem in problems} == {
        "SwitchedLQR": ["ppo"],
        "inventory num_items=1": [
            "hpo batch_size=256 cross_term=True",
            "hpo batch_size=64 cross_term=False",
            "hpo batch_size=64 cross_term=True",
        ],
        "inventory num_items=50": ["hpo batch_size=64 cross_term=True"],
    }
    assert notes == ["hpo: trainer.num_updates changes with the problem (50, 100)."]


def test_families_differ_in_one_number_alone():
    settings = [{"dim": dim, "num_modes": modes} for dim in (20, 3, 100) for modes in (2, 4)]
    settings = [one | {"demand": "unset"} for one in settings]
    settings.append({"dim": 3, "num_modes": 2, "demand": "trace"})
    families = find_families([Problem("", "lqr", one, {}) for one in settings])
    sizes = {
        place: {title: [p.settings[place[1]] for p in family] for title, family in found.items()}
        for place, found in families.items()
    }
    titles = [f"num_modes={modes} demand=unset" for modes in (2, 4)]
    assert sizes == {
        ("lqr", "dim"): {title: [3, 20, 100] for title in titles},
        ("lqr", "num_modes"): {f"dim={dim} demand=unset": [2, 4] for dim in (3, 20, 100)},
    }


# Tables


def test_table_on_numbers_worked_out_by_hand(tmp_path):
    late = (2.0, 0.5, 0.4, 0.09, 0.05)
    finals, curves = [0.01, 0.02, 0.03, 0.04, 0.90], [ARRIVES, ARRIVES, late, late, (9.0,) * 5]
    for seed, (gap, gaps) in enumerate(zip(finals, curves, strict=True)):
        write_run(tmp_path / f"with{seed}", seed=seed, gap=gap, gaps=gaps)
        other = {"gap": gap + 0.005, "gaps": (0.05,) * 5, "algorithm": {"cross_term": False}}
        write_run(tmp_path / f"without{seed}", seed=seed, **other)
    problems, _, _ = grouped(tmp_path)
    fast, slow = compare_algorithms(problems, target=0.10)
    assert (slow["algorithm"], slow["seeds"], slow["finished"]) == ("hpo cross_term=True", 5, 5)
    assert slow["cost_iqm"].value == pytest.approx(103.0)
    assert slow["gap_iqm"].value == pytest.approx(0.03)
    assert slow["gap_iqm"].low < 0.03 < slow["gap_iqm"].high
    assert slow["gap_worst"] == pytest.approx(0.90)
    # 30, 30, 40, 40, never: the median is the third.
    assert (slow["reached"], slow["updates_to_target"]) == (4, 40.0)
    assert (slow["env_steps_to_target"], slow["seconds_to_target"]) == (25600.0, 80.0)
    assert slow["wall_seconds"] == 102.0
    assert (fast["reached"], fast["updates_to_target"]) == (5, 10.0)
    (pair,) = compare_pairs(problems)
    # The runs without cross term win 4 + 3 + 2 + 1 of the 25 pairs.
    assert (pair["first"], pair["probability"].value) == ("hpo cross_term=False", 0.4)
    (ratio,) = compare_times(problems[0], target=0.10)
    assert (ratio["fastest"], ratio["updates_ratio"]) == ("hpo cross_term=False", (4, 3, math.inf))
    assert ratio["seconds_ratio"].value == 4.0


@pytest.mark.parametrize(
    ("reference", "gaps", "row", "texts"),
    [
        (
            "lower bound",
            ARRIVES,
            ("1", "30.0"),
            [
                "Lower bound 100.0000; best fixed mode 150.0000 (+50.00 %); upper bound 104.0000",
                "gap to lower bound",
                "105.0000 [-]",
                "+5.00 % [-]",
                " 1 of 1 |",
            ],
        ),
        ("nothing", ARRIVES, ("", ""), ["Neither optimum nor lower bound is known"]),
        ("optimum", (0.5, 0.4), ("0", "inf"), ["no ratio of times", "never"]),
    ],
)
def test_report_says_what_gaps_are_to(tmp_path, capsys, reference, gaps, row, texts):
    for name in ("hpo", "ppo"):
        write_run(tmp_path / name, reference=reference, algorithm={"name": name}, gaps=gaps)
    shown = report(tmp_path, capsys)
    assert [text for text in texts if text not in shown] == []
    for found in rows_of(tmp_path / "comparison.csv"):
        assert (found["reached"], found["updates_to_target"]) == row
    assert len(list(tmp_path.glob("report-curves-*.png"))) == 1


def test_problems_are_pooled_where_all_algorithms_ran(tmp_path):
    for items, gaps in ((1, (0.01, 0.03)), (2, (0.05, 0.07)), (3, (0.5,))):
        for seed, gap in enumerate(gaps):
            for factor, name in ((1, "hpo"), (2, "ppo"))[: len(gaps)]:
                settings = {"env": {"num_items": items}, "algorithm": {"name": name}}
                folder = tmp_path / f"{items}-{seed}-{name}"
                write_run(folder, seed=seed, gap=gap * factor, **settings)
    rows, shared = compare_overall(grouped(tmp_path)[0])
    assert [problem.settings["num_items"] for problem in shared] == [1, 2]
    # The mean of the middle two.
    assert [row["gap_iqm"].value for row in rows] == pytest.approx([0.04, 0.08])


def test_summary_leaves_out_what_is_unknown():
    summary = {"test_cost": 40.0, "updates": 2, "env_steps": 1000, "wall_seconds": 1.0}
    assert format_summary({**summary, "optimal_cost": None, "test_cost_se": None}).splitlines() == [
        "test cost        40.0000   per unit and period",
        "trained          2 updates, 1,000 environment steps, 1 s",
    ]
    text = format_summary({**summary, "lower_bound": 37.0, "test_cost_se": math.nan})
    assert "lower bound      37.0000" in text
    assert "nan" not in text
    bounds = {"gap_to_lower_bound": 0.05, "gap_to_upper_bound": -0.01}
    assert "gap              at most +5.00 % (to the lower bound), at least -1.00 %" in (
        format_summary({**summary, **bounds})
    )


# Figures and the command


@pytest.mark.parametrize(
    ("errors", "reference"),
    [(None, {"lower_bound": 36.0}), ([3.0, 0.5, 0.1], {"optimum": 37.0}), (None, {})],
)
def test_learning_curve_is_drawn(tmp_path, errors, reference):
    costs, path = [90.0, 40.0, 36.9], tmp_path / "curve.png"
    assert colours(plot_learning_curve(path, [1, 10, 20], costs, errors=errors, **reference)) > 10
    assert colours(plot_learning_curve(path, [], [], **reference)) > 1


def test_policy_is_drawn(tmp_path):
    for visited, optimal in (([], {}), ([20.0, 25.0], {"optimal_s": 26, "optimal_S": 62})):
        view = InventoryPolicyView(
            position=torch.tensor([0.0, 20.0]),
            order_probability=torch.tensor([1.0, 0.1]),
            order_up_to=torch.tensor([60.0, 62.0]),
            visited_position=torch.tensor(visited),
            visited_order_up_to=torch.full((len(visited),), 62.0),
        )
        path = plot_inventory_policy(tmp_path / "policy.png", view, **optimal)
        assert colours(path) > 10


def test_report_files_and_figures(tmp_path, capsys):
    runs, output = tmp_path / "runs", tmp_path / "deep" / "report"
    for items in (1, 10, 50):
        for name in ("hpo", "ppo"):
            for seed in range(2):
                folder = write_run(
                    runs / f"{items}-{name}-{seed}",
                    seed=seed,
                    gap=0.001 * items - 0.005 * seed,  # some below the optimum, by luck
                    gaps=(0.5, 0.4) if name == "ppo" and items == 50 else ARRIVES,
                    env={"num_items": items},
                    algorithm={"name": name},
                    reference="lower bound" if items > 1 else "optimum",
                )
                write_gradients(folder, 1.0 / items)
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    main([str(runs), "--output", str(output), "--target", "0.2"])
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before
    text = (output / "report.md").read_text()
    pictures = sorted(output.glob("*.png"))
    kinds = [f"curves-inventory-num_items={items}" for items in (1, 10, 50)]
    kinds += [f"{kind}-inventory-num_items" for kind in ("gap", "gradients", "updates")]
    assert [path.name for path in pictures] == [f"report-{kind}.png" for kind in kinds]
    for path in pictures:
        assert colours(path) > 10
        assert f"]({path.name})" in text
    assert "12 runs: 12 finished; 3 problems, 2 algorithms." in text
    assert "## What the numbers mean" in text
    assert "updates to 20 %" in text
    assert "Over the 3 problems" in text
    assert "| mixed " in text
    assert f"written: {output / 'report.md'}" in capsys.readouterr().out


def test_gradients_alone_make_a_report(tmp_path, capsys):
    write_gradients(tmp_path, 0.5)
    shown = report(tmp_path, capsys)
    assert "0.50 [0.00, 2.00]" in shown
    assert "cross (term)" in shown
    assert report(tmp_path, capsys) == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/empty"], "No run found under"),
        (["{root}/nowhere"], "There is no folder"),
        (["{root}/run/config.yaml"], "is a file; name a folder"),
        (["{root}/run", "--target", "0"], "target must be a finite number > 0, got 0.0"),
        (["{root}/run", "--target", "nan"], "target must be a finite number > 0"),
        (["{root}/run", "--target", "ten"], "invalid float value"),
        (["{root}/run", "--output", "{root}/run/config.yaml"], "is a file; name a folder"),
        (["{root}/broken"], "can be read: "),
        ([], "required: DIR"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path, capsys, arguments, message):
    write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("a: [")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main([text.format(root=tmp_path) for text in arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
