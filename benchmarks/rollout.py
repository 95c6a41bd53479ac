"""Time and compare the routes of a rollout, forward and backward.

Rounds are interleaved, so that a noisy machine disturbs all routes alike; ratios are to the
functional route.

python benchmarks/rollout.py [--batch 128] [--steps 100] [--items 1] [--rounds 7] [--device cpu]
"""

import argparse
import statistics
import time

import torch

from hpo_torchrl.algorithms import HPO
from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.envs import InventoryEnv
from hpo_torchrl.modules import HybridPolicy, make_value_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 128), ("steps", 100), ("items", 1), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    env = InventoryEnv(
        num_items=options.items, batch_size=options.batch, device=options.device, seed=0
    )
    policy = HybridPolicy.for_env(env)
    hpo = HPO(env, policy, make_value_network(env), window=options.steps)

    def rollout(route: str, backward: bool):
        def call() -> None:
            batch = differentiable_rollout(env, policy, options.steps, route=route)
            if backward:
                batch["next", "reward"].mean().backward()

        return call

    cases = {
        f"{route}, {'forward + backward' if backward else 'forward'}": rollout(route, backward)
        for backward in (False, True)
        for route in ("functional", "general")
    } | {"whole HPO update": hpo.iterate}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds + 1):
        for name, call in cases.items():
            if env.device is not None and env.device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if env.device is not None and env.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)

    frames = options.batch * options.steps
    print(f"batch {options.batch}, {options.steps} steps, {options.items} items, one thread")
    base = {False: 0.0, True: 0.0}
    for name, times in seconds.items():
        median = statistics.median(times[1:])  # the first round warms up
        backward = "backward" in name
        base[backward] = base[backward] or median
        spread = (max(times[1:]) - min(times[1:])) / median
        print(
            f"{name:<32}{1e6 * median / options.steps:9.0f} us a step "
            f"{frames / median:12,.0f} steps/s  x{median / base[backward]:.2f}  "
            f"spread {spread:.0%}"
        )


if __name__ == "__main__":
    main()
