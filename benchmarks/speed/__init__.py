"""Measurements of speed against hand-written PyTorch and JAX: ``python -m benchmarks.speed -h``."""

import os

# Read when JAX is loaded: one thread, as torch has by default here.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
