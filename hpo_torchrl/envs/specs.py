"""The specs that every environment with hybrid actions has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from hpo_torchrl.core.categorical import ACTION_MASK

# Random actions are drawn from the spec: a half-open range is cut this many action scales away.
_HALF_OPEN_SPAN = 100.0


def set_hybrid_specs(
    env: EnvBase, state_shapes: Mapping[str, Sequence[int]], observation_dim: int
) -> None:
    """Set the specs of a hybrid environment from its sizes, bounds, device and dtype."""
    batch = env.batch_size
    place = {"device": env.device, "dtype": env.float_dtype}
    state = {key: Unbounded(shape=(*batch, *shape), **place) for key, shape in state_shapes.items()}
    state["step"] = Unbounded(shape=(*batch, 1), dtype=torch.int64, device=env.device)
    env.state_spec = Composite(state, shape=batch, device=env.device)
    env.observation_spec = Composite(
        {key: spec.clone() for key, spec in state.items()},
        observation=Unbounded(shape=(*batch, observation_dim), **place),
        shape=batch,
        device=env.device,
    )
    heads = () if env.num_heads is None else (env.num_heads,)
    if env.has_action_mask:
        env.observation_spec[ACTION_MASK] = Binary(
            shape=(*batch, *heads, env.num_discrete), dtype=torch.bool, device=env.device
        )
    span = _HALF_OPEN_SPAN * env.action_scale.expand(*batch, env.continuous_dim)
    if env.continuous_bounds == (None, None):
        continuous: Unbounded | Bounded = Unbounded(shape=span.shape, **place)
    else:
        infinite = (-torch.inf, torch.inf)
        ends = zip(env.continuous_bounds, infinite, strict=True)
        low, high = (torch.as_tensor(none if end is None else end).to(span) for end, none in ends)
        lower = torch.where(low.isfinite(), low, high.nan_to_num(posinf=0.0) - span)
        upper = torch.where(high.isfinite(), high, low.nan_to_num(neginf=0.0) + span)
        continuous = Bounded(low=lower, high=upper, shape=span.shape, **place)
    env.action_spec = Composite(
        action=Composite(
            discrete=Categorical(
                env.num_discrete, shape=(*batch, *heads), dtype=torch.int64, device=env.device
            ),
            continuous=continuous,
            shape=batch,
            device=env.device,
        ),
        shape=batch,
        device=env.device,
    )
    env.reward_spec = Unbounded(shape=(*batch, 1), **place)
    env.full_done_spec = Composite(
        {
            key: Categorical(2, shape=(*batch, 1), dtype=torch.bool, device=env.device)
            for key in ("done", "terminated", "truncated")
        },
        shape=batch,
        device=env.device,
    )
