"""Measurements of speed against hand-written PyTorch; ``python -m benchmarks.speed --help``."""
