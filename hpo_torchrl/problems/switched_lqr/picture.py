"""What a learned policy of a switched LQR does: shares of the modes, and the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.core.figures import MODES, new_figure, save_figure
from hpo_torchrl.core.reference import Reference

_GRID, _PATHS = 201, 12


@torch.no_grad()
def describe_switched_lqr(
    env, policy, reference: Reference, run_dir: Path | None
) -> dict[str, Any]:
    """Share of the test's decisions that take each mode; in two dimensions, the plane."""
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        run = env.rollout(env.horizon, policy, break_when_any_done=False)
    modes = run["action", "discrete"].flatten()
    shares = torch.bincount(modes, minlength=env.num_discrete) / modes.numel()
    if run_dir is not None and env.A.shape[-1] == 2:
        extent = env.initial_scale
        line = torch.linspace(-extent, extent, _GRID, dtype=env.float_dtype, device=env.device)
        x = torch.cartesian_prod(line, line).flip(-1)  # rows by the second coordinate
        first = {"x": x, "step": torch.zeros(len(x), 1, dtype=torch.int64, device=env.device)}
        planes = {"learned": policy.distribution(env.observe(first)).logits.argmax(-1)}
        trails = {"learned": run["x"][:_PATHS]}
        if reference.policy is not None:
            chosen = reference.policy(TensorDict(first, batch_size=[len(x)]))
            planes["optimal"] = chosen["action", "discrete"]
            start = run[:, 0].select("x", "step").copy()
            trails["optimal"] = env.rollout(
                env.horizon,
                reference.policy,
                tensordict=env.reset(start, set_state=True),
                auto_reset=False,
            )["x"][:_PATHS]
        plot_mode_plane(
            run_dir / "policy.png",
            extent=extent,
            planes={name: p.reshape(_GRID, _GRID).tolist() for name, p in planes.items()},
            paths={name: trail.tolist() for name, trail in trails.items()},
            num_modes=env.num_discrete,
        )
    return {"mode_shares": [round(share, 4) for share in shares.tolist()]}


def plot_mode_plane(
    path: str | Path,
    *,
    extent: float,
    planes: Mapping[str, Sequence[Sequence[int]]],
    paths: Mapping[str, Sequence[Sequence[Sequence[float]]]],
    num_modes: int,
) -> Path:
    """Draw which mode a policy chooses in the plane of a two-dimensional state.

    Args:
        path: the PNG file to write.
        extent: the plane runs from -extent to extent in both coordinates.
        planes: by title, the mode at each point of a square grid, rows by the second coordinate.
        paths: by title, trajectories to draw over the plane: points ``(x_1, x_2)`` in order.
        num_modes: number of modes.

    Returns:
        The path.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    figure, [panels] = new_figure(1, len(planes), share_x=False)
    colours = ListedColormap([MODES[mode % len(MODES)] for mode in range(num_modes)])
    for axes, (title, plane) in zip(panels, planes.items(), strict=True):
        axes.imshow(
            plane,
            origin="lower",
            extent=(-extent, extent, -extent, extent),
            cmap=colours,
            vmin=-0.5,
            vmax=num_modes - 0.5,
            alpha=0.55,
            interpolation="nearest",
        )
        for points in paths.get(title, ()):
            axes.plot(*zip(*points, strict=True), color="black", linewidth=0.8, alpha=0.7)
        axes.set(title=title, xlabel="$x_1$", ylabel="$x_2$")
        axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
        axes.grid(visible=False)
    shown = [Patch(color=colours(mode), alpha=0.55) for mode in range(num_modes)]
    names = [f"mode {mode}" for mode in range(num_modes)]
    figure.legend(shown, names, loc="outside lower center", ncols=min(num_modes, 8), frameon=False)
    return save_figure(figure, path)
