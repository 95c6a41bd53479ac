"""Switched linear systems with quadratic cost (switched LQR)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.core.checks import check_bool, check_float, check_int, in_dtype
from hpo_torchrl.core.figures import MODES, new_figure, save_figure
from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.envs.differentiable import Action, DifferentiableEnv, State
from hpo_torchrl.problems.switched_lqr.optimum import switched_lqr_reference
from hpo_torchrl.problems.switched_lqr.system import FixedModePolicy, System

# Points along each side of a picture of the plane, and trajectories drawn over it.
_GRID, _PATHS = 201, 12


class SwitchedLQREnv(DifferentiableEnv):
    r"""A linear system whose mode is chosen anew at every step.

    With state :math:`x`, mode :math:`d` (the discrete action), input :math:`u` (the continuous
    action, unbounded) and noise :math:`w`, one step is

    .. math::
        r = -(x^\top Q_d\, x + u^\top R_d\, u), \qquad x' = A_d\, x + B_d\, u + w

    so the state is charged before it moves on, and nothing is charged on the last one.

    The state is ``"x"``, shape ``(*B, n)``. The ``"observation"`` is x in units of the initial
    scale :math:`c = \text{initial\_range} / \sqrt n` and, with ``observe_time``, ``step /
    horizon`` behind it: with few steps left it no longer pays to control. The reward ``(*B, 1)``
    is negated cost; ``cost_units`` is n, so that reports are per dimension and period. The end of
    an episode terminates: nothing is charged beyond. ``action_scale`` is c as well, so that a
    linear feedback u = K x is, in a policy's own units, a map of order 1.

    Gradients flow as :class:`DifferentiableEnv` says. Guard: each coordinate of x' is clipped at
    ``state_limit``; where the clip acts, no gradient passes, and the system is no longer the one
    that :func:`~hpo_torchrl.problems.switched_lqr.switched_lqr_optimum` solves.

    The constructor refuses systems that no policy can stabilise: a direction that no input of any
    mode reaches grows in all modes so fast that a typical start leaves the guard within the
    horizon. Any other growth, however fast, is left to the policy.

    Args:
        A: transition matrices, one per mode, shape ``(M, n, n)``: a tensor, array or nested lists.
        B: input matrices, ``(M, n, m)``; they need not be square.
        Q: cost of the state, symmetric positive semidefinite, ``(M, n, n)`` or ``(n, n)`` for all.
        R: cost of the input, symmetric positive definite, ``(M, m, m)`` or ``(m, m)`` for all.
        horizon: steps T in an episode.
        process_noise: standard deviation of the normal noise w, per coordinate.
        initial_range: episodes start from x uniform in [-range, range] / sqrt(n), per coordinate.
        initial_seed: every reset has the same starts, drawn with NumPy's older generator,
            ``numpy.random.seed`` of this number; ``None`` draws anew.
        observe_time: whether the observation holds the time.
        state_limit: the guard.
        others: ``batch_size``, ``device``, ``dtype`` and ``seed`` of :class:`DifferentiableEnv`.

    Attributes:
        A, B, Q, R: the matrices, one per mode.
        homogeneous_entries: without noise n: optimal inputs scale with x, costs with its square,
            and optimal modes depend on its direction alone. Else 0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes disagree, a number is not finite or out of range, Q or R is not a cost,
            or the system is one that no policy can hold.

    Examples:
        >>> from hpo_torchrl.problems import SwitchedLQREnv
        >>> A, B = [[[2, 1], [0, 1]], [[2, 1], [0, 0.5]]], [[[1], [1]], [[1], [2]]]
        >>> env = SwitchedLQREnv(A, B, Q=[[1, 0], [0, 1]], R=[[1]], batch_size=4, seed=0)
        >>> rollout = env.rollout(5)
        >>> rollout["x"].shape, rollout["observation"].shape, rollout["next", "reward"].shape
        (torch.Size([4, 5, 2]), torch.Size([4, 5, 3]), torch.Size([4, 5, 1]))
        >>> SwitchedLQREnv.from_recipe(dim=8, num_modes=4).num_discrete
        4
    """

    horizon: int

    def __init__(
        self,
        A: Any,
        B: Any,
        Q: Any,
        R: Any,
        *,
        horizon: int = 20,
        process_noise: float = 0.0,
        initial_range: float = 10.0,
        initial_seed: int | None = None,
        observe_time: bool = True,
        state_limit: float = 100.0,
        **others: Any,
    ) -> None:
        system = System.of(A, B, Q, R)
        M, n, m = system.B.shape
        check_int("horizon", horizon, minimum=1)
        check_bool("observe_time", observe_time)
        check_float("initial_range", initial_range, minimum=0.0, strict=True)
        if initial_seed is not None:
            check_int("initial_seed", initial_seed, minimum=0)
        self._check_holdable(system, horizon, initial_range / n**0.5, state_limit)
        super().__init__(
            num_discrete=M,
            continuous_dim=m,
            action_scale=torch.tensor(initial_range / n**0.5, dtype=torch.float64),
            state_shapes={"x": (n,)},
            observation_dim=n + observe_time,
            noise_shape=(n,),
            horizon=horizon,
            horizon_terminates=True,
            **others,
        )
        self.process_noise = check_float("process_noise", process_noise, minimum=0.0)
        self.initial_scale, self.state_limit = initial_range / n**0.5, float(state_limit)
        self.initial_seed = initial_seed
        self.observe_time, self.cost_units = observe_time, float(n)
        self.homogeneous_entries = n if process_noise == 0 else 0
        place = {"dtype": self.float_dtype, "device": self.device}
        for name, size in {"state_limit": state_limit, "process_noise": process_noise}.items():
            in_dtype(name, size, **place)
        self.A, self.B, self.Q, self.R = (
            in_dtype(name, matrix, **place) for name, matrix in system._asdict().items()
        )
        self._table_A, self._table_B = _table(self.A), _table(self.B)
        self._table_Q, self._table_R = _table(self.Q), _table(self.R)

    @classmethod
    def from_recipe(
        cls,
        dim: int,
        num_modes: int,
        *,
        growth: float = 1.10,
        coupling: float = 0.05,
        weak_input: float = 0.15,
        input_cost: float = 0.1,
        recipe_seed: int = 0,
        **others: Any,
    ) -> SwitchedLQREnv:
        """Make a system of any size whose modes each command another group of coordinates.

        All modes share ``A = growth I + coupling Z``, where Z is standard normal, symmetrised and
        divided by its largest absolute entry. The n coordinates are split into M contiguous groups;
        ``B_m`` is diagonal, 1 on group m and ``weak_input`` elsewhere. ``Q = I`` and
        ``R = input_cost I``. Every group is pushed outwards and only one at a time is well
        commanded, so every mode is needed.

        Args:
            dim: dimension n of state and input.
            num_modes: number M of modes, at most n.
            growth: open-loop growth per step.
            coupling: strength of the coupling between coordinates.
            weak_input: gain of an input outside the group of the mode.
            input_cost: cost of the squared input.
            recipe_seed: seed of Z.
            others: arguments of the class that follow the matrices.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range, or there are more modes than coordinates.
        """
        n = check_int("dim", dim, minimum=1)
        M = check_int("num_modes", num_modes, minimum=1)
        if n < M:
            raise ValueError(
                f"num_modes must be at most dim={n}, got {M}: every mode needs a coordinate of its "
                "own. Lower num_modes or raise dim."
            )
        check_int("recipe_seed", recipe_seed, minimum=0)
        in_dtype("growth", check_float("growth", growth), others.get("dtype", torch.float32))
        check_float("coupling", coupling)
        check_float("weak_input", weak_input)
        check_float("input_cost", input_cost, minimum=0.0, strict=True)
        Z = np.random.default_rng(recipe_seed).standard_normal((n, n))
        Z = Z + Z.T
        A = growth * np.eye(n) + coupling * Z / np.abs(Z).max()
        gains = np.full((M, n), float(weak_input))
        for mode, group in enumerate(np.array_split(np.arange(n), M)):
            gains[mode, group] = 1.0
        B = gains[:, :, None] * np.eye(n)
        return cls(np.stack([A] * M), B, np.eye(n), input_cost * np.eye(n), **others)

    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        """Take one step; the equations stand in the class docstring.

        Args:
            state: ``"x"``, ``(*B, n)``.
            action: ``"discrete"`` ``(*B,)`` and ``"continuous"`` ``(*B, m)``.
            noise: w, ``(*B, n)``.

        Returns:
            The next state and the reward ``(*B,)``.
        """
        x, u, mode = state["x"], action["continuous"], action["discrete"]
        n, m = x.shape[-1], u.shape[-1]
        cost = (x * _times(self._table_Q, x, mode, n)).sum(-1)
        cost = cost + (u * _times(self._table_R, u, mode, m)).sum(-1)
        moved = _times(self._table_A, x, mode, n) + _times(self._table_B, u, mode, n) + noise
        return {"x": moved.clamp(-self.state_limit, self.state_limit)}, -cost

    def observe(self, state: State) -> Tensor:
        """Return x in units of the initial scale, then the time: ``(*B, n)`` or ``(*B, n + 1)``."""
        x = state["x"] / self.initial_scale
        if not self.observe_time:
            return x
        return torch.cat([x, state["step"].to(x.dtype) / self.horizon], -1)

    def rules(self) -> dict[str, Callable[[], nn.Module]]:
        """Return the best fixed mode."""
        return {"fixed_mode": partial(FixedModePolicy.best, self)}

    reference = switched_lqr_reference

    @torch.no_grad()
    def describe(
        self,
        policy: Any,
        tests: Mapping[str, Test],
        reference: Reference,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """Say how often each mode is taken; in two dimensions, draw the plane."""
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            run = self.rollout(self.horizon, policy, break_when_any_done=False)
            if folder is not None and self.A.shape[-1] == 2:
                policies = {"learned": policy, "optimal": reference.policy}
                self._draw_plane(folder / "policy.png", policies, run[:, 0].select("x", "step"))
        modes = run["action", "discrete"].flatten()
        shares = torch.bincount(modes, minlength=self.num_discrete) / modes.numel()
        return {"mode_shares": [round(share, 4) for share in shares.tolist()]}

    def _draw_plane(self, path: Path, policies: dict[str, Any], start: TensorDict) -> None:
        """Draw which mode each policy chooses in the plane, and its trajectories over it."""
        from matplotlib.patches import Patch

        policies = {title: policy for title, policy in policies.items() if policy is not None}
        patches = [
            Patch(color=MODES[mode % len(MODES)], alpha=0.55, label=f"mode {mode}")
            for mode in range(self.num_discrete)
        ]
        colours, extent = np.array([patch.get_facecolor() for patch in patches]), self.initial_scale
        line = torch.linspace(-extent, extent, _GRID, dtype=self.float_dtype, device=self.device)
        x = torch.cartesian_prod(line, line).flip(-1)  # rows by the second coordinate
        plane = {"x": x, "step": torch.zeros(len(x), 1, dtype=torch.int64, device=self.device)}
        plane["observation"] = self.observe(plane)
        figure, [panels] = new_figure(1, len(policies), share_x=False)
        for axes, (title, policy) in zip(panels, policies.items(), strict=True):
            modes = policy(TensorDict(plane, len(x)))["action", "discrete"].reshape(_GRID, _GRID)
            first = self.reset(start.copy(), set_state=True)
            run = self.rollout(self.horizon, policy, tensordict=first, auto_reset=False)
            for points in run["x"][:_PATHS].cpu():
                axes.plot(*points.mT, color="black", linewidth=0.8, alpha=0.7)
            ends = (-extent, extent, -extent, extent)
            axes.imshow(colours[modes.cpu()], origin="lower", extent=ends, interpolation="nearest")
            axes.set(title=title, xlabel="$x_1$", ylabel="$x_2$", xlim=ends[:2], ylim=ends[2:])
            axes.grid(visible=False)
        columns = min(len(patches), len(MODES))
        figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False)
        save_figure(figure, path)

    def heuristic_choice(self, observation: Tensor) -> Tensor:
        """Take the mode whose inputs reach most of the state, the largest norm of B' x."""
        x = observation[..., : self.A.shape[-1]]
        return torch.einsum("...i,mij->...mj", x, self.B).square().sum(-1).argmax(-1)

    def initial_state(self) -> dict[str, Tensor]:
        """Draw each coordinate of x uniformly from [-range, range] / sqrt(n)."""
        shape = self.state_spec["x"].shape
        if self.initial_seed is None:
            uniform = self._draw(torch.rand, shape)
        else:
            drawn = np.random.RandomState(self.initial_seed).uniform(size=tuple(shape))
            uniform = torch.as_tensor(drawn, dtype=self.float_dtype, device=self.device)
        return {"x": (2 * uniform - 1) * self.initial_scale}

    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Return the process noise of the coming steps, ``(*B, T, n)``."""
        shape = (*self.batch_size, num_steps, *self.noise_shape)
        if self.process_noise == 0:
            return torch.zeros(shape, dtype=self.float_dtype, device=self.device)
        return self.process_noise * self._draw(torch.randn, shape)

    def opposite_noise(self, noise: Tensor) -> Tensor | None:
        """Return noise of the other sign, if there is any."""
        return -noise if self.process_noise else None

    @staticmethod
    def _check_holdable(
        system: System, horizon: int, initial_scale: float, state_limit: float
    ) -> None:
        check_float("state_limit", state_limit, minimum=0.0, strict=True)
        if initial_scale > state_limit:
            raise ValueError(
                f"state_limit must be at least initial_range / sqrt(n) = {initial_scale:.4g}, or "
                f"episodes start outside the guard; got {state_limit}."
            )
        growth = system.uncontrollable_growth()
        # w'x of a unit vector w starts with standard deviation scale / sqrt(3); the guard holds it
        # below state_limit * sqrt(n).
        room = math.log(state_limit * (3 * system.A.shape[1]) ** 0.5 / initial_scale)
        if growth > 1 and horizon * math.log(growth) > room:
            raise ValueError(
                "A and B make a system that no policy can hold: a direction that no input reaches "
                f"grows at least {growth:.4g} times per step in every mode, and leaves "
                f"state_limit={state_limit:g} within horizon={horizon} steps. Let B reach it, make "
                "A smaller there, shorten the horizon or raise state_limit."
            )


def _table(matrices: Tensor) -> Tensor:
    """Lay ``(M, k, l)`` out as ``(l, M k)``; if all modes are equal, as ``(l, k)``."""
    if bool((matrices == matrices[0]).all()):
        matrices = matrices[:1]
    return matrices.permute(2, 0, 1).flatten(1).contiguous()


def _times(table: Tensor, vector: Tensor, mode: Tensor, rows: int) -> Tensor:
    """Multiply each vector ``(*B, l)`` by the matrix ``(k, l)`` of its mode, k = ``rows``.

    One product with all matrices, from which each instance takes its own: gathering a matrix per
    instance would cost several times more, forward and backward.
    """
    product = vector @ table
    if product.shape[-1] == rows:
        return product
    index = mode.unsqueeze(-1).unsqueeze(-1).expand(*mode.shape, 1, rows)
    return product.unflatten(-1, (-1, rows)).gather(-2, index).squeeze(-2)
