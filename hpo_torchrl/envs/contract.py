"""The contract of a differentiable environment: its equations return what its specs say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpo_torchrl.core.checks import shown

_MADE = "with dtype=self.float_dtype and device=self.device"
_STATE = f"Return every entry of state_shapes and no other, {_MADE}, or correct state_shapes."
_SEEN = f"Return (*B, observation_dim), {_MADE}, or correct observation_dim; a mask is of bool."
_REWARD = f"Return one number for each instance, {_MADE}; squeeze(-1) or sum(-1) may help."


# Tensors made in inference mode have no version, which tells of a change in place.
@torch.inference_mode(False)
@torch.no_grad()
def check_contract(env: Any) -> None:
    """Call each equation of a :class:`DifferentiableEnv` once and look at what it returns.

    The environment's generator and torch's are left as they were.

    Raises:
        ValueError: a state entry is missing or unknown; a state entry, the reward, the observation,
            the noise or the mask has another shape, dtype or device than it should; or an equation
            changes what it is given.
    """
    kind, memory, specs = type(env).__name__, env.rng.get_state(), env.full_observation_spec.zero()
    seen, states = specs.select(*env.shown_names), {key: specs[key] for key in env.state_shapes}
    try:
        with torch.random.fork_rng(devices=[]):
            drawn = env.initial_state()
            for key, value in drawn.items() if isinstance(drawn, Mapping) else ():
                if key in states and isinstance(value, Tensor) and not value.is_floating_point():
                    states[key] = states[key].to(value.dtype)  # a counter
            check_entries(f"{kind}.initial_state", drawn, states, _STATE)
            state = {key: drawn[key].clone() for key in env.state_shapes}
            state["step"] = specs["step"]
            noise = env.sample_noise(1, state).squeeze(len(env.batch_size)).clone()
    finally:
        env.rng.set_state(memory)
    action = env.full_action_spec.project(env.full_action_spec.zero())["action"].to_dict()
    given = {**state, **action, "noise": noise}
    versions = [value._version for value in given.values()]
    entries = env.show(state)
    # An ``advance`` of its own may make something else of what the dynamics return.
    step = "dynamics" if env.counts_steps else "advance"
    answer = getattr(env, step)(state, action, noise)
    now = {**state, **action, "noise": noise}
    for (key, value), version in zip(given.items(), versions, strict=True):
        if value._version != version or now.get(key) is not value:
            raise ValueError(
                f"{kind}: observe, allowed and {step} must not change {key!r} in place, for "
                "gradients need it as it was. Make a new tensor (x = x + 1, not x += 1 or "
                "x[..., 0] = 1), or change a copy (x = x.clone())."
            )
    name = "observe and allowed" if env.has_action_mask else "observe"
    check_entries(f"{kind}.{name}", entries, seen, _SEEN)
    after, reward, *_ = (*answer, None) if isinstance(answer, tuple) else (answer, None)
    check_entries(f"{kind}.{step}", after, states, _STATE)
    wanted = env.full_reward_spec.zero()["reward"][(..., 0) if env.counts_steps else ...]
    check_entries(f"{kind}.{step}", {"reward": reward}, {"reward": wanted}, _REWARD)


def check_entries(name: str, entries: Any, wanted: Mapping[str, Tensor], fix: str) -> None:
    """Raise a ``ValueError`` if entries are not those wanted, in shape, dtype and device.

    A step that is not wanted may be there: it is counted anyway.
    """
    must, got = (
        {key: _form(value) for key, value in rows.items() if key in wanted or key != "step"}
        for rows in (wanted, entries if isinstance(entries, Mapping) else {})
    )
    for key in must | got:
        if must.get(key) != got.get(key):
            raise ValueError(
                f"{name}: {key!r} must be {must.get(key, 'left out')}, got "
                f"{got.get(key, f'nothing but {[*got]}')}. {fix}"
            )


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return shown(value)
    return f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"
