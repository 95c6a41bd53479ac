"""hpo-report: statistics, reading and grouping of runs, tables, figures and errors."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import yaml
from scipy import stats

from hpo_torchrl.reporting import (
    Run,
    compare_algorithms,
    compare_overall,
    compare_pairs,
    compare_times,
    estimate_improvement,
    estimate_iqm,
    estimate_median_ratio,
    find_families,
    group_runs,
    interquartile_mean,
    iqm_band,
    read_runs,
)
from hpo_torchrl.reporting.cli import main

OPTIMUM = 100.0
# Gaps at the tests after 10, 20, ... updates: within 10 % for good from the third on.
ARRIVES = (2.0, 0.5, 0.09, 0.08, 0.05)


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    gap: float = 0.05,
    gaps=ARRIVES,
    env: dict | None = None,
    algorithm: dict | None = None,
    reference: str = "optimum",
    finished: bool = True,
    **sections,
) -> Path:
    """Write the folder of a run that was tested every 10 updates of 640 steps and 2 seconds."""
    folder.mkdir(parents=True)
    config = {
        "env": {"name": "inventory", "num_items": 1, "seed": seed, "batch_size": 64} | (env or {}),
        "algorithm": {"name": "hpo", "cross_term": True} | (algorithm or {}),
        "trainer": {"num_updates": 50},
        "seed": seed,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config | sections))
    column = {"optimum": "gap", "lower bound": "gap_to_lower_bound", "nothing": "unknown"}
    rows = ["update,env_steps,cost,test_cost,test_cost_se," + column[reference] + ",wall_seconds"]
    rows += ["5,3200,1.0,,,,10.0"]  # logged but not tested
    rows += [
        f"{10 * k},{6400 * k},1.0,{OPTIMUM * (1 + g)},0.1,{g},{20.0 * k}"
        for k, g in enumerate(gaps, 1)
    ]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    if finished:
        summary = {
            "test_cost": OPTIMUM * (1.0 + gap),
            "test_cost_se": 0.1,
            "optimal_cost": OPTIMUM if reference == "optimum" else None,
            "lower_bound": OPTIMUM if reference == "lower bound" else None,
            "upper_bound": 104.0 if reference == "lower bound" else None,
            "baseline_costs": {"best fixed mode": 150.0} if reference == "lower bound" else {},
            "env_steps": 32000,
            "updates": 50,
            "wall_seconds": 100.0 + seed,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def grouped(root: Path):
    return group_runs(read_runs([root]).runs)


def picture(path: Path) -> int:
    pixels = matplotlib.image.imread(path)
    return len({tuple(pixel) for pixel in pixels.reshape(-1, pixels.shape[-1])[::7].tolist()})


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Statistics


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 8, 11])
def test_iqm_is_scipys_trimmed_mean_and_the_mean_of_the_middle(number):
    scores = np.random.default_rng(number).normal(size=number)
    cut = number // 4
    expected = np.sort(scores)[cut : number - cut].mean()
    assert interquartile_mean(scores) == pytest.approx(expected)
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores, 0.25))
    assert estimate_iqm(scores).value == pytest.approx(expected)


def test_iqm_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    estimates = [estimate_iqm(generator.normal(3.0, 2.0, 20)) for _ in range(250)]
    covered = np.mean([low <= 3.0 <= high for _, low, high in estimates])
    # Standard deviation of the share: 0.015.
    assert 0.88 <= covered <= 0.99


def test_bootstrap_of_two_problems_draws_within_each():
    low, high = [1.0, 1.0, 1.0], [9.0, 9.0, 9.0]
    # Drawn from the pool, the share of nines would vary; within strata it cannot.
    assert estimate_iqm(low, high) == (5.0, 5.0, 5.0)


def test_intervals_are_those_of_rliables_definition():
    """The percentiles of 5,000 resamples, drawn here by hand."""
    scores = np.random.default_rng(3).exponential(size=7)
    drawn = np.random.default_rng(4).integers(7, size=(20000, 7))
    expected = np.percentile(stats.trim_mean(scores[drawn], 0.25, axis=1), [2.5, 97.5])
    assert estimate_iqm(scores)[1:] == pytest.approx(expected, abs=0.05)
    assert estimate_iqm(scores) == estimate_iqm(scores)
    narrow = estimate_iqm(scores, level=0.5)
    assert expected[0] < narrow.low < narrow.high < expected[1]


def test_a_single_run_has_no_interval():
    assert estimate_iqm([2.0])[1:] == (None, None)
    assert estimate_improvement([[1.0]], [[2.0, 3.0]]) == (1.0, None, None)
    assert estimate_median_ratio([4.0, 6.0], [2.0]) == (2.5, None, None)
    assert iqm_band([[1.0, 2.0]])[1:] == (None, None)


def test_improvement_is_the_mann_whitney_statistic():
    generator = np.random.default_rng(1)
    first, second = generator.integers(5, size=6), generator.integers(1, 7, size=4)
    statistic = stats.mannwhitneyu(second, first, alternative="greater").statistic
    estimate = estimate_improvement([first], [second])
    assert estimate.value == pytest.approx(statistic / 24)
    assert estimate.low < estimate.value < estimate.high
    turned = estimate_improvement([second], [first])
    assert turned.value == pytest.approx(1.0 - estimate.value)
    both = estimate_improvement([first, [1.0, 1.0]], [second, [2.0, 2.0]])
    assert both.value == pytest.approx(0.5 * (estimate.value + 1.0))


def test_band_resamples_each_point_like_a_sample():
    curves = np.random.default_rng(2).normal(size=(6, 3))
    middle, low, high = iqm_band(curves)
    for point in range(3):
        estimate = estimate_iqm(curves[:, point])
        assert middle[point] == pytest.approx(estimate.value)
        assert (low[point], high[point]) == pytest.approx(estimate[1:], abs=0.15)


def test_ratio_of_times_with_runs_that_never_arrive():
    never = math.inf
    assert estimate_median_ratio([40.0, 40.0], [20.0, 20.0]) == (2.0, 2.0, 2.0)
    assert estimate_median_ratio([never, never], [20.0, 20.0]) == (never, never, never)
    unknown = estimate_median_ratio([never, never], [never, never])
    assert math.isnan(unknown.value)
    assert unknown[1:] == (0.0, never)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interquartile_mean([]), "at least one number"),
        (lambda: interquartile_mean([1.0, math.nan]), "no NaN"),
        (estimate_iqm, "at least one problem"),
        (lambda: estimate_iqm([1.0, 2.0], level=95), "level must be a probability"),
        (lambda: estimate_improvement([[1.0]], []), "same problems"),
        (lambda: estimate_median_ratio([0.0], [1.0]), "positive"),
        (lambda: iqm_band([1.0, 2.0]), "shape"),
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
        ((0.05, 0.05), 10),
        ((0.5, 0.3, 0.05), None),  # the last test has no second one to confirm it
        ((0.5, 0.4, 0.3), None),
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


def test_unfinished_run_counts_and_is_told(tmp_path, capsys):
    for seed in range(3):
        write_run(tmp_path / f"run{seed}", seed=seed)
    partial = write_run(tmp_path / "partial", seed=3, finished=False)
    with (partial / "metrics.csv").open("a") as file:
        file.write("60,384")  # killed while it wrote this row
    fresh = write_run(tmp_path / "fresh", seed=4, finished=False)
    (fresh / "metrics.csv").unlink()
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert "5 runs: 3 finished, 2 not finished" in shown
    assert f"{partial}: not finished, update 50 of 50." in shown
    assert f"{fresh}: not finished, update 0 of 50." in shown
    assert "| 3 of 5 |" in shown
    (row,) = rows_of(tmp_path / "comparison.csv")
    assert (row["seeds"], row["finished"], row["reached"]) == ("5", "3", "3")
    assert len(rows_of(tmp_path / "runs.csv")) == 5


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", '{"test_cost": ', "summary.json cannot be read"),
        ("summary.json", "[]", "holds no names"),
        ("summary.json", '{"test_cost": null}', "test_cost must be a finite number, got None"),
        ("config.yaml", "env: [", "config.yaml cannot be read"),
        ("config.yaml", "env: {name: x}", "lacks algorithm, trainer"),
        ("config.yaml", "other: tool", "not the configuration of a run"),
    ],
)
def test_damaged_run_is_named_and_the_others_reported(tmp_path, capsys, file, content, message):
    write_run(tmp_path / "good")
    damaged = write_run(tmp_path / "bad", seed=1)
    (damaged / file).write_text(content)
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert message in shown
    assert str(damaged) in shown
    assert (damaged / file).read_text() == content


@pytest.mark.parametrize("content", ["update,test_cost\nx,1\n2,1\n", "update\n1\n", None])
def test_finished_run_with_damaged_metrics_keeps_its_cost(tmp_path, capsys, content):
    folder = write_run(tmp_path / "run")
    if content is None:
        (folder / "metrics.csv").unlink()
    else:
        (folder / "metrics.csv").write_text(content)
    main([str(tmp_path)])
    assert "counts as never reaching the target" in capsys.readouterr().out
    (row,) = rows_of(tmp_path / "comparison.csv")
    assert (row["cost_iqm"], row["reached"], row["updates_to_target"]) == ("105.0", "0", "inf")


def test_same_seed_twice_keeps_the_newest_and_says_so(tmp_path, capsys):
    old = write_run(tmp_path / "z-old", gap=0.5)
    new = write_run(tmp_path / "a-new", gap=0.05)
    for path in old.iterdir():
        os.utime(path, (1e9, 1e9))
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert f"{old}: replaced (seed 0 again in {new}, which is newer and finished)" in shown
    (row,) = rows_of(tmp_path / "comparison.csv")
    assert (row["seeds"], row["cost_iqm"]) == ("1", "105.0")
    assert [row["status"] for row in rows_of(tmp_path / "runs.csv")] == ["finished", "replaced"]


def test_labels_show_the_settings_that_differ(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", algorithm={"cross_term": False})
    write_run(tmp_path / "c", env={"num_items": 50}, trainer={"num_updates": 100})
    write_run(tmp_path / "d", env={"name": "switched_lqr"}, algorithm={"name": "ppo"})
    problems, _, notes = grouped(tmp_path)
    assert {problem.label: list(problem.algorithms) for problem in problems} == {
        "inventory num_items=1": ["hpo cross_term=False", "hpo cross_term=True"],
        "inventory num_items=50": ["hpo cross_term=True"],
        "switched_lqr": ["ppo"],
    }
    assert notes == ["hpo: trainer.num_updates changes with the problem (50, 100)."]


def test_how_one_trains_is_no_other_problem(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", env={"batch_size": 256})
    (problem,), _, _ = grouped(tmp_path)
    assert problem.label == "inventory"
    assert list(problem.algorithms) == ["hpo batch_size=256", "hpo batch_size=64"]


def test_families_differ_in_one_number_alone(tmp_path):
    for dim in (3, 20, 100):
        for modes in (2, 4):
            write_run(tmp_path / f"{dim}-{modes}", env={"dim": dim, "num_modes": modes})
    write_run(tmp_path / "text", env={"dim": 3, "num_modes": 2, "demand": "trace"})
    families = find_families(grouped(tmp_path)[0])
    sizes = {
        place: {title: [p.settings[place[1]] for p in family] for title, family in found.items()}
        for place, found in families.items()
    }
    assert sizes == {
        ("inventory", "dim"): {
            "num_modes=2 demand=unset": [3, 20, 100],
            "num_modes=4 demand=unset": [3, 20, 100],
        },
        ("inventory", "num_modes"): {f"dim={dim} demand=unset": [2, 4] for dim in (3, 20, 100)},
    }


# Tables


def test_table_on_numbers_worked_out_by_hand(tmp_path):
    late = (2.0, 0.5, 0.4, 0.09, 0.05)
    finals, curves = [0.01, 0.02, 0.03, 0.04, 0.90], [ARRIVES, ARRIVES, late, late, (9.0,) * 5]
    for seed, (gap, gaps) in enumerate(zip(finals, curves, strict=True)):
        write_run(tmp_path / f"with{seed}", seed=seed, gap=gap, gaps=gaps)
        write_run(
            tmp_path / f"without{seed}",
            seed=seed,
            gap=gap + 0.005,
            gaps=(0.05,) * 5,
            algorithm={"cross_term": False},
        )
    problems, _, _ = grouped(tmp_path)
    fast, slow = compare_algorithms(problems, target=0.10)
    assert (slow["algorithm"], slow["seeds"], slow["finished"]) == ("hpo cross_term=True", 5, 5)
    assert slow["cost_iqm"] == pytest.approx(103.0)
    assert slow["gap_iqm"] == pytest.approx(0.03)
    assert slow["gap_iqm_low"] < 0.03 < slow["gap_iqm_high"]
    assert slow["gap_worst"] == pytest.approx(0.90)
    # 30, 30, 40, 40, never: the median is the third.
    assert (slow["reached"], slow["updates_to_target"]) == (4, 40.0)
    assert (slow["env_steps_to_target"], slow["seconds_to_target"]) == (25600.0, 80.0)
    assert slow["wall_seconds"] == 102.0
    assert (fast["reached"], fast["updates_to_target"]) == (5, 10.0)
    (pair,) = compare_pairs(problems)
    # Of the 25 pairs the one without cross term wins those of its own smaller rank: 4+3+2+1.
    assert (pair["first"], pair["probability"]) == ("hpo cross_term=False", pytest.approx(0.4))
    (ratio,) = compare_times(problems[0], target=0.10)
    assert (ratio["fastest"], ratio["updates_ratio"]) == ("hpo cross_term=False", 4.0)
    assert (ratio["updates_ratio_low"], ratio["updates_ratio_high"]) == (3.0, math.inf)
    assert ratio["seconds_ratio"] == 4.0


def test_gap_to_a_lower_bound_shows_the_lines_to_beat(tmp_path, capsys):
    write_run(tmp_path / "run", reference="lower bound")
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert (
        "Lower bound 100.0000; best fixed mode 150.0000 (+50.00 %); upper bound 104.0000" in shown
    )
    assert "gap to lower bound" in shown
    assert "105.0000 [-]" in shown
    assert "+5.00 % [-]" in shown
    assert "1 of 1" in shown


def test_without_reference_there_is_no_gap_and_no_target(tmp_path, capsys):
    write_run(tmp_path / "a", reference="nothing")
    write_run(tmp_path / "b", reference="nothing", algorithm={"name": "ppo"})
    main([str(tmp_path)])
    assert "Neither optimum nor lower bound is known" in capsys.readouterr().out
    for row in rows_of(tmp_path / "comparison.csv"):
        assert (row["gap_iqm"], row["reached"], row["updates_to_target"]) == ("", "", "")
    assert len(list(tmp_path.glob("report-curves-*.png"))) == 1


def test_no_ratio_where_nobody_reaches_the_target(tmp_path, capsys):
    for name in ("hpo", "ppo"):
        write_run(tmp_path / name, algorithm={"name": name}, gaps=(0.5, 0.4))
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert "no ratio of times" in shown
    assert "never" in shown


def test_problems_are_pooled_where_all_algorithms_ran(tmp_path):
    for items, gaps in ((1, (0.01, 0.03)), (2, (0.05, 0.07)), (3, (0.5,))):
        for seed, gap in enumerate(gaps):
            for name in ("hpo", "ppo")[: len(gaps)]:
                write_run(
                    tmp_path / f"{items}-{seed}-{name}",
                    seed=seed,
                    gap=gap * (1 if name == "hpo" else 2),
                    env={"num_items": items},
                    algorithm={"name": name},
                )
    rows, shared = compare_overall(grouped(tmp_path)[0])
    assert [problem.settings["num_items"] for problem in shared] == [1, 2]
    assert [row["gap_iqm"] for row in rows] == pytest.approx([0.04, 0.08])  # of the middle two


# The command


def test_report_files_and_figures(tmp_path, capsys):
    runs, output = tmp_path / "runs", tmp_path / "deep" / "report"
    for items in (1, 10, 50):
        for name in ("hpo", "ppo"):
            for seed in range(2):
                late = (0.5, 0.4) if name == "ppo" and items == 50 else ARRIVES
                folder = write_run(
                    runs / f"{items}-{name}-{seed}",
                    seed=seed,
                    gap=0.001 * items - 0.005 * seed,  # some below the optimum, by luck
                    gaps=late,
                    env={"num_items": items},
                    algorithm={"name": name},
                    reference="lower bound" if items > 1 else "optimum",
                )
                write_gradients(folder, 1.0 / items)
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    main([str(runs), "--output", str(output), "--target", "0.2"])
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before
    report = (output / "report.md").read_text()
    pictures = sorted(output.glob("*.png"))
    assert [path.name for path in pictures] == [
        "report-curves-inventory-num_items=1.png",
        "report-curves-inventory-num_items=10.png",
        "report-curves-inventory-num_items=50.png",
        "report-gap-inventory-num_items.png",
        "report-gradients-inventory-num_items.png",
        "report-updates-inventory-num_items.png",
    ]
    for path in pictures:
        assert picture(path) > 10
        assert f"]({path.name})" in report
    assert "12 runs: 12 finished; 3 problems, 2 algorithms." in report
    assert "## What the numbers mean" in report
    assert "updates to 20 %" in report
    assert "Over the 3 problems" in report
    assert "| mixed " in report
    first = capsys.readouterr().out
    assert f"written: {output / 'report.md'}" in first
    main([str(runs), "--output", str(output), "--target", "0.2"])
    assert capsys.readouterr().out == first
    assert (output / "report.md").read_text() == report


def write_gradients(folder: Path, signal: float) -> None:
    measures = ("signal_to_noise", "alignment")
    header = ["group", "estimator", "whole", "known_bias"]
    header += [f"{name}{end}" for name in measures for end in ("", "_low", "_high")]
    with (folder / "gradients.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for group in ("discrete", "continuous"):
            writer.writerow([group, "mixed", True, "none", signal, 0.0, 2.0, 0.8, 0.7, 0.9])
            writer.writerow([group, "cross", False, "none", 0.1, 0.0, 0.2, 0.1, 0.0, 0.2])


def test_gradients_alone_make_a_report(tmp_path, capsys):
    write_gradients(tmp_path, 0.5)
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert "0.50 [0.00, 2.00]" in shown
    assert "cross (term)" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "No run found under"),
        (["{root}/nowhere"], "There is no folder"),
        (["{root}/run/config.yaml"], "is a file; name a folder"),
        (["{root}/run", "--target", "0"], "target must be a finite number > 0, got 0.0"),
        (["{root}/run", "--target", "-0.1"], "target must be a finite number > 0, got -0.1"),
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
    given = [text.format(root=tmp_path, empty=tmp_path / "empty") for text in arguments]
    with pytest.raises(SystemExit) as stopped:
        main(given)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_made_by_hand_needs_no_files():
    config = {"env": {"name": "x"}, "algorithm": {"name": "hpo"}, "trainer": {}, "seed": 0}
    run = Run(Path("nowhere"), config)
    (row,) = compare_algorithms(group_runs([run])[0], target=0.1)
    assert (row["seeds"], row["finished"], row["cost_iqm"], row["gap_worst"]) == (1, 0, None, None)
