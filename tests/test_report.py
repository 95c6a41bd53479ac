"""hpo-report and a run's own tables and figures: statistics, reading, grouping, files, errors."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy import stats

from hpo_torchrl.problems.inventory.reference import InventoryPolicyView, plot_inventory_policy
from hpo_torchrl.reporting import format_summary, plot_learning_curve
from hpo_torchrl.reporting.groups import find_sizes, group_runs
from hpo_torchrl.reporting.report import main, write_report
from hpo_torchrl.reporting.runs import read_runs
from hpo_torchrl.reporting.statistics import (
    compare_algorithms,
    compare_pairs,
    estimate_improvement,
    estimate_iqm,
    estimate_median,
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
    known=None,
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
        (folder / "summary.json").write_text(json.dumps(summary | (known or {})))
    return folder


ENDS = ("", "_low", "_high")


def write_gradients(folder: Path, signal) -> None:
    names = [f"{name}{end}" for name in ("signal_to_noise", "alignment") for end in ENDS]
    lines = [",".join(["group", "estimator", "whole", "known_bias", *names])]
    for group in ("discrete", "continuous"):
        lines.append(f"{group},mixed,True,none,{signal},0.0,2.0,0.8,0.7,0.9")
        lines.append(f"{group},cross,False,none,0.1,0.0,0.2,nan,,")
    (folder / "gradients.csv").write_text("\n".join(lines) + "\n")


def grouped(root: Path):
    return group_runs(read_runs([root]), target=0.10)


@pytest.fixture
def report(tmp_path, capsys, monkeypatch):
    """Report on the runs of the test's folder without pictures, and return what is printed."""
    monkeypatch.setattr("hpo_torchrl.reporting.report.plot_lines", lambda path, *data: path)

    def run() -> str:
        main([str(tmp_path)])
        return capsys.readouterr().out

    return run


def colours(path: Path) -> int:
    """Read a PNG back and count its colours: it must be a picture with something on it."""
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 200
    return len(np.unique((255 * pixels[..., :3]).astype(int) @ [1, 256, 65536]))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Statistics


@pytest.mark.parametrize("number", [3, 11])
def test_iqm_and_its_interval_are_scipys(number):
    scores = np.random.default_rng(number).exponential(size=number)
    estimate = estimate_iqm(scores)
    assert estimate.value == pytest.approx(stats.trim_mean(scores, 0.25))
    assert estimate == estimate_iqm(scores)
    settings = {"method": "percentile", "n_resamples": 20000, "random_state": 4}
    found = stats.bootstrap((scores,), lambda x, axis: stats.trim_mean(x, 0.25, axis), **settings)
    assert estimate[1:] == pytest.approx(tuple(found.confidence_interval), abs=0.06)
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
    alone = estimate_improvement([[1.0]], [[2.0, 3.0]])
    assert alone == pytest.approx((1.0, math.nan, math.nan), nan_ok=True)


def test_median_of_times_with_runs_that_never_arrive():
    never = math.inf
    assert estimate_median([20.0, never]) == (never, 20.0, never)
    assert estimate_median([never, never]) == (never, never, never)
    assert math.isnan(estimate_median([]).value)
    with pytest.raises(ValueError, match="no NaN"):
        estimate_median([1.0, math.nan])


# Reading and grouping


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        (ARRIVES, 30),
        ((0.09, 0.2, 0.10, 0.10), 30),  # one good test is luck; the target itself counts
        ((0.5, 0.3, 0.05), math.inf),  # the last test has no second one to confirm it
        ((0.05, math.nan, 0.05), math.inf),
        ((), math.inf),
    ],
)
def test_time_to_target(tmp_path, gaps, expected):
    write_run(tmp_path / "run", gaps=gaps)
    run = grouped(tmp_path).runs.iloc[0]
    assert run["updates_to_target"] == expected
    assert run["env_steps_to_target"] == 640 * expected


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    write_run(tmp_path / "a" / "b" / "c")
    write_run(tmp_path / ".hidden")
    found = read_runs([tmp_path, tmp_path / "a"])
    assert list(found.runs["folder"]) == [tmp_path / "a" / "b" / "c"]


