"""Several environments of one problem as one, with a leading axis of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_int
from hpo_torchrl.envs.differentiable import Action, DifferentiableEnv, State


class ReplicatedEnv(DifferentiableEnv):
    """S environments of one configuration as one of batch size ``(S, *B)``.

    Equations are the first environment's; initial states and noise are each environment's own, from
    its own generator, exactly as it would draw them alone.

    Args:
        envs: the environments. A single one together with ``number`` stands for all S: they share
            its initial states and its noise (common random numbers).
        number: number S of seeds, if there is a single environment.

    Attributes:
        num_seeds: number S.
        members: the environment of each seed.

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
        if isinstance(envs, DifferentiableEnv):
            members = [envs] * check_int("number", number, minimum=1)
        else:
            members = list(envs)
        if not members:
            raise ValueError("ReplicatedEnv needs at least one environment, got none.")
        first = members[0]
        for env in members:
            if not isinstance(env, DifferentiableEnv):
                raise TypeError(
                    f"ReplicatedEnv needs DifferentiableEnvs, got {type(env).__name__}; train the "
                    "seeds of another environment one after another."
                )
            if type(env) is not type(first) or env.batch_size != first.batch_size:
                raise ValueError(
                    "ReplicatedEnv needs environments of one configuration, got "
                    f"{type(first).__name__} of batch size {tuple(first.batch_size)} and "
                    f"{type(env).__name__} of batch size {tuple(env.batch_size)}."
                )
        batch, shown = len(first.batch_size), first.observation_spec
        self.__dict__["first"] = first  # asked for within __init__, before modules can be held
        super().__init__(
            num_discrete=first.num_discrete,
            num_heads=first.num_heads,
            continuous_dim=first.continuous_dim,
            continuous_bounds=first.continuous_bounds,
            branch_bounds=first.branch_bounds,
            action_scale=first.action_scale,
            state_shapes={
                name: shown[name].shape[batch:] for name in first.state_names if name != "step"
            },
            observation_dim=shown["observation"].shape[-1],
            noise_shape=first.noise_shape,
            horizon=first.horizon,
            horizon_terminates=first.horizon_terminates,
            batch_size=(len(members), *first.batch_size),
            device=first.device,
            dtype=first.float_dtype,
            seed=0,
        )
        self.members = tuple(members)
        self.num_seeds, self.cost_units = len(members), first.cost_units

    @property
    def has_action_mask(self) -> bool:
        """Whether the discrete actions depend on the state."""
        return self.first.has_action_mask

    @property
    def counts_steps(self) -> bool:
        """Whether episodes end by the count of their steps."""
        return self.first.counts_steps

    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        """Take the first environment's step, which is every environment's."""
        return self.first.dynamics(state, action, noise)

    def advance(
        self, state: State, action: Action, noise: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Advance as the first environment does."""
        return self.first.advance(state, action, noise)

    def observe(self, state: State) -> Tensor:
        """Return the observation."""
        return self.first.observe(state)

    def allowed(self, state: State) -> Tensor | None:
        """Return which discrete actions may be chosen."""
        return self.first.allowed(state)

    def heuristic_choice(self, observation: Tensor) -> Tensor:
        """Return the first environment's choice, whose rule is every environment's."""
        return self.first.heuristic_choice(observation)

    def initial_state(self) -> dict[str, Tensor]:
        """Draw every environment's initial states."""
        return self._stacked([env.initial_state() for env in self._own()])

    def fresh_state(self, over: Tensor | None = None) -> dict[str, Tensor]:
        """Draw fresh states of the environments in which an episode is over.

        Only of those: a generator moves on with every draw. Elsewhere the states mean nothing.
        """
        if over is None or self.shared:
            return super().fresh_state(over)
        ends = over.flatten(1).any(1).tolist()
        drawn = [
            env.fresh_state() if end else None for env, end in zip(self.members, ends, strict=True)
        ]
        some = next((state for state in drawn if state is not None), None)
        if some is None:
            return super().fresh_state(over)
        return self._stacked([some if state is None else state for state in drawn])

    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Draw every environment's noise."""
        own = ({key: value[at] for key, value in state.items()} for at in range(len(self.members)))
        drawn = [
            env.draw_noise(num_steps, each) for env, each in zip(self._own(), own, strict=False)
        ]
        return self._stacked([{"noise": noise} for noise in drawn])["noise"]

    def _own(self) -> Sequence[DifferentiableEnv]:
        """The environments that draw."""
        return self.members[:1] if self.shared else self.members

    def _stacked(self, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        if self.shared:
            number = len(self.members)
            return {key: value.expand(number, *value.shape) for key, value in rows[0].items()}
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def _set_seed(self, seed: int | None) -> None:
        """Seed the environments with ``seed``, ``seed + 1``, ..."""
        super()._set_seed(seed)
        for at, env in enumerate(self._own() if hasattr(self, "members") else ()):
            env.set_seed(None if seed is None else seed + at)

    def to(self, device: torch.device | str | int) -> ReplicatedEnv:
        """Move all environments."""
        for env in self._own():
            env.to(device)
        super().to(device)
        return self
