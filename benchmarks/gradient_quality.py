"""Measure gradient estimators along a training run, and against the number of items.

    python benchmarks/gradient_quality.py gaps  [KEY=VALUE ...] [--seeds 3]
    python benchmarks/gradient_quality.py sizes [KEY=VALUE ...] [--items 1 5 20 50] [--figure FILE]

``gaps`` trains and stops wherever the policy first comes within another 5 % of the optimum, to
measure signal, noise and alignment of the estimators there. ``sizes`` measures joint replenishment
with n items, after ``--after`` updates: how the noise of the pure score function, on which PPO
rests, grows over that of the mixed gradient. (An untrained discrete net is uniform in every state:
there is no cross term yet.) Both print a table and write a CSV file, and a figure if one is named.
"""

from __future__ import annotations

import argparse
import statistics
from math import nan

import torch

from hpo_torchrl.core.figures import GREY, MODES, new_figure, save_figure
from hpo_torchrl.diagnostics import GradientReport, GradientSampler, gradient_report
from hpo_torchrl.experiments.build import build_algorithm, build_tests
from hpo_torchrl.experiments.cli import compose_config
from hpo_torchrl.reporting import write_rows

SHOWN = ("pathwise", "cross", "mixed", "score function only")
MEASURES = ("alignment", "noise", "signal")
# Alignment by gap that Alvo, Russo & Kanoria (2026) published, 0 to 25 % in steps of 5 (one item).
PUBLISHED = {
    "pathwise": (0.9997, 0.926, 0.509, 0.683, 0.798),
    "mixed": (0.096, 0.361, 0.460, 0.833, 0.947),
    "score function only": (0.217, 0.073, 0.001, 0.073, 0.020),
}


def report_of(algorithm, batches: int, reference: int) -> GradientReport:
    """Measure an algorithm's estimators as they stand."""
    sampler = GradientSampler.of(algorithm)
    return gradient_report(sampler, num_batches=batches, num_reference=reference)


def measure_gaps(given: argparse.Namespace) -> list[dict]:
    """Train, and measure at the first visit of every 5 % of gap."""
    rows = []
    for seed in range(given.seeds):
        config = compose_config([*given.settings, f"seed={seed}"])
        algorithm = build_algorithm(config)
        tests, primary, validation = build_tests(config)
        reference = tests[primary].reference()
        total, visited = config["trainer"]["num_updates"], set()
        for update in range(given.updates):
            algorithm.anneal(update / total)
            algorithm.iterate()
            cost = validation.run(algorithm.policy).mean
            gap = 100 * reference.gaps(cost, validation, algorithm)["gap"]
            place = max(0, int(gap // 5)) if gap < 25 else 5 if gap < 50 else None
            if place is None or place in visited:
                continue
            visited.add(place)
            report = report_of(algorithm, given.batches, given.reference)
            where = f"{5 * place}-{5 * place + 5} %" if place < 5 else "25-50 %"
            rows += rows_of(report, {"gap": where, "seed": seed, "update": update + 1})
            print(f"seed {seed}, update {update + 1}, gap {gap:.1f} %", flush=True)
            if len(visited) == 6:
                break
    return rows


def measure_sizes(given: argparse.Namespace) -> list[dict]:
    """Measure the policy early in training at every number of items."""
    rows = []
    for items in given.items:
        ratios = []
        for seed in range(given.seeds):
            config = compose_config([*given.settings, f"env.num_items={items}", f"seed={seed}"])
            algorithm = build_algorithm(config)
            total = config["trainer"]["num_updates"]
            for update in range(given.after):
                algorithm.anneal(update / total)
                algorithm.iterate()
            report = report_of(algorithm, given.batches, given.reference)
            rows += rows_of(report, {"items": items, "seed": seed})
            noise = [report.value(name, "noise") for name in ("score function only", "mixed")]
            ratios.append(noise[0] / noise[1])
        ratio = statistics.geometric_mean(ratios)
        print(
            f"n = {items}: noise of the score function over that of the mixed gradient "
            f"{ratio:.3g} ({min(ratios):.3g} to {max(ratios):.3g}), of variances {ratio**2:.3g}",
            flush=True,
        )
    return rows


def rows_of(report: GradientReport, where: dict) -> list[dict]:
    """Return the report's rows of the continuous parameters, with where they were measured."""
    rows = [row for row in report.rows if row["group"] == "continuous"]
    return [where | {"ceiling": report.ceiling["continuous"][0]} | row for row in rows]


def show(rows: list[dict], key: str) -> None:
    """Print the median of each measure by place and estimator."""
    places = _places(rows, key)
    for measure in MEASURES:
        print(f"\n{measure:<22}" + "".join(f"{place!s:>10}" for place in places))
        for name in SHOWN:
            cells = ""
            for place in places:
                found = _found(rows, key, place, name, measure)
                cells += f"{statistics.median(found):>10.3g}" if found else f"{'-':>10}"
            print(f"{name:<22}{cells}")
    ceilings = [_found(rows, key, place, "mixed", "ceiling") for place in places]
    print(f"\n{'highest alignment':<22}" + "".join(f"{sum(c) / len(c):>10.3g}" for c in ceilings))


def draw(rows: list[dict], key: str, path: str) -> None:
    """Draw signal, noise and alignment of each estimator, medians by place."""
    places = _places(rows, key)
    figure, [panels] = new_figure(1, len(MEASURES), share_x=False)
    for axes, measure in zip(panels, reversed(MEASURES), strict=True):
        for name, colour in zip(SHOWN, MODES, strict=False):
            found = [_found(rows, key, place, name, measure) for place in places]
            middle = [statistics.median(values) if values else nan for values in found]
            axes.plot([str(p) for p in places], middle, color=colour, marker="o", label=name)
            if key == "gap" and measure == "alignment" and name in PUBLISHED:
                published = PUBLISHED[name][: len(places)]
                look = {"color": colour, "linestyle": ":", "marker": "x", "alpha": 0.7}
                axes.plot(range(len(published)), published, **look)
        axes.set(xlabel={"gap": "gap to the optimum"}.get(key, key), title=measure)
        axes.tick_params("x", labelsize=8)
        if measure != "alignment":
            axes.set_yscale("log")
    panels[-1].axhline(0.0, color=GREY, linewidth=0.8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    print(f"written: {save_figure(figure, path)}")


def _places(rows: list[dict], key: str) -> list:
    return sorted({row[key] for row in rows}, key=lambda p: float(str(p).split("-")[0]))


def _found(rows: list[dict], key: str, place: object, name: str, measure: str) -> list[float]:
    return [r[measure] for r in rows if r[key] == place and r["estimator"] == name]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("gaps", "sizes"))
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--items", type=int, nargs="+", default=[1, 5, 20, 50])
    parser.add_argument("--after", type=int, default=0, help="updates before sizes are measured")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--reference", type=int, default=160)
    parser.add_argument("--out", help="CSV file; gradient_quality_WHAT.csv by default")
    parser.add_argument("--figure", help="PNG file of a figure")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure_gaps(given) if given.what == "gaps" else measure_sizes(given)
    key = "gap" if given.what == "gaps" else "items"
    show(rows, key)
    if given.figure:
        draw(rows, key, given.figure)
    out = given.out or f"gradient_quality_{given.what}.csv"
    print(f"\nwritten: {write_rows(out, rows)}")


if __name__ == "__main__":
    main()