def test_runs_that_do_not_count_are_told(tmp_path, report):
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
    shown = report()
    assert "Runs: 3 finished, 2 not finished, 1 replaced" in shown
    words = [re.sub(" +", " ", line) for line in shown.splitlines()]
    assert f"| {old} | replaced | 50 | 50 | run again in {new} |" in words
    assert f"| {partial} | not finished | 50 | 50 | |" in words
    assert f"| {fresh} | not finished | 0 | 50 | |" in words
    (row,) = rows_of(tmp_path / "comparison.csv")
    assert (row["seeds"], row["finished"], row["reached"]) == ("5", "3", "3")
    assert row["cost_iqm"] == "105.0"
    states = [(row["seed"], row["status"]) for row in rows_of(tmp_path / "runs.csv")]
    assert ("2", "replaced") in states


def test_damaged_runs_are_named_and_the_others_reported(tmp_path, report):
    damages = [
        ("summary.json", '{"test_cost": ', "summary.json is damaged"),
        ("summary.json", "[]", "holds no names"),
        ("summary.json", '{"test_cost": null}', "test_cost must be a finite number"),
        ("config.yaml", "env: [", "config.yaml is damaged"),
        ("config.yaml", "env: {name: x}", "lacks algorithm, trainer"),
        ("gradients.csv", "group,estimator\nx,y\n", "gradients.csv is damaged: "),
    ]
    write_run(tmp_path / "good")
    for seed, (file, content, _) in enumerate(damages, 1):
        (write_run(tmp_path / f"bad{seed}", seed=seed) / file).write_text(content)
    shown = report()
    assert "Runs: 3 damaged, 2 finished." in shown
    for seed, (file, content, message) in enumerate(damages, 1):
        assert re.search(f"/bad{seed}.*{message}", shown)
        assert (tmp_path / f"bad{seed}" / file).read_text() == content


@pytest.mark.parametrize(
    "content", ["update,test_cost\nx,1\n2,1\n", "update,test_cost\nnan,1\n", "update\n1\n", None]
)
def test_finished_run_with_damaged_metrics_keeps_its_cost(tmp_path, report, content):
    path = write_run(tmp_path / "run") / "metrics.csv"
    path.unlink() if content is None else path.write_text(content)
    assert "counts as never reaching the target" in report()
    (row,) = rows_of(tmp_path / "comparison.csv")
    assert (row["cost_iqm"], row["reached"], row["updates_to_target"]) == ("105.0", "0", "inf")


def test_a_rule_has_no_training_to_time(tmp_path, report):
    path = write_run(tmp_path / "rule", algorithm={"name": "s_S"}) / "summary.json"
    (path.parent / "metrics.csv").unlink()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"updates": 0}))
    shown = report()
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
    groups = grouped(tmp_path)
    labels = groups.runs.groupby("problem")["algorithm"].apply(list).to_dict()
    assert labels == {
        "SwitchedLQR": ["ppo"],
        "inventory num_items=1": [
            "hpo cross_term=False batch_size=64",
            "hpo cross_term=True batch_size=256",
            "hpo cross_term=True batch_size=64",
        ],
        "inventory num_items=50": ["hpo cross_term=True batch_size=64"],
    }
    assert groups.notes == ["hpo: trainer.num_updates changes with the problem (50, 100)."]


def test_another_class_in_a_section_is_shown_by_its_name(tmp_path):
    net = {"_target_": "my.rooms.HybridPolicy.for_env", "linear_skip": True}
    write_run(tmp_path / "a", policy=net)
    write_run(tmp_path / "b", policy={"_target_": "my.rooms.LearnedLevels.for_env"})
    write_run(tmp_path / "c", policy=net, algorithm={"name": "ppo"})
    assert sorted(grouped(tmp_path).runs["algorithm"]) == [
        *("hpo policy=HybridPolicy", "hpo policy=LearnedLevels", "ppo")
    ]


