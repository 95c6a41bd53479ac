"""What a policy is trained for, what a test measures, and what an optimum is of."""

from __future__ import annotations

from hpo_torchrl.core.checks import check_choice

# The reward per step in the long run, the discounted return, the sum of an episode.
OBJECTIVES = ("average", "discounted", "return")


def choose_objective(
    objective: str | None, discount: float | None, *, episode: int | None, continuing: bool
) -> tuple[str, float]:
    """Choose objective and discount where they are not given.

    Args:
        objective: one of ``"average"``, ``"discounted"`` and ``"return"``.
        discount: gamma.
        episode: steps of an episode that ends for good, if the environment is known to have one.
        continuing: whether the environment is known never to end.

    Raises:
        ValueError: the objective is none of the three, or fits neither discount nor environment.

    Examples:
        >>> from hpo_torchrl.core.objective import choose_objective
        >>> choose_objective(None, None, episode=None, continuing=True)
        ('average', 1.0)
        >>> choose_objective(None, 0.9, episode=None, continuing=True)
        ('discounted', 0.9)
    """
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
        discount = 0.99 if discounted else 1.0
    got, fix = f"objective={objective!r}", ""
    if discounted != (discount < 1.0):
        got += f" and discount={discount:g}"
        fix = "only 'discounted' has a discount, which is below 1; leave one of the two out."
    elif objective == "average" and episode:
        fix = f"the episode ends for good after {episode} steps; choose 'return'."
    elif objective == "return" and continuing:
        fix = "no episode of the environment ever ends for good; choose 'average'."
    if fix:
        raise ValueError(f"The objective must fit discount and environment, got {got}: {fix}")
    return objective, discount
