"""What a policy of storage does: the shares of its modes, and a picture of three days."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.core.figures import BLUE, GREEN, ORANGE, new_figure, save_figure
from hpo_torchrl.problems.storage.batteries import CHARGE, DISCHARGE

_DAYS = 3
_NAMES = ("idle", "charge", "discharge")


@torch.no_grad()
def describe_storage(env: Any, policy: Any, folder: Path | None = None) -> dict[str, Any]:
    """Simulate a policy, say how often each mode is taken, and draw the first instance.

    Args:
        env: the environment.
        policy: the policy.
        folder: where ``policy.png`` goes, or ``None``.

    Returns:
        ``mode_shares`` by name.
    """
    steps = min(_DAYS * env.cycle_length, env.horizon or _DAYS * env.cycle_length)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        run = env.rollout(steps, policy, break_when_any_done=False)
    modes = run["action", "discrete"].flatten()
    shares = (torch.bincount(modes, minlength=3) / modes.numel()).tolist()
    if folder is not None:
        _draw_days(env, run.reshape(-1, steps)[0].cpu(), folder / "policy.png")
    return {"mode_shares": dict(zip(_NAMES, (round(s, 4) for s in shares), strict=True))}


def _draw_days(env: Any, run: Any, path: Path) -> None:
    """Draw price, content and power of one instance against the hour."""
    mode, content = run["action", "discrete"], run["content"]
    mode = mode if env.num_heads else mode.unsqueeze(-1).expand_as(content)
    rows = [row.cpu() for row in env.batteries]
    flow = type(env.batteries)(*rows).step(
        content, mode, run["action", "continuous"], env.step_hours
    )
    hours = env.step_hours * np.arange(len(content))
    price = env.of_hour(env.price_by_step.cpu(), run["hour"]) + run["deviation"]
    figure, [[upper], [middle], [lower]] = new_figure(3)
    upper.step(hours, price, where="post", color=BLUE)
    upper.set(ylabel="price per MWh", title="Learned policy")
    middle.plot(hours, content.sum(-1), color=GREEN)
    middle.set(ylabel="content (MWh)", ylim=(0, 1.05 * float(rows[0].sum())))
    for chosen, name, colour in ((CHARGE, "charge", BLUE), (DISCHARGE, "discharge", ORANGE)):
        power = torch.where(mode == chosen, flow.power, 0.0).sum(-1).numpy()
        lower.bar(hours, power, env.step_hours, align="edge", color=colour, label=name)
    lower.set(ylabel="power from grid (MW)", xlabel="hour")
    lower.legend(frameon=False, fontsize="small")
    save_figure(figure, path)