def test_runs_that_disagree_on_the_optimum_are_told(tmp_path):
    path = write_run(tmp_path / "a") / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"optimal_cost": 99.0}))
    write_run(tmp_path / "b", seed=1)
    groups = grouped(tmp_path)
    assert groups.notes == [
        "inventory: the runs give optimal_cost from 99 to 100; the lowest is taken."
    ]
    assert groups.runs["gap"].tolist() == pytest.approx([105 / 99 - 1] * 2)


def test_families_differ_in_one_number_alone():
    settings = [{"dim": dim, "num_modes": modes} for dim in (20, 3, 100) for modes in (2, 4)]
    settings = [one | {"demand": "unset"} for one in settings]
    settings.append({"dim": 3, "num_modes": 2, "demand": "trace"})
    sizes = find_sizes(pd.DataFrame({"problem": range(7), "env": "lqr", "shown": settings}))
    families = sizes.groupby(["setting", "title"])["size"].apply(sorted).to_dict()
    assert families == {
        ("dim", "num_modes=2 demand=unset"): [3, 20, 100],
        ("dim", "num_modes=4 demand=unset"): [3, 20, 100],
        **{("num_modes", f"dim={dim} demand=unset"): [2, 4] for dim in (3, 20, 100)},
    }


# Tables


def test_table_on_numbers_worked_out_by_hand(tmp_path):
    late = (2.0, 0.5, 0.4, 0.09, 0.05)
    finals, curves = [0.01, 0.02, 0.03, 0.04, 0.90], [ARRIVES, ARRIVES, late, late, (9.0,) * 5]
    for seed, (gap, gaps) in enumerate(zip(finals, curves, strict=True)):
        write_run(tmp_path / f"with{seed}", seed=seed, gap=gap, gaps=gaps)
        other = {"gap": gap + 0.005, "gaps": (0.05,) * 5, "algorithm": {"cross_term": False}}
        write_run(tmp_path / f"without{seed}", seed=seed, **other)
    groups = grouped(tmp_path)
    fast, slow = compare_algorithms(groups).to_dict("records")
    assert (slow["algorithm"], slow["seeds"], slow["finished"]) == ("hpo cross_term=True", 5, 5)
    assert slow["cost_iqm"] == pytest.approx(103.0)
    assert slow["gap_iqm"] == pytest.approx(0.03)
    assert slow["gap_iqm_low"] < 0.03 < slow["gap_iqm_high"]
    assert slow["gap_worst"] == pytest.approx(0.90)
    # 30, 30, 40, 40, never: the median is the third.
    assert (slow["reached"], slow["updates_to_target"]) == (4, 40.0)
    assert (slow["updates_to_target_low"], slow["updates_to_target_high"]) == (30.0, math.inf)
    assert (slow["env_steps_to_target"], slow["seconds_to_target"]) == (25600.0, 80.0)
    assert slow["wall_seconds"] == 102.0
    assert (fast["reached"], fast["updates_to_target"]) == (5, 10.0)
    (pair,) = compare_pairs(groups).to_dict("records")
    # The runs without cross term win 4 + 3 + 2 + 1 of the 25 pairs.
    assert (pair["first"], pair["probability"]) == ("hpo cross_term=False", 0.4)


@pytest.mark.parametrize(
    ("reference", "gaps", "row", "texts"),
    [
        (
            "lower bound",
            ARRIVES,
            ("1", "30.0"),
            [
                "## inventory: best known, 104.0000; lower bound, 100.0000",
                "| best fixed mode |     - |        - | 150.0000 [-] | +44.23 % [-] |",
                "| upper bound     |     - |        - | 104.0000 [-] |  +0.00 % [-] |",
                "| hpo             |     1 |        1 | 105.0000 [-] |  +0.96 % [-] |",
            ],
        ),
        ("nothing", ARRIVES, ("", ""), ["neither optimum nor rule nor bound is known"]),
        ("optimum", (0.5, 0.4), ("0", "inf"), ["never"]),
    ],
)
def test_report_says_what_gaps_are_to(tmp_path, report, reference, gaps, row, texts):
    for name in ("hpo", "ppo"):
        write_run(tmp_path / name, reference=reference, algorithm={"name": name}, gaps=gaps)
    shown = report()
    assert [text for text in texts if text not in shown] == []
    for found in rows_of(tmp_path / "comparison.csv")[:2]:
        assert (found["reached"], found["updates_to_target"]) == row


