"""The entropy of a discrete choice, shared by the rooms of the ground floor."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy_of(logits: Tensor) -> Tensor:
    """Return the entropy in nats, ``(*B,)``, of normalised log-probabilities ``(*B, M)``."""
    # A masked option has logit -inf and probability 0; clamping makes 0 * -inf a 0.
    return -(logits.exp() * logits.clamp_min(torch.finfo(logits.dtype).min)).sum(-1)
