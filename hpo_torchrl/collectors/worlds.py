"""Several environments of one problem, side by side in one rollout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from hpo_torchrl.collectors.discounting import Entries
from hpo_torchrl.collectors.problems import check_same_problem
from hpo_torchrl.collectors.unrolling import Transition, expand_mask, unroll
from hpo_torchrl.envs import DifferentiableEnv


class Worlds:
    """S worlds of one problem, batch size ``(S, *B)``, as :func:`unroll` asks for an environment.

    Args:
        env: an environment of the problem: its equations serve all worlds.
        number: number S of worlds.
        fresh: draws the start of every world anew, given whose episodes are over, bool
            ``(S, *B, 1)``: entries ``(S, *B, ...)`` by name. What it returns elsewhere is not read.
    """

    counts_steps = True

    def __init__(
        self,
        env: DifferentiableEnv,
        number: int,
        fresh: Callable[[Tensor], Mapping[str, Tensor]],
    ) -> None:
        self.env, self.batch_size = env, torch.Size((number, *env.batch_size))
        self.state_names, self.shown_names = env.state_names, env.shown_names
        self.names = (*env.state_names, *env.shown_names)
        self.device, self.horizon_terminates = env.device, env.horizon_terminates
        self.horizon, self.show, self.fresh = env.horizon, env.show, fresh

    def rollout(
        self,
        act: Callable[[Entries], Mapping[str, Tensor | None]],
        start: Mapping[str, Tensor],
        noise: Tensor,
        discount: float = 1.0,
    ) -> TensorDict:
        """Roll out, with the graph, as :func:`differentiable_rollout` does in each world.

        Args:
            act: chooses at the entries of a step ``"discrete"`` and ``"continuous"``, and says
                what the rollout holds besides, as :func:`entries_of` does.
            start: where to start: state and what is shown of it, ``(S, *B, ...)``.
            noise: ``(S, *B, T, *noise_shape)``.
            discount: factor on the gradient through each transition.
        """

        def begin() -> Transition:
            return lambda carried, step_noise: self._step(act(carried), carried, step_noise)

        # These worlds are all that unrolling asks of an environment and its start.
        worlds: Any = self
        begins: Any = start
        return unroll(worlds, begin, begins, noise, discount, restart=self.fresh)

    def _step(self, chosen: Any, carried: Entries, noise: Tensor) -> tuple:
        return chosen, *self.env.advance(carried, chosen, noise)

    @torch.no_grad()
    def carry(self, rollout: TensorDictBase) -> dict[str, Tensor]:
        """Return where the next rollout starts: the last states, and fresh ones after the end."""
        last = rollout.detach()[..., -1].get("next")
        over = last.get("done")
        carried = {key: last.get(key) for key in self.names}
        if self.env.horizon is not None and bool(over.any()):
            fresh = self.fresh(over)
            carried = {
                key: torch.where(expand_mask(over, value), fresh[key], value)
                for key, value in carried.items()
            }
        return carried


def own_worlds(envs: Sequence[DifferentiableEnv]) -> Worlds:
    """Return the worlds of these environments, each with its own generator.

    Raises:
        ValueError: they are not of one problem, and the message names what differs; or episodes
            end in a way of their own.
    """
    for env in envs:
        if not env.counts_steps:
            raise ValueError(
                f"{type(env).__name__} overrides DifferentiableEnv.advance, but worlds side by "
                "side end their episodes by counting steps to the horizon, as advance itself "
                "does. Train such seeds one after another by --multirun seed=0,1,..."
            )
    for env in envs[1:]:
        check_same_problem(envs[0], env)

    def fresh(over: Tensor) -> dict[str, Tensor]:
        # Only where an episode is over: a generator moves on with every draw.
        over_in = over.flatten(1).any(1).tolist()
        drawn = [env._reset() if ends else None for env, ends in zip(envs, over_in, strict=True)]
        known = next(start for start in drawn if start is not None)
        rows = [known if start is None else start for start in drawn]
        return {key: torch.stack([row.get(key) for row in rows]) for key in worlds.names}

    worlds = Worlds(envs[0], len(envs), fresh)
    return worlds


def shared_world(env: DifferentiableEnv, number: int) -> Worlds:
    """Return S worlds that are one: the same starts, and the same noise if that is given alike.

    Args:
        env: the environment, one whose episodes end by the count of their steps.
        number: number S of worlds.
    """

    def fresh(over: Tensor) -> dict[str, Tensor]:
        start = env._reset()
        return {key: repeated(start.get(key), number) for key in worlds.names}

    worlds = Worlds(env, number, fresh)
    return worlds


def repeated(value: Tensor, number: int) -> Tensor:
    """Return ``value`` so many times, ``(S, ...)``."""
    return value.expand(number, *value.shape)