def test_gap_of_a_profit_is_positive_where_it_is_smaller(tmp_path):
    known = {"test_cost": -95.0, "optimal_cost": -100.0, "baseline_costs": {"a rule": -80.0}}
    write_run(tmp_path / "run", known=known)
    rows = compare_algorithms(grouped(tmp_path))
    assert rows["gap_iqm"].tolist() == pytest.approx([0.05, 0.2])


def test_times_are_to_the_best_rule_only_where_tests_compare(tmp_path):
    known = {"optimal_cost": None, "baseline_costs": {"a rule": OPTIMUM}}
    other = {"evaluation": {"primary": "test", "validation": {"objective": "window"}}}
    for name, sections in (("same", {}), ("other", other)):
        write_run(tmp_path / name, env={"name": name}, known=known, **sections)
    times = grouped(tmp_path).runs.set_index("env")["updates_to_target"]
    assert times["same"] == 30.0
    assert math.isnan(times["other"])


def test_a_preset_stands_beside_what_was_published_in_each_test(tmp_path, report):
    tests = {"primary": "long_run", "tests": {"long_run": {}, "protocol": {}}}
    costs = {"hpo": (38.0, 38.2, 50), "s_S": (37.9, 38.1, 0), "R_S": (37.8, 38.3, 0)}
    for name, (long, window, updates) in costs.items():
        known = {"test_cost": long, "protocol_cost": window, "updates": updates}
        known |= {"optimal_cost": None, "lower_bound": 36.0, "baseline_costs": {"a rule": 37.8}}
        env = {"name": "paper/joint", "num_items": 50}
        write_run(tmp_path / name, env=env, algorithm={"name": name}, known=known, evaluation=tests)
    shown = report()
    head, _, row = shown[shown.index("test protocol") :].splitlines()[2:5]
    cells = dict(zip(*(line.split(" | ") for line in (head, row)), strict=True))
    found = {name.strip("| "): cell.strip("| ") for name, cell in cells.items()}
    # The published figure is of the window: above the best rule in that, not in the long run.
    assert found["reference"] == "38.100 (best rule)"
    assert found["hpo"] == "38.200 (+0.26 %)"
    assert found["published HPO"] == "43.470 (+14.09 %)"
    rows = rows_of(tmp_path / "tests.csv")
    assert {row["algorithm"] for row in rows if row["test"] == "long_run"} == {*costs}
    (best,) = {row["reference_cost"] for row in rows if row["test"] == "long_run"}
    assert float(best) == 37.8
    assert r"43.470 (+14.09 \%)" in (tmp_path / "tables.tex").read_text()


def test_published_costs_have_a_figure_and_a_test_without_reference_no_panel(tmp_path, monkeypatch):
    tests = {"primary": "long_run", "tests": {"long_run": {}, "protocol": {}}}
    for items, (long, window) in {10: (38.5, 38.6), 50: (37.9, 38.0)}.items():
        known = {"test_cost": long, "protocol_cost": window, "lower_bound": 36.0}
        known |= {"optimal_cost": None, "baseline_costs": {"a rule": long}}
        env = {"name": "paper/joint", "num_items": items}
        write_run(tmp_path / str(items), env=env, known=known, evaluation=tests)
    drawn = {}

    def plot(path, rows, *_):
        drawn[path.name] = {title: set(own["line"]) for title, own in rows.groupby("title")}
        return path

    monkeypatch.setattr("hpo_torchrl.reporting.report.plot_lines", plot)
    write_report([tmp_path], tmp_path / "report")
    # No rule was run in the window: there is nothing that a gap there could be to.
    assert set(drawn["report-gap-paper-joint-num_items.png"]) == {"long_run"}
    (panel,) = drawn["report-cost-paper-joint-num_items.png"].items()
    assert panel[0] == "protocol"
    assert {"hpo", "published HPO", "published PPO"} <= panel[1]


