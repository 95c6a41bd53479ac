"""Environments made of another one: an axis of seeds, a rank's instances, or only its spaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from hpo_torchrl.core import ranks
from hpo_torchrl.core.categorical import ACTION_MASK, BranchBounds, action_bounds, action_sizes
from hpo_torchrl.core.checks import check_int, entries_of, shown
from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.envs.differentiable import Action, DifferentiableEnv, State


class WrappedEnv(DifferentiableEnv):
    """An environment with the equations of another; a subclass says what differs.

    Args:
        members: the environments to wrap; they are used, not copied.
        changes: what differs of the arguments of :class:`DifferentiableEnv`.

    Attributes:
        original: the first of them, whose equations these are.
    """

    members: tuple[DifferentiableEnv, ...] = ()

    def __init__(self, *members: DifferentiableEnv, **changes: Any) -> None:
        # Asked for within __init__, before modules can be registered; and no part of this module.
        self.__dict__["original"] = members[0]
        super().__init__(**{**self.original.arguments(), **changes})
        self.members, self.cost_units = members, self.original.cost_units
        self.cycle_length = self.original.cycle_length

    @property
    def has_action_mask(self) -> bool:
        """Whether the original's discrete actions depend on the state."""
        return self.original.has_action_mask

    @property
    def counts_steps(self) -> bool:
        """Whether the original's episodes end by the count of their steps."""
        return self.original.counts_steps

    def check_contract(self) -> None:
        """Look once at what the equations of all environments return."""
        for env in self.members:
            env.check_contract()

    def executed(self, action: Action) -> Action:
        """Return the original's action that an action stands for."""
        return action

    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        """Take the original's step."""
        return self.original.dynamics(state, self.executed(action), noise)

    def advance(
        self, state: State, action: Action, noise: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Advance as the original does."""
        return self.original.advance(state, self.executed(action), noise)

    def observe(self, state: State) -> Tensor:
        """Return the original's observation."""
        return self.original.observe(state)

    def allowed(self, state: State) -> Tensor | None:
        """Return which discrete actions the original allows."""
        return self.original.allowed(state)

    def initial_state(self) -> dict[str, Tensor]:
        """Draw the original's initial states."""
        return self.original.initial_state()

    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Draw the original's noise."""
        return self.original.draw_noise(num_steps, state)

    def opposite_noise(self, noise: Tensor) -> Tensor | None:
        """Return the original's."""
        return self.original.opposite_noise(noise)

    def heuristic_choice(self, observation: Tensor) -> Tensor:
        """Return the original's choice."""
        return self.original.heuristic_choice(observation)

    def to(self, device: torch.device | str | int) -> WrappedEnv:
        """Move all environments."""
        for env in self.members:
            env.to(device)
        super().to(device)
        return self


class ReplicatedEnv(WrappedEnv):
    """S environments of one configuration as one of batch size ``(S, *B)``.

    Equations are the first environment's; initial states and noise are each environment's own, from
    its own generator, exactly as it would draw them alone.

    Args:
        envs: the environments. A single one together with ``number`` stands for all S: each seed
            faces the same random numbers (common random numbers).
        number: number S of seeds, if there is a single environment.

    Attributes:
        num_seeds: number S.
        members: the environments.

    Raises:
        TypeError: an environment is no :class:`DifferentiableEnv`.
        ValueError: there are none, or their batch sizes or kinds differ.

    Examples:
        >>> from hpo_torchrl.envs import ReplicatedEnv
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> env = ReplicatedEnv([InventoryEnv(batch_size=4, seed=seed) for seed in range(3)])
        >>> env.batch_size, env.reset()["inventory"].shape
        (torch.Size([3, 4]), torch.Size([3, 4, 1, 2]))
    """

    def __init__(
        self, envs: DifferentiableEnv | Sequence[DifferentiableEnv], number: int | None = None
    ) -> None:
        self.shared = isinstance(envs, DifferentiableEnv)
        members = (envs,) if isinstance(envs, DifferentiableEnv) else entries_of("envs", envs)
        number = check_int("number", number, minimum=1) if self.shared else len(members)
        if not members:
            raise ValueError("envs of a ReplicatedEnv must be one at least, got [].")
        for env in members:
            if not isinstance(env, DifferentiableEnv):
                raise TypeError(
                    f"envs of a ReplicatedEnv must be DifferentiableEnvs, got {shown(env)} of type "
                    f"{type(env).__name__}; train the seeds of another environment one after "
                    "another."
                )
        kinds = {f"{type(e).__name__} of batch size {tuple(e.batch_size)}": e for e in members}
        if len(kinds) > 1:
            raise ValueError(
                f"ReplicatedEnv needs environments of one configuration, got {' and '.join(kinds)}."
            )
        super().__init__(*members, batch_size=(number, *members[0].batch_size))
        self.num_seeds = number

    @property
    def equations(self) -> DifferentiableEnv:
        """The first environment."""
        return self.original

    def initial_state(self) -> dict[str, Tensor]:
        """Draw every environment's initial states."""
        return self._stacked(lambda env, at: env.initial_state())

    def fresh_state(self, over: Tensor | None = None) -> dict[str, Tensor]:
        """Draw fresh states of the environments in which an episode is over.

        Only of those: a generator moves on with every draw. Elsewhere the states mean nothing.
        """
        if over is None or self.shared or not bool(over.any()):
            return super().fresh_state(over)
        ends = over.flatten(1).any(1).tolist()
        drawn = {at: env.fresh_state() for at, env in enumerate(self.members) if ends[at]}
        some = next(iter(drawn.values()))
        return self._stacked(lambda env, at: drawn.get(at, some))

    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Draw every environment's noise."""

        def draw(env: DifferentiableEnv, at: int) -> dict[str, Tensor]:
            own = {key: value[at] for key, value in state.items()}
            return {"noise": env.draw_noise(num_steps, own)}

        return self._stacked(draw)["noise"]

    def _stacked(
        self, draw: Callable[[DifferentiableEnv, int], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Stack what each seed's environment draws."""
        memory, rows = self.original.rng.get_state(), []
        for at, env in zip(range(self.batch_size[0]), cycle(self.members), strict=False):
            if self.shared:  # the same random numbers for each seed, which may be in other states
                env.rng.set_state(memory)
            rows.append(draw(env, at))
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def _set_seed(self, seed: int | None) -> None:
        """Seed the environments with ``seed``, ``seed + 1``, ..."""
        super()._set_seed(seed)
        for at, env in enumerate(self.members):
            env.set_seed(None if seed is None else seed + at)


class RankEnv(WrappedEnv):
    """The instances of an environment that a rank simulates, of the batch that ranks share.

    Every rank draws the initial states and the noise of all instances, from the same generator, and
    takes those of its own, which are therefore the same for any number of ranks. Noise may depend
    on the state: the ranks exchange theirs before it is drawn.

    Args:
        env: the environment of the whole batch; it is used, not copied. All ranks go on from the
            generator's state in rank 0.

    Raises:
        TypeError: the environment's batch cannot be split.
        ValueError: it has fewer instances than there are ranks, or is another one in some rank: a
            file that differs, say.

    Examples:
        >>> from hpo_torchrl.envs import RankEnv
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> RankEnv(InventoryEnv(batch_size=4)).batch_size  # a single rank has all of them
        torch.Size([4])
    """

    def __init__(self, env: DifferentiableEnv) -> None:
        rows = self.check(env)
        super().__init__(env, batch_size=(rows.stop - rows.start, *env.batch_size[1:]))
        self.rows, self.number = rows, env.batch_size[0]
        self.rng = env.rng
        self.rng.set_state(ranks.from_main(self.rng.get_state))
        if ranks.active():
            ranks.check_same("what the environment draws and earns", self._trial())

    @torch.no_grad()
    def _trial(self) -> list[str]:
        """Return sums of a step from fresh states, which tell one environment from another."""
        env, memory = self.original, self.rng.get_state()
        with torch.random.fork_rng(devices=[]):
            state = env.fresh_state()
            noise = env.sample_noise(1, state).squeeze(len(env.batch_size))
        self.rng.set_state(memory)
        action = env.full_action_spec.project(env.full_action_spec.zero())["action"].to_dict()
        reward = env.advance(state, action, noise)[1]
        # Machines of several kinds round differently.
        return [f"{float(part.double().sum()):.6g}" for part in (*state.values(), noise, reward)]

    @staticmethod
    def check(env: EnvBase) -> slice:
        """Return this rank's instances of an environment, or raise an error."""
        if not isinstance(env, DifferentiableEnv):
            raise TypeError(
                "Ranks share the batch of a DifferentiableEnv, got a "
                f"{type(env).__name__}; train it in one process."
            )
        if not env.batch_size:
            raise ValueError(
                f"Ranks share the instances of a batch, but this {type(env).__name__} has "
                "batch_size=(); give it as many as there are ranks, or more."
            )
        return ranks.share(env.batch_size[0])

    def fresh_state(self, over: Tensor | None = None) -> dict[str, Tensor]:
        """Draw the fresh states of all ranks' instances, and return those of this one."""
        over = None if over is None else ranks.gathered(over, self.number)
        return {key: value[self.rows] for key, value in self.original.fresh_state(over).items()}

    def initial_state(self) -> dict[str, Tensor]:
        """Draw all ranks' initial states, and return those of this one."""
        return {key: value[self.rows] for key, value in self.original.initial_state().items()}

    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Draw all ranks' noise, and return that of this one."""
        whole = ranks.gathered_all({key: state[key] for key in state}, self.number)
        return self.original.sample_noise(num_steps, whole)[self.rows]

    def any_done(self, tensordict: TensorDictBase) -> bool:
        """Whether an episode has ended in any rank: all of them then draw fresh states."""
        found = bool(super().any_done(tensordict))
        if self.horizon is None and self.counts_steps:
            return found
        somewhere = ranks.anywhere(found)
        if somewhere and not found:
            tensordict.set("_reset", torch.zeros_like(tensordict.get("done")))
        return somewhere


class Spaces(DifferentiableEnv):
    """The spaces of an environment object that a run was trained on, as its policy needs them.

    A run on an environment that was built elsewhere cannot build it again. It keeps its spaces
    instead, from which its policy can be built: it then acts on observations, but nothing can be
    simulated.

    Args:
        original: name of the environment's class, for messages.
        masked: whether observations come with an ``"action_mask"``.
        branch_bounds: the fields of :class:`BranchBounds`, as lists.
        sizes: further arguments of :class:`DifferentiableEnv`.
    """

    _checked = True  # there are no equations

    def __init__(
        self,
        *,
        original: str = "",
        masked: bool = False,
        branch_bounds: Sequence[Any] | None = None,
        **sizes,
    ) -> None:
        self.original, self.masked = original, masked
        bounds = None if branch_bounds is None else BranchBounds(*branch_bounds)
        super().__init__(state_shapes={}, branch_bounds=bounds, **sizes)

    @staticmethod
    def of(env: EnvBase) -> dict[str, Any]:
        """Return the arguments, as plain values, that describe an environment."""
        env = plain(env)
        inner = getattr(env, "original", getattr(env, "base_env", env))
        num_discrete, continuous_dim, num_heads = action_sizes(env)
        bounds = getattr(env, "branch_bounds", None)
        return {
            "original": type(inner).__name__,
            "num_discrete": num_discrete,
            "num_heads": num_heads,
            "continuous_dim": continuous_dim,
            "continuous_bounds": list(map(_plain, action_bounds(env))),
            "branch_bounds": None if bounds is None else list(map(_plain, bounds)),
            "action_scale": _plain(getattr(env, "action_scale", 1.0)),
            "observation_dim": env.observation_spec["observation"].shape[-1],
            "masked": ACTION_MASK in list(env.observation_spec.keys()),
        }

    @property
    def has_action_mask(self) -> bool:
        """Whether observations come with a mask."""
        return self.masked

    def missing(self) -> NotImplementedError:
        """Return the error that says what is missing."""
        return NotImplementedError(
            f"This run was trained on a {self.original} that was built in Python, so its folder "
            "holds no equations. Give the environment: load_run(folder, env=...), "
            "load_policy(folder, env=...) or train(env, folder=..., resume=True)."
        )

    def dynamics(self, *args: Any, **kwargs: Any) -> Any:
        """Raise a ``NotImplementedError``: there are no equations."""
        raise self.missing()

    observe = allowed = initial_state = draw_noise = dynamics


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
