"""An environment as functions of the coordinates of its state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpo_torchrl.diagnostics.grid_space import Layout
from hpo_torchrl.diagnostics.joint_actions import ends_of, joint_actions
from hpo_torchrl.diagnostics.quadrature import Noise, Rule
from hpo_torchrl.envs import DifferentiableEnv, ReplicatedEnv

# Joint discrete actions, coordinates of u, and candidates along one by their number.
_CHOICES, _COORDINATES, _ALONG = 32, 3, {1: 15, 2: 6, 3: 4}
# Candidates where there is no bound, in action scales.
_GEOMETRIC = [0, 0.1, 0.3, 0.6, 1, 1.5, 2, 3, 6, 10]
_INSTANCES, _STARTS, _RESETS, _PROBES = 256, 2**16, 2000, 512

Act = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class Run(NamedTuple):
    """A simulation of T steps of S instances.

    States ``(T, S, C)``, choices ``(T, S)`` and u ``(T, S, n)`` in them, rewards ``(T, S)``, and
    whether the episode was not over yet, ``(T, S)``.
    """

    states: Tensor
    choice: Tensor
    u: Tensor
    rewards: Tensor
    alive: Tensor


class Core:
    """The functional core of an environment, its noise, its actions and where it starts.

    Raises:
        TypeError: it is no plain :class:`DifferentiableEnv`.
        ValueError: it is beyond the reach of a grid; the message says in what.
    """

    def __init__(self, env: Any, seed: int) -> None:
        if not isinstance(env, DifferentiableEnv) or isinstance(env, ReplicatedEnv):
            raise TypeError(
                "grid_optimum needs a plain DifferentiableEnv with its functional core (dynamics), "
                f"got {type(env).__name__}; unwrap it, or use reference=yardsticks."
            )
        self.env = env = copy.deepcopy(env).to("cpu")
        env.set_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.layout = Layout({name: tuple(shape) for name, shape in env.state_shapes.items()})
        self.dtype, self.ndim = env.float_dtype, len(env.batch_size)
        self.horizon = env.horizon if env.counts_steps else None
        self._set_actions()
        self.drawn = False  # whether the starts are a sample of many more
        self.initial = self._starts()
        self._check_instances()
        self.noise = Noise(env)
        self.noise.examine(self._probe(), _PROBES)
        self.idle = self._find_idle()

    # -- actions ---------------------------------------------------------------------------------

    def _set_actions(self) -> None:
        env, n = self.env, self.env.continuous_dim
        heads = env.num_heads or 1
        if env.num_discrete**heads > _CHOICES or n > _COORDINATES:
            raise ValueError(
                f"grid_optimum can try {_CHOICES} discrete actions and {_COORDINATES} continuous "
                f"ones in a state, got {env.num_discrete**heads} and {n}; use reference=yardsticks."
            )
        joint = joint_actions(env)
        self.choices = (joint if env.num_heads else joint[:, 0]).cpu()
        self.low, self.high = (end.cpu() for end in ends_of(env, joint))
        if n > 1 and env.branch_bounds is not None and env.branch_bounds.of_total:
            self.low = self.low.clamp_max(0.0)  # a part may be small
        scale, along = env.action_scale.double().cpu(), _ALONG[n]
        geometric = torch.tensor(_GEOMETRIC, dtype=torch.float64)
        self.candidates = []
        for low, high in zip(self.low, self.high, strict=True):
            sides = []
            for k in range(n):
                a, b, steps = float(low[k]), float(high[k]), float(scale[k]) * geometric
                if np.isfinite(a) and np.isfinite(b):
                    sides.append(torch.linspace(a, b, along, dtype=torch.float64).unique())
                elif np.isfinite(a) or np.isfinite(b):
                    sides.append(a + steps if np.isfinite(a) else b - steps)
                else:
                    sides.append(torch.cat([-steps.flip(0)[:-1], steps]))
            sides = [side if n == 1 else side[:: -(-len(side) // (2 * along))] for side in sides]
            self.candidates.append(torch.cartesian_prod(*sides).reshape(-1, n))
        finite = (self.low.isfinite() & self.high.isfinite()).all(0)
        width = (self.high - self.low).amax(0) / (along - 1)
        self.spacing = torch.where(finite & (width > 0), width, scale / 2)
        self.middle = torch.stack([rows[len(rows) // 2] for rows in self.candidates])

    def index_of(self, discrete: Tensor) -> Tensor:
        """Return which choices discrete actions ``(P,)`` or ``(P, H)`` are, ``(P,)``."""
        known = self.choices if self.choices.ndim > 1 else self.choices.unsqueeze(-1)
        given = discrete.reshape(len(discrete), 1, -1)
        return (given == known).all(-1).int().argmax(1)

    def within(self, c: int, u: Tensor) -> Tensor:
        """Return continuous actions of a choice, moved between its ends."""
        return torch.minimum(torch.maximum(u, self.low[c]), self.high[c])

    def around(self, c: int, u: Tensor, delta: Tensor) -> Tensor:
        """Return a continuous action ``(N, n)`` and its neighbours, ``(N, 2 n + 1, n)``."""
        if self.idle[c]:
            return u.unsqueeze(1)
        steps = torch.diag_embed(delta)
        return torch.cat([u.unsqueeze(1), u.unsqueeze(1) + steps, u.unsqueeze(1) - steps], 1)

    def at_random(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw actions over what is allowed, or a few action scales where there is no end."""
        choice = torch.randint(len(self.choices), (count,), generator=self.generator)
        scale = self.env.action_scale.double().cpu()
        low = torch.where(
            self.low.isfinite(), self.low, self.high.nan_to_num(posinf=0.0) - 2 * scale
        )
        high = torch.where(
            self.high.isfinite(), self.high, self.low.nan_to_num(neginf=0.0) + 2 * scale
        )
        share = torch.rand(count, low.shape[1], generator=self.generator, dtype=torch.float64)
        return choice, low[choice] + share * (high - low)[choice]

    def allowed(self, coordinates: Tensor, now: int) -> Tensor:
        """Return which choices are allowed in states ``(P, C)``, bool ``(P, choices)``."""
        mask = self.env.allowed(self.layout.state(coordinates, now, self.dtype))
        if mask is None:
            return torch.ones(len(coordinates), len(self.choices), dtype=torch.bool)
        if self.env.num_heads is None:
            return mask
        return torch.stack([mask[:, range(mask.shape[1]), own].all(-1) for own in self.choices], -1)

    # -- steps -----------------------------------------------------------------------------------

    def step(
        self, coordinates: Tensor, choice: Tensor, u: Tensor, noise: Tensor, now: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the next states ``(P, C)``, rewards ``(P,)`` and whether it is over, or ``None``.

        The end of the horizon is not looked at: it is the solver's.
        """
        state = self.layout.state(coordinates, now, self.dtype)
        action = {"discrete": self.choices[choice], "continuous": u.to(self.dtype)}
        if self.env.counts_steps:
            after, reward = self.env.dynamics(state, action, noise)
            over = None
        else:
            after, reward, over = self.env.advance(state, action, noise)
            reward, over = reward.squeeze(-1), None if over is None else over.squeeze(-1)
        return self.layout.flat(after, 1), reward.double(), over

    def expand(
        self, coordinates: Tensor, choice: Tensor, u: Tensor, rule: Rule, now: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Take a step under every node of the noise: ``(P * Q, ...)``, nodes last."""
        count = len(rule.weights)
        return self.step(
            coordinates.repeat_interleave(count, 0),
            choice.repeat_interleave(count, 0),
            u.repeat_interleave(count, 0),
            rule.nodes.repeat(len(coordinates), *(1,) * (rule.nodes.ndim - 1)),
            now,
        )

    def _starts(self) -> Tensor:
        found: list[Tensor] = []
        for _ in range(min(-(-_STARTS // max(self.env.batch_size.numel(), 1)), _RESETS)):
            state = self.layout.flat(self.env.fresh_state(), self.ndim)
            found.append(state.reshape(-1, state.shape[-1]))
            if len(found) >= 2 and torch.equal(found[0], found[1]):
                return found[0]  # always the same
        self.drawn = True
        return torch.cat(found)[:_STARTS]

    def _some(self, count: int) -> Tensor:
        index = torch.randint(len(self.initial), (count,), generator=self.generator)
        return self.initial[index]

    def _probe(self) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """A step from fixed states, where it starts and farther on, and actions, by the noise."""
        known, (choice, u) = self.explore(30), self.at_random(_PROBES)
        pick = torch.randint(len(known), (_PROBES // 2,), generator=self.generator)
        states = torch.cat([self._some(_PROBES - len(pick)), known[pick]])

        def step(noise: Tensor) -> tuple[Tensor, ...]:
            after, reward, over = self.step(states, choice, u, noise)
            return after, reward, torch.zeros(len(reward)) if over is None else over

        return step

    def _check_instances(self) -> None:
        """Refuse an environment whose instances differ, or that cannot step another batch."""
        states, (choice, u) = self._some(7), self.at_random(7)
        noise = self.env.sample_noise(1).reshape(-1, *self.env.noise_shape)
        noise = noise[:1].expand(7, *self.env.noise_shape)
        why = "its dynamics must take states of any batch, and be the same for all instances"
        try:
            found = self.step(states, choice, u, noise)[:2]
            other = self.step(states.flip(0), choice.flip(0), u.flip(0), noise)[:2]
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"grid_optimum cannot step {type(self.env).__name__}: {why} ({error}); use "
                "reference=yardsticks."
            ) from error
        if not all(
            torch.allclose(a, b.flip(0), rtol=1e-4) for a, b in zip(found, other, strict=True)
        ):
            raise ValueError(
                f"grid_optimum cannot solve {type(self.env).__name__}: {why}; use "
                "reference=yardsticks."
            )
        later = self.step(states, choice, u, noise, now=3)[:2]
        self.timed = not all(torch.equal(a, b) for a, b in zip(found, later, strict=True))

    def _find_idle(self) -> list[bool]:
        """Choices beside which u changes nothing."""
        found, states = [], torch.cat([self._some(256), self.explore(10)[::7][:512]])
        noise = self.noise.sample[: len(states)].reshape(-1, *self.env.noise_shape)
        for c, rows in enumerate(self.candidates):
            choice = torch.full((len(states),), c)
            pick = torch.randint(len(rows), (2, len(states)), generator=self.generator)
            one, other = (self.step(states, choice, rows[own], noise) for own in pick)
            same = (
                torch.allclose(a, b, equal_nan=True)
                for a, b in zip(one[:2], other[:2], strict=True)
            )
            found.append(all(same))
        return found

    # -- simulations -----------------------------------------------------------------------------

    def simulate(self, act: Act, steps: int, instances: int, again: bool) -> Run:
        """Run a policy from the start.

        Args:
            act: the policy, from states ``(P, C)`` and the step to choices ``(P,)`` and u.
            steps: the number T.
            instances: the number S.
            again: whether an instance that is over starts again; else it earns nothing more.
        """
        now, found = self._some(instances), []
        alive = torch.ones(instances, dtype=torch.bool)
        for t in range(steps):
            choice, u = act(now, t)
            pick = torch.randint(len(self.noise.sample), (instances,), generator=self.generator)
            noise = self.noise.sample[pick].reshape(-1, *self.env.noise_shape)
            after, reward, over = self.step(now, choice, u, noise, t if self.timed else 0)
            found.append((now, choice, u, torch.where(alive, reward, 0.0), alive))
            if over is not None:
                fresh = self._some(instances)
                after = torch.where(over.unsqueeze(-1), fresh, after)
                alive = alive if again else alive & ~over
            now = after
        return Run(*(torch.stack(parts) for parts in zip(*found, strict=True)))

    def explore(self, steps: int) -> Tensor:
        """Return states that random actions visit, without the farthest, ``(V, C)``."""
        act = lambda states, t: self.at_random(len(states))  # noqa: E731
        run = self.simulate(act, min(steps, self.horizon or steps), _INSTANCES, True)
        known = run.states.flatten(0, 1)
        known = known[known.isfinite().all(-1)]
        low, high = (torch.quantile(known[::7], q, 0) for q in (0.01, 0.99))
        width = (high - low).clamp_min(1e-6)
        near = ((known >= low - width) & (known <= high + width)).all(-1)
        return torch.cat([self.initial[:_PROBES], known[near]])
