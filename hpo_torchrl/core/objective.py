"""The objective: what a policy is trained for, a test measures and an optimum is of."""

from __future__ import annotations

import math
from typing import Any

import torch

from hpo_torchrl.core.checks import check_choice
from hpo_torchrl.core.wrappers import plain

# The reward per step in the long run, the discounted return, the sum of an episode.
OBJECTIVES = ("average", "discounted", "return")
# Continuous coordinates beyond which the average is approached by a discount, if their range is
# unlimited, and the discrete choice is learned from the score function.
FEW_DIMENSIONS = 4
# What a test of some steps of a problem measures that is none of these.
WINDOW = "window"


def endings(env: Any) -> tuple[int | None, bool]:
    """Return the steps of an episode that ends for good, and whether none ever does.

    ``(None, False)`` is an environment of which this is not known: it is no
    :class:`DifferentiableEnv`, or its own ``advance`` decides. Attributes are read, so that an
    environment behind TorchRL's transforms is found too.
    """
    own = plain(env)
    terminates = getattr(own, "horizon_terminates", None)
    episode = own.horizon if terminates else None
    counted = terminates is False or getattr(own, "counts_steps", True)
    return episode, terminates is not None and episode is None and counted


def choose_objective(env: Any, objective: str | None, discount: float | None) -> tuple[str, float]:
    """Choose objective and discount of a training where they are not given.

    Args:
        env: the environment.
        objective: one of ``"average"``, ``"discounted"`` and ``"return"``.
        discount: gamma.

    Raises:
        ValueError: the objective is none of the three, or fits neither discount nor environment.

    Examples:
        >>> from hpo_torchrl.core.objective import choose_objective
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> choose_objective(InventoryEnv(), None, None)
        ('average', 1.0)
        >>> choose_objective(InventoryEnv(), None, 0.9)
        ('discounted', 0.9)
    """
    episode, continuing = endings(env)
    if objective is None:
        if discount is not None and discount < 1.0:
            objective = "discounted"
        elif continuing:
            objective = "average"
        else:
            objective = "return" if episode or discount else "discounted"
    check_choice("objective", objective, OBJECTIVES)
    discounted = objective == "discounted"
    if discount is None:
        # Twenty items diverge at 1: the average is approached there, with a bias, at 0.99. Twenty
        # batteries do not, as no power is unlimited, and at 0.99 they would store too little.
        many = getattr(plain(env), "continuous_dim", 1) > FEW_DIMENSIONS and not _limited(env)
        discount = 0.99 if discounted or (many and objective == "average") else 1.0
    got, fix = f"objective={objective!r}", ""
    if (discounted and discount == 1.0) or (objective == "return" and discount < 1.0):
        got += f" and discount={discount:g}"
        fix = "'discounted' has a discount below 1, 'return' has none; leave one of the two out."
    elif objective == "average" and episode:
        fix = f"the episode ends for good after {episode} steps; choose 'return'."
    elif objective == "return" and continuing:
        fix = "no episode of the environment ever ends for good; choose 'average'."
    if fix:
        raise ValueError(f"The objective must fit discount and environment, got {got}: {fix}")
    return objective, discount


def _limited(env: Any) -> bool:
    """Whether all coordinates of the continuous action have two ends."""
    ends = getattr(plain(env), "continuous_bounds", None) or (None, None)
    return all(end is not None and bool(torch.as_tensor(end).isfinite().all()) for end in ends)


def discounted_steps(discount: float, tail: float = 0.001) -> int:
    """Return the steps beyond which no more than ``tail`` of a discounted return's weights lies."""
    return math.ceil(math.log(tail) / math.log(discount))


def worded(objective: str | None, discount: float = 1.0) -> str:
    """Return an objective in words."""
    words = {"average": "the long-run average", "return": "the return of an episode"}
    words |= {"discounted": f"the return discounted by {discount:g}", WINDOW: "a window of steps"}
    return words.get(str(objective), "an objective that it does not name")
