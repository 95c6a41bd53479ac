"""Environment steps a second in training, of one process or of the ranks that share it.

python benchmarks/scaling.py env.num_items=20 collect.batch_size=1024
torchrun --nproc_per_node=2 benchmarks/scaling.py env.num_items=20 collect.batch_size=1024

The arguments are settings of hpo-train. Wall time counts whatever else runs on the machine;
processor time is that of this rank alone, and about what a free core would take.
"""

import sys
import time
from collections.abc import Sequence

import torch

from hpo_torchrl.core import ranks
from hpo_torchrl.experiments.build import build_algorithm
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.experiments.run import threads

WARM_UP, UPDATES = 2, 10


def main(settings: Sequence[str]) -> None:
    """Measure some updates of a configuration and print what they took."""
    config = compose_config(settings)
    with ranks.joined(), threads(config):
        algorithm = build_algorithm(config)
        algorithm.anneal(0.0)
        for _ in range(WARM_UP):
            algorithm.iterate()
        frames = algorithm.collector.frames
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(UPDATES):
            algorithm.iterate()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        steps = algorithm.collector.frames - frames
        if ranks.main():
            print(
                f"{ranks.size()} rank(s), {torch.get_num_threads()} thread(s): an update of "
                f"{steps // UPDATES:,} steps takes {1e3 * wall / UPDATES:,.0f} ms of wall time, "
                f"{1e3 * processor / UPDATES:,.0f} of a processor: {steps / wall:,.0f} and "
                f"{steps / processor:,.0f} steps a second"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
