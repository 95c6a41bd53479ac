"""The entries of a rollout: how steps become one tensordict."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from hpo_torchrl.collectors.inputs import Entries
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.modules.sampling import HybridDraw, Noise, check_mask

NEXT = "next "  # prefix of what a step leads to
LOG_PROBS = ("action_log_prob", "discrete_log_prob")
_SCORED = ("draw logits", "draw loc", "draw scale")


def discount_gradients(entries: Entries, discount: float) -> dict[str, Tensor]:
    """Return the entries with the gradients of those that have any multiplied by ``discount``.

    Their values stay the same to the last bit; only an infinite one becomes NaN.
    """
    if discount == 1.0:
        return dict(entries)
    # Between a value and itself, of which one end has a gradient: two operations of torch's own
    # take half the time of a function in Python, which could leave infinities alone.
    return {
        key: torch.lerp(value.detach(), value, discount) if value.requires_grad else value
        for key, value in entries.items()
    }


def expand_mask(mask: Tensor, value: Tensor) -> Tensor:
    """Append dimensions to a mask ``(*B, 1)`` until it broadcasts with an entry."""
    return mask.reshape(*mask.shape, *(1,) * (value.ndim - mask.ndim))


def entries_of(draw: HybridDraw, policy: HybridPolicy) -> dict[str, Tensor]:
    """Return the entries of a draw: the action, and what it is scored by, once for all steps."""
    entries = {"discrete": draw.discrete, "continuous": draw.continuous}
    if policy.return_log_prob:
        scored = zip(_SCORED, draw[2:], strict=True)
        entries |= {key: value for key, value in scored if value is not None}
    return entries


def scored(
    policy: HybridPolicy, stacked: dict[str, Tensor], noise: Noise | None
) -> dict[str, Tensor]:
    """Put log-probabilities in the place of what they follow from, time first."""
    if _SCORED[0] not in stacked:
        return stacked
    own = [stacked.pop(key, None) for key in _SCORED]
    draw = HybridDraw(stacked["discrete"], stacked["continuous"], *own)  # type: ignore[arg-type]
    kept = None if noise is None else noise.continuous
    found = draw.log_probs(kept, policy.continuous_distribution)
    return stacked | dict(zip(LOG_PROBS, found, strict=True))


def finished(
    env: DifferentiableEnv, policy: HybridPolicy, stacked: dict[str, Tensor], noise: Noise | None
) -> TensorDict:
    """Build the tensordict that ``env.rollout`` would have built, from entries with time first."""
    stacked = scored(policy, stacked, noise)
    mask = policy.mask_of(stacked)
    if mask is not None and mask.device.type == "cpu":  # elsewhere it would wait for the device
        check_mask(mask)
    time = len(env.batch_size)
    stacked = {key: value.movedim(0, time) for key, value in stacked.items()}
    over = stacked.pop("over")
    shape, never = over.shape[:-1], torch.zeros_like(over)
    terminated, truncated = (over, never) if env.horizon_terminates else (never, over)
    after: dict[str, Any] = {
        key.removeprefix(NEXT): stacked.pop(key) for key in list(stacked) if key.startswith(NEXT)
    }
    after |= {"reward": stacked.pop("reward"), "done": over}
    after |= {"terminated": terminated, "truncated": truncated}
    action = {key: stacked.pop(key) for key in ("discrete", "continuous")}
    root: dict[str, Any] = {**stacked, "action": TensorDict(action, batch_size=shape)}
    # Whoever was done has been reset, so no step starts in a state that is done.
    root |= {"done": never, "terminated": never, "truncated": never}
    root["next"] = TensorDict(after, batch_size=shape)
    return TensorDict(root, batch_size=shape, device=env.device).refine_names(..., "time")
