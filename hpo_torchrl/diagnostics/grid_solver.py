"""Dynamic programming on one grid."""

from __future__ import annotations

import time

import numpy as np
import torch
from scipy import sparse
from tensordict.nn import TensorDictModule
from torch import Tensor

from hpo_torchrl.diagnostics.grid_core import Core
from hpo_torchrl.diagnostics.grid_space import Space
from hpo_torchrl.diagnostics.quadrature import Rule

# Steps computed at once, and sweeps of a policy's value.
_CHUNK, _SWEEPS = 2**17, 300
_WORST = -1e15  # of what is not finite: interpolation must stay so


class Solver:
    """Dynamic programming on one grid: what the best of each discrete action is worth, and its u.

    Args:
        core: the problem.
        space: the grid.
        rule: quadrature of the noise.
        objective: see :func:`grid_optimum`.
        discount: likewise.
        start: a solution on another grid to begin with.
    """

    def __init__(
        self,
        core: Core,
        space: Space,
        rule: Rule,
        objective: str,
        discount: float,
        start: Solver | None = None,
    ) -> None:
        self.core, self.space, self.rule = core, space, rule
        self.average, self.discount = objective == "average", discount
        self.horizon = core.horizon if objective != "average" else None
        self.nodes = space.nodes()
        index, weight = space.corners(core.initial)
        shares = weight / len(core.initial)
        self.begin = torch.zeros(space.size, dtype=torch.float64)
        self.begin.index_put_((index.flatten(),), shares.flatten(), accumulate=True)
        self.gain = 0.0
        choices = len(core.choices)
        self.value = torch.zeros(space.size, dtype=torch.float64)
        self.u = core.middle.expand(space.size, choices, -1).clone()
        self.delta = core.spacing.expand_as(self.u).clone()
        # Later on, a finer grid takes what was found everywhere from a coarser one.
        self.everywhere: int = 4 if start is None else int(start.everywhere > 1)
        self.start = start
        if start is not None:
            self.value = start.space.read(start.value, self.nodes)
            self.u = start.guess(self.nodes)
            self.delta /= 2
        self.q = torch.zeros(space.size, choices, dtype=torch.float64)
        self.values: list[Tensor] = []  # by steps, of a finite horizon
        self.tables: list[tuple[Tensor, Tensor]] = []

    # -- reading off the grid --------------------------------------------------------------------

    def guess(self, coordinates: Tensor, u: Tensor | None = None) -> Tensor:
        """Return continuous actions ``(P, choices, n)`` by the nodes' own.

        They are interpolated where the nodes around a state agree more or less, and the nearest
        node's where they do not: between two optima lies none.
        """
        index, weight = self.space.corners(coordinates)
        return self._blended((self.u if u is None else u)[index], weight)

    def _blended(self, near: Tensor, weight: Tensor) -> Tensor:
        """Blend actions of the nodes around states, ``(P, corners, *)`` to ``(P, *)``."""
        shares = weight.reshape(*weight.shape, *(1,) * (near.ndim - 2))
        nearest = near[torch.arange(len(near)), weight.argmax(1)]
        apart = near.amax(1) - near.amin(1) > self.core.spacing
        return torch.where(apart, nearest, (near * shares).sum(1))

    def restart(self, value: Tensor) -> Tensor:
        """Return what the end of an episode is worth: a new one, if there is no last one."""
        return self.begin @ value if self.average else torch.zeros((), dtype=torch.float64)

    # -- one step ahead --------------------------------------------------------------------------

    def ahead(
        self, coordinates: Tensor, choice: Tensor, u: Tensor, value: Tensor, now: int = 0
    ) -> Tensor:
        """Return the expected reward and value after, ``(P,)``, of actions in states ``(P, C)``."""
        count, found = max(1, _CHUNK // len(self.rule.weights)), []
        restart = self.restart(value)
        for at in range(0, len(coordinates), count):
            part = slice(at, at + count)
            after, reward, over = self.core.expand(
                coordinates[part], choice[part], u[part], self.rule, now
            )
            worth = self.space.read(value, after)
            if over is not None:
                worth = torch.where(over, restart, worth)
            worth = reward + self.discount * worth
            found.append(worth.unflatten(0, (-1, len(self.rule.weights))) @ self.rule.weights)
        return torch.cat(found)

    def search(
        self, coordinates: Tensor, c: int, candidates: Tensor, value: Tensor, now: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best of candidates ``(P, k, n)`` of one choice: worth, u, and which it is."""
        P, k, n = candidates.shape
        candidates = self.core.within(c, candidates)
        repeated = coordinates.repeat_interleave(k, 0)
        choice = torch.full((P * k,), c)
        worth = self.ahead(repeated, choice, candidates.reshape(-1, n), value, now).view(P, k)
        # The first candidate is kept unless another one is better than rounding.
        worth = worth.nan_to_num(nan=_WORST, neginf=_WORST)
        slack = torch.zeros_like(worth)
        slack[:, 0] = 1e-9 * worth[:, 0].abs().nan_to_num(posinf=0.0)
        best = (worth + slack).argmax(1)
        rows = torch.arange(P)
        return worth[rows, best], candidates[rows, best], best

    def improve(self, value: Tensor, everywhere: bool, now: int = 0) -> None:
        """Set ``q`` and ``u`` by one step ahead of a value: near the incumbents, or everywhere."""
        allowed = self.core.allowed(self.nodes, now)
        for c in range(len(self.core.choices)):
            own, delta = self.u[:, c], self.delta[:, c]
            tried = self.core.around(c, own, delta)
            local = tried.shape[1]
            if everywhere and not self.core.idle[c]:
                spread = self.core.candidates[c].expand(len(own), -1, -1)
                tried = torch.cat([tried, spread], 1)
            worth, u, best = self.search(self.nodes, c, tried, value, now)
            self.q[:, c], self.u[:, c] = worth, u
            best = best.unsqueeze(-1)
            kept = torch.where(best == 0, delta / 2, torch.minimum(1.5 * delta, 1e6 * delta[:1]))
            self.delta[:, c] = torch.where(best < local, kept, self.core.spacing / 2)
        self.masked = self.q.masked_fill(~allowed, -torch.inf)

    def best(self, coordinates: Tensor, now: int = 0, rounds: int = 3) -> tuple[Tensor, Tensor]:
        """Return what each choice is worth in states ``(P, C)`` with its best u, and that u.

        By one step ahead, from the nodes' own actions on: ``(P, choices)``, ``(P, choices, n)``.
        """
        value, (_, table) = self.ahead_of(now)
        index, _ = self.space.corners(coordinates)
        guess, near = self.guess(coordinates, table), table[index]
        found = []
        for c in range(len(self.core.choices)):
            tried = torch.cat([guess[:, None, c], near[:, :, c]], 1)
            delta = self.core.spacing.expand(len(coordinates), -1) / 2
            for _ in range(rounds):
                worth, u, _ = self.search(coordinates, c, tried, value, now)
                tried = self.core.around(c, u, delta)
                delta = delta / 4
            found.append((worth, u))
        return torch.stack([w for w, _ in found], 1), torch.stack([u for _, u in found], 1)

    def ahead_of(self, now: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the value after a step, and worth and u of each choice at the nodes before it."""
        if not self.tables:
            return self.value, (self.q, self.u)
        now = min(now, len(self.tables) - 1)
        q, u = self.tables[now]
        return self.values[now + 1], (q.double(), u.double())

    def act(self, coordinates: Tensor, now: int = 0) -> tuple[Tensor, Tensor]:
        """Decide in states ``(P, C)`` as the nodes around do: choices ``(P,)`` and u ``(P, n)``.

        Args:
            coordinates: the states.
            now: the step of the episode.
        """
        allowed = self.core.allowed(coordinates, now)
        q, table = self.ahead_of(now)[1]
        index, weight = self.space.corners(coordinates)
        worth = (q[index] * weight.unsqueeze(-1)).sum(1)
        choice = worth.masked_fill(~allowed, -torch.inf).argmax(1)
        u = self._blended(table[index, choice.unsqueeze(-1)], weight)
        return choice, torch.minimum(
            torch.maximum(u, self.core.low[choice]), self.core.high[choice]
        )

    def policy(self) -> TensorDictModule:
        """Return the policy as a module that reads the entries of the state."""
        core, shapes = self.core, self.core.layout.shapes
        names, timed = list(shapes), bool(self.tables)

        def decide(*entries: Tensor) -> tuple[Tensor, Tensor]:
            known = dict(zip(names, entries, strict=False))
            batch = entries[0].shape[: entries[0].ndim - len(shapes[names[0]])]
            now = int(entries[-1].flatten()[0]) if timed else 0
            coordinates = core.layout.flat(known, len(batch)).reshape(batch.numel(), -1)
            choice, u = self.act(coordinates.cpu(), now)
            discrete, place = core.choices[choice], entries[0].device
            discrete = discrete.reshape(*batch, *discrete.shape[1:]).to(place)
            return discrete, u.reshape(*batch, -1).to(entries[0])

        keys = [("action", "discrete"), ("action", "continuous")]
        return TensorDictModule(decide, [*names, *(["step"] if timed else [])], keys)

    # -- whole solutions -------------------------------------------------------------------------

    def solve(self, passes: int, tolerance: float, deadline: float) -> Solver:
        """Improve and evaluate until neither gain nor policy move any more."""
        if self.horizon is not None:
            return self._backwards(self.start)
        before = None
        for at in range(passes):
            self.improve(self.value, everywhere=at < self.everywhere)
            worth, choice = self.masked.max(1)
            best = torch.arange(len(choice)), choice
            if self.discount == 1 and not self.average and at == 0:
                self.value = worth
            self._evaluate(choice, self.u[best], tolerance)
            level = self.level()
            scale = max(abs(level), 1e-12)
            if before is not None and at > 2 and abs(level - before) < 0.05 * tolerance * scale:
                break
            if time.monotonic() > deadline and at > 4:
                break
            before = level
        self.start, self.passes = None, at + 1
        return self

    def level(self) -> float:
        """Return what the objective is worth: reward per step, or from the start."""
        return self.gain if self.average else float(self.begin @ self.value)

    def _evaluate(self, choice: Tensor, u: Tensor, tolerance: float) -> None:
        """Iterate the value of a policy, from the one that is known."""
        N, Q = self.space.size, len(self.rule.weights)
        rewards, stops, indices, weights = [], [], [], []
        count = max(1, _CHUNK // Q)
        for at in range(0, N, count):
            part = slice(at, at + count)
            after, reward, over = self.core.expand(
                self.nodes[part], choice[part], u[part], self.rule, 0
            )
            index, weight = self.space.corners(after)
            weight = weight.view(-1, Q, weight.shape[1]) * self.rule.weights[:, None]
            stop = torch.zeros(len(reward) // Q, dtype=torch.float64)
            if over is not None:
                weight = weight * ~over.view(-1, Q, 1)
                stop = over.view(-1, Q).double() @ self.rule.weights
            rewards.append(reward.view(-1, Q) @ self.rule.weights)
            stops.append(stop)
            indices.append(index.view(len(stop), -1))
            weights.append(weight.reshape(len(stop), -1))
        index, weight = torch.cat(indices), torch.cat(weights)
        starts = np.arange(0, index.numel() + 1, index.shape[1])
        P = sparse.csr_matrix((weight.numpy().ravel(), index.numpy().ravel(), starts), (N, N))
        r, ending = torch.cat(rewards).numpy(), torch.cat(stops).numpy()
        v, begin, ends = self.value.numpy().copy(), self.begin.numpy(), bool(ending.any())
        # Lazily, so that a cycle converges too.
        lazy = 0.95 if self.average else 1.0
        enough = 0.02 * tolerance * max(float(np.abs(r).mean()), 1e-12)
        for sweep in range(1, _SWEEPS + 1):
            new = r + self.discount * (P @ v)
            if self.average and ends:
                new += ending * (begin @ v)
            move = new - v
            shift = float(begin @ move)
            if self.average:
                self.gain = shift
            v += lazy * (move - shift)
            if not self.average:  # a move that all nodes share goes on for ever
                v += shift / (1 - self.discount) if self.discount < 1 and not ends else shift
            rest = move - shift if self.average or (self.discount < 1 and not ends) else move
            if sweep % 10 == 0 and np.abs(rest).max() < enough:
                break
        centre = float(begin @ v) if self.average else 0.0
        self.value = torch.tensor(v - centre)

    def _backwards(self, start: Solver | None) -> Solver:
        """Go back from the horizon, where nothing is worth anything any more."""
        value = torch.zeros(self.space.size, dtype=torch.float64)
        self.values, self.tables = [value], []
        for now in reversed(range(self.horizon or 0)):
            if start is not None:
                self.u = start.guess(self.nodes, start.tables[now][1].double())
            self.delta = (self.core.spacing / 2).expand_as(self.u).clone()
            for again in range(3):
                self.improve(value, everywhere=start is None and again == 0, now=now)
            value = self.masked.amax(1)
            self.values.insert(0, value)
            self.tables.insert(0, (self.q.float(), self.u.float()))
        self.value, self.start, self.passes = value, None, 0
        return self
