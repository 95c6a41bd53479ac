"""Draw how the cross term vanishes near a discrete best response, from exact gradients.

    python benchmarks/cross_term_theorem.py [--out docs/figures/best_response.png]

On small switched linear systems (two modes, seven steps, all 128 mode sequences enumerated) the
norm of the cross term over that of the pathwise term, both without sampling error, for two ways to
choose the mode: by its exact value, softmax(Q / temperature), and by a rule that depends on the
state but not on values, softmax(+-x_1 / temperature). The continuous policy is the same in both.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor

from hpo_torchrl.core.figures import BLUE, ORANGE, new_figure, save_figure
from hpo_torchrl.diagnostics import BestResponse, exact_gradient
from hpo_torchrl.modules import HybridNetwork, HybridPolicy
from hpo_torchrl.problems import SwitchedLQREnv

HORIZON = 7
TEMPERATURES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)


def problem(seed: int, instances: int = 32) -> tuple[SwitchedLQREnv, HybridNetwork]:
    """Return a system with two modes and a continuous policy that is near a sensible feedback."""
    env = SwitchedLQREnv.from_recipe(
        2,
        2,
        recipe_seed=seed,
        horizon=HORIZON,
        batch_size=instances,
        dtype=torch.float64,
        seed=seed,
    )
    network = HybridNetwork(3, 2, 2, action_scale=env.action_scale, hidden=(), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.add_(0.1 * draw)
    # Each mode's strong input takes off most of its coordinate, the weak one a little.
    network.skip.weight.data[[0, 1, 2, 3], [0, 1, 0, 1]] -= torch.tensor(
        [0.9, 0.1, 0.1, 0.9]
    ).double()
    return env, network


def state_of(env: SwitchedLQREnv):
    """Return the map from an observation back to the state."""

    def recover(observation: Tensor) -> dict[str, Tensor]:
        x, time = observation[..., :-1], observation[..., -1:]
        return {"x": x * env.initial_scale, "step": (time * env.horizon).round().long()}

    return recover


def ratio(env: SwitchedLQREnv, policy: HybridPolicy, start) -> float:
    """Return the exact norm of the cross term over that of the pathwise term."""
    exact = exact_gradient(env, policy, HORIZON, tensordict=start)
    return exact.norm("cross") / exact.norm("pathwise")


def ratios(seed: int, temperature: float, instances: int = 32) -> tuple[float, float]:
    """Return the ratio for the best response and for the rule that ignores values."""
    env, network = problem(seed, instances)
    start = env.reset()
    best = BestResponse(
        env, network, horizon=HORIZON, temperature=temperature, state_of=state_of(env)
    )
    first = ratio(env, HybridPolicy(best), start)
    with torch.no_grad():
        for parameter in network.discrete.parameters():
            parameter.zero_()
        network.discrete[0].weight[:, 0] = torch.tensor([1.0, -1.0]) / temperature
    return first, ratio(env, HybridPolicy(network), start)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="docs/figures/best_response.png")
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    found = {
        temperature: [ratios(seed, temperature) for seed in range(given.seeds)]
        for temperature in TEMPERATURES
    }
    print(f"{'temperature':>12}{'best response':>28}{'rule that ignores values':>34}")
    for temperature, pairs in found.items():
        cells = []
        for column in zip(*pairs, strict=True):
            low, middle, high = min(column), statistics.median(column), max(column)
            cells.append(f"{100 * middle:7.2f} % ({100 * low:.2f} to {100 * high:.2f})")
        print(f"{temperature:>12g}{cells[0]:>28}{cells[1]:>34}")
    figure, [[axes]] = new_figure(1)
    labels = ("best response", "a rule that ignores values")
    for place, (label, colour) in enumerate(zip(labels, (BLUE, ORANGE), strict=True)):
        columns = [[100 * pair[place] for pair in pairs] for pairs in found.values()]
        axes.plot(TEMPERATURES, [statistics.median(c) for c in columns], color=colour, label=label)
        axes.fill_between(
            TEMPERATURES,
            [min(c) for c in columns],
            [max(c) for c in columns],
            color=colour,
            alpha=0.2,
            linewidth=0,
        )
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(0.01, 400.0),
        xlabel="temperature of the mode's choice",
        ylabel="cross / pathwise, %",
        title="The cross term vanishes at a best response",
    )
    axes.invert_xaxis()
    axes.legend(frameon=False)
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    print(f"written: {save_figure(figure, given.out)}")


if __name__ == "__main__":
    main()
