"""Imitation of a rule, by which a training may begin."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from hpo_torchrl.algorithms.base import rule_of
from hpo_torchrl.core import ranks
from hpo_torchrl.core.categorical import finite, over_heads
from hpo_torchrl.core.wrappers import plain

if TYPE_CHECKING:
    from hpo_torchrl.algorithms.learner import Learner

# Batches that are collected, steps of Adam after each, states in a step, and the first step size.
_BATCHES, _STEPS, _ROWS, _RATE = 100, 40, 256, 5e-3


def rule_to_imitate(learner: Learner) -> nn.Module | None:
    """Return the rule that a policy is to imitate: of several names the first that can be.

    Where none of several can, a warning says so.

    Raises:
        TypeError: names are not strings.
        ValueError: the one rule that is named is none of the environment's, or beyond its formulas;
            or the policy has a memory, or ranks share the training.
    """
    asked = learner.imitate
    if asked is None:
        return None
    names = [asked] if isinstance(asked, str) else list(asked)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"imitate must be a rule's name, or several, got {asked!r}.")
    env = plain(learner.env) if learner.num_seeds is None else learner.env.members[0]
    for name in names:
        try:
            if getattr(learner.policy, "memory", None) is not None or ranks.active():
                raise ValueError("Ranks that share a training, and memories, do not imitate.")
            return rule_of(env, name)()
        except ValueError as error:
            why = error
    if isinstance(asked, str):
        raise ValueError(f"imitate={asked!r}: {why} Or set imitate to null.") from why
    warnings.warn(f"imitate={names}: the policy begins untrained. {why}", stacklevel=2)
    return None


def imitate(learner: Learner) -> None:
    r"""Let a policy imitate a rule where the policy itself leads (DAgger).

    Batches are collected by the policy, and the rule says what it would do in their states. After
    each, the policy's nets take some steps of Adam on states of all batches so far, down the loss

    .. math::
        -\log \pi_\theta(d^* | s) + \sum_i \big((u_i(s, d^*) - u^*_i) / c_i\big)^2

    with the rule's discrete action :math:`d^*` and continuous action :math:`u^*`, the policy's own
    mean u of :math:`d^*`, and the action scales c (Ross, Gordon & Bagnell 2011, arXiv 1011.0686).
    The steps become smaller along a cosine. A policy that regresses advantages on simulations
    (:class:`HPO` of a single choice) keeps the continuous actions alone: its logits are advantages.

    Args:
        learner: has the rule, the policy, its collector and its random numbers.
    """
    policy, number, place = learner.policy, learner.num_seeds, learner.env.device
    rule: Any = learner.rule
    lead = () if number is None else (number,)
    seeds = [torch.arange(each, device=place).unsqueeze(-1) for each in lead]
    optimizer = torch.optim.Adam(policy.parameters(), _RATE, betas=(0.9, 0.95))
    data: Any = None
    for at in range(_BATCHES):
        with torch.no_grad():
            batch = learner.collector.collect()
            told = rule(batch.select(*rule.in_keys).reshape(-1)).reshape(batch.shape)
        seen = batch.select(*policy.in_keys).update(told.select("action")).reshape(*lead, -1)
        data = seen if data is None else torch.cat([data, seen], -1)
        drawn = learner.randomness.draw("uniform", (*lead, _STEPS, _ROWS), device=place)
        places = (drawn * data.shape[-1]).long().unbind(len(lead))
        for step, rows in enumerate(places):
            share = (at + step / _STEPS) / _BATCHES
            optimizer.param_groups[0]["lr"] = 0.5 * _RATE * (1.0 + math.cos(math.pi * share))
            optimizer.zero_grad()
            # The sum over the seeds has for each of them the gradient of its own mean.
            learner.mean(_distance(policy, data[(*seeds, rows)])).sum().backward()
            optimizer.step()


def _distance(policy: Any, data: TensorDictBase) -> Tensor:
    """Return how far a policy is from the rule in each state, ``(*B, n)``."""
    discrete, continuous = data["action", "discrete"], data["action", "continuous"]
    logits = finite(policy.discrete_logits(data))
    choice = over_heads(logits.gather(-1, discrete.unsqueeze(-1)).squeeze(-1), data.ndim)
    scale = getattr(policy.network, "action_scale", 1.0)
    off = (policy.mean_action(data, discrete) - continuous) / scale
    return off.square().sum(-1) - choice