def test_problems_are_pooled_where_all_algorithms_ran(tmp_path):
    for items, gaps in ((1, (0.01, 0.03)), (2, (0.05, 0.07)), (3, (0.5,))):
        for seed, gap in enumerate(gaps):
            for factor, name in ((1, "hpo"), (2, "ppo"))[: len(gaps)]:
                settings = {"env": {"num_items": items}, "algorithm": {"name": name}}
                folder = tmp_path / f"{items}-{seed}-{name}"
                write_run(folder, seed=seed, gap=gap * factor, **settings)
    groups = grouped(tmp_path)
    rows = compare_algorithms(groups)
    pooled = rows[rows["problem"] == "the 2 problems that all share"]
    # The mean of the middle two.
    assert pooled["gap_iqm"].tolist() == pytest.approx([0.04, 0.08])
    pairs = compare_pairs(groups)
    assert pairs["problem"].tolist()[-1] == "2 problems"
    assert pairs["probability"].tolist() == [0.75, 1.0, 0.875]


def test_summary_says_what_is_unknown():
    summary = {"test_cost": 40.0, "updates": 2, "env_steps": 1000, "wall_seconds": 1.0}
    assert format_summary({**summary, "optimal_cost": None, "test_cost_se": None}).splitlines() == [
        "test cost        40.0000   per unit and period",
        "gap              unknown: no optimum, bound or rule was computed",
        "trained          2 updates, 1,000 environment steps, 1 s",
    ]
    text = format_summary({**summary, "lower_bound": 37.0, "test_cost_se": math.nan})
    assert "lower bound      37.0000" in text
    assert "nan" not in text
    bounds = {"gap_to_lower_bound": 0.05, "gap_to_upper_bound": -0.01}
    assert "gap              at most +5.00 % (to the lower bound), at least -1.00 %" in (
        format_summary({**summary, **bounds})
    )
    # What the environment says of the policy, in words of its own.
    text = format_summary({**summary, "in_words": {"a night": "3 stars"}})
    assert "a night          3 stars" in text.splitlines()


# Figures and the command


def test_learning_curve_is_drawn(tmp_path):
    costs, path = [90.0, 40.0, 36.9], tmp_path / "curve.png"
    known = {"errors": [3.0, 0.5, 0.1], "optimum": 37.0, "baselines": {"a rule": 50.0}}
    assert colours(plot_learning_curve(path, [1, 10, 20], costs, **known)) > 10
    assert colours(plot_learning_curve(path, [1, 10], [-2.0, -3.0], lower_bound=-4.0)) > 10
    assert colours(plot_learning_curve(path, [], [], errors=[], optimum=37.0)) > 1


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
    for items in (1, 50):
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
    kinds = [f"curves-inventory-num_items={items}" for items in (1, 50)]
    kinds += [f"{kind}-inventory-num_items" for kind in ("gap", "gradients", "updates")]
    assert [path.name for path in pictures] == [f"report-{kind}.png" for kind in kinds]
    for path in pictures:
        assert colours(path) > 10
        assert f"]({path.name})" in text
    assert "Runs: 8 finished." in text
    assert "## What the numbers mean" in text
    assert "updates to 20 %" in text
    assert "## the 2 problems that all share: optimum or best known\n" in text
    assert " cross (term) " in text
    assert "1.00 [1.00, 1.00]" in text  # of two runs, at one item
    assert f"written: {output / 'report.md'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/empty"], "no folder there holds a config.yaml"),
        (["{root}/nowhere"], "There is no folder"),
        (["{root}/run/config.yaml"], "is a file; name a folder"),
        (["{root}/run", "--target", "0"], "target must be a finite number > 0, got 0.0"),
        (["{root}/run", "--output", "{root}/run/config.yaml"], "is a file; name a folder"),
        (["{root}/broken"], "can be read: "),
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
