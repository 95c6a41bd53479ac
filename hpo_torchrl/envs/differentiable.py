"""The base class of every environment with a functional core."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpo_torchrl.core.categorical import ACTION_MASK, BranchBounds
from hpo_torchrl.core.checks import (
    check_device,
    check_dtype,
    check_heads,
    check_int,
    check_range,
    check_sizes,
    checked,
    in_dtype,
)
from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.envs.contract import check_contract
from hpo_torchrl.envs.shell import Shell

State = Mapping[str, Tensor]
Action = Mapping[str, Tensor]

# Arguments of the constructor that are attributes of the same name.
_KEPT = (
    *("num_discrete", "num_heads", "continuous_dim", "continuous_bounds", "branch_bounds"),
    *("action_scale", "state_shapes", "observation_dim", "noise_shape", "horizon"),
    *("horizon_terminates", "batch_size", "device"),
)


class DifferentiableEnv(Shell):
    r"""A batched simulator with hybrid actions that is differentiable given its discrete actions.

    A subclass is its equations: :meth:`dynamics`, a pure function
    ``(state, action, noise) -> (next_state, reward)`` on tensors, with :meth:`observe`,
    :meth:`initial_state` and :meth:`draw_noise` around it. This class turns them into a TorchRL
    environment whose state travels in the tensordict.

    **Actions** are ``("action", "discrete")``, int64 of shape ``(*B,)``, and
    ``("action", "continuous")``, float of shape ``(*B, n)``. With ``num_heads`` H, ``"discrete"``
    is ``(*B, H)``: one choice for each of H equal parts of the continuous action.

    **Noise** comes from the environment's own generator. :meth:`sample_noise` draws it for a
    whole rollout in one call; :meth:`load_noise` makes the next steps consume it, so that two
    rollouts given the same noise face the same world (common random numbers).

    **Masks.** Where discrete actions depend on the state, :meth:`allowed` says which may be chosen,
    and the environment shows it as ``"action_mask"``; :meth:`HybridPolicy.for_env` reads it. The
    dynamics must stay finite, though not sensible, for those that are not allowed: random actions
    of the spec and estimators that try every discrete action take them.

    **Where gradients flow.** From each reward and next state to the state and the continuous
    action of that step, hence along the whole trajectory. They stop at three places: a reset
    (a fresh state is a constant; a state given with ``set_state=True`` keeps its graph), the
    discrete action (an integer), and the guards that a subclass documents (a clamp that is
    active passes no gradient).

    Args:
        num_discrete: number M of discrete actions (of each head).
        continuous_dim: dimension n of the continuous action.
        continuous_bounds: ``(low, high)`` of the continuous action, each one number, a sequence
            with one per coordinate, or ``None`` (unbounded). ``dynamics`` gets what is beyond, a
            sample of a normal distribution for example, moved to the end. A half-open range is cut
            in the *spec* 100 action scales away from its end, so that random actions stay finite.
        action_scale: natural size of the continuous action, one number or one per coordinate;
            policies use it as the unit of their output. Defaults to 1.
        state_shapes: shape of each state entry without the batch, by name.
        observation_dim: length of the flat ``"observation"``.
        noise_shape: shape of the noise of one instance in one step.
        num_heads: number H of discrete choices in each step, a divisor of n; ``None`` is a single
            choice for the whole action.
        branch_bounds: ends of the continuous action by discrete action, where they differ; policies
            keep to them. Where both are equal, the action is that value.
        horizon: steps in an episode, or ``None`` for a simulation that runs on for ever.
        horizon_terminates: what the end of an episode means. ``True`` sets ``terminated`` (the
            problem is over: no value beyond), ``False`` sets ``truncated`` (only the simulation
            stops: bootstrap).
        batch_size: number of instances simulated at once, an int or a shape.
        device: where the tensors live.
        dtype: floating-point type of states, actions and rewards.
        seed: seed of the environment's generator; ``None`` draws one from torch's.

    Attributes:
        cost_units: the number by which a reward is divided when it is reported (for example the
            number of items, for a cost per item and period).
        cycle_length: steps of a typical cycle, such as from one order to the next, for what never
            ends: rollouts are two cycles long at least.
        num_seeds: number of seeds along the first batch dimension; ``None`` without such an axis.

    Raises:
        TypeError: a size is not an integer.
        ValueError: a size is out of range, a scale is not positive, or bounds are no range.
    """

    num_seeds: int | None = None
    cost_units = 1.0
    cycle_length = 1

    @checked
    def __init__(
        self,
        *,
        num_discrete: int,
        continuous_dim: int,
        state_shapes: Mapping[str, Sequence[int]],
        observation_dim: int,
        noise_shape: Sequence[int] = (),
        num_heads: int | None = None,
        branch_bounds: BranchBounds | None = None,
        continuous_bounds: Sequence[Any] = (None, None),
        action_scale: Tensor | Sequence[float] | float = 1.0,
        horizon: int | None = None,
        horizon_terminates: bool = True,
        batch_size: int | Sequence[int] = (),
        device: torch.device | str | int | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int | None = None,
    ) -> None:
        shape = torch.Size(check_sizes("batch_size", batch_size))
        super().__init__(device=check_device(device), batch_size=shape)
        self.num_discrete = check_int("num_discrete", num_discrete, minimum=1)
        self.continuous_dim = check_int("continuous_dim", continuous_dim, minimum=1)
        check_heads(num_heads, continuous_dim)
        if horizon is not None:
            check_int("horizon", horizon, minimum=1)
        self.num_heads, self.branch_bounds = num_heads, branch_bounds
        if branch_bounds is not None:
            branches: Any = (num_discrete, continuous_dim // (num_heads or 1))
            branches = branches if num_heads is None else (num_heads, *branches)
            ends_of = (num_discrete,) if branch_bounds.of_total else branches
            check_range("branch_bounds", branch_bounds[:2], ends_of)
        check_range("continuous_bounds", continuous_bounds, continuous_dim)
        self.continuous_bounds = tuple(continuous_bounds)
        self.horizon, self.horizon_terminates = horizon, horizon_terminates
        self.float_dtype = check_dtype(dtype)
        scale = in_dtype("action_scale", action_scale, dtype, self.device, strict=True)
        if scale.shape not in ((), (1,), (continuous_dim,)) or not bool((scale > 0).all()):
            raise ValueError(
                f"action_scale must be one positive number or {continuous_dim} of them, one for "
                f"each continuous action, got {action_scale}."
            )
        self.action_scale = scale.expand(continuous_dim).clone()
        self.noise_shape = tuple(check_sizes("noise_shape", noise_shape))
        self.observation_dim = check_int("observation_dim", observation_dim, minimum=1)
        if "step" in state_shapes:
            raise ValueError(f"state_shapes must not have 'step', got {state_shapes}.")
        for name, sizes in state_shapes.items():
            check_sizes(f"state_shapes[{name!r}]", sizes)
        self.state_shapes, self.state_names = dict(state_shapes), (*state_shapes, "step")
        self._set_specs()
        self.rng = torch.Generator(device=self.device or "cpu")
        if seed is None:
            seed = int(torch.randint(2**31 - 1, ()).item())
        self.set_seed(check_int("seed", seed, minimum=0))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of this class's constructor that make such an environment."""
        kept = {name: getattr(self, name) for name in _KEPT}
        return {**kept, "dtype": self.float_dtype, "seed": 0}

    # -- the functional core -------------------------------------------------------------------

    @abc.abstractmethod
    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        """Advance one step: a pure function, differentiable in the state and continuous action.

        Args:
            state: tensors of shape ``(*B, *shape)`` by name; ``state["step"]`` counts the steps
                of the episode, int64 ``(*B, 1)``.
            action: ``"discrete"``, int64 ``(*B,)`` or ``(*B, H)``, and ``"continuous"``, float
                ``(*B, n)``.
            noise: one step of :meth:`sample_noise`, ``(*B, *noise_shape)``.

        Returns:
            The next state (without ``"step"``, which is counted for it) and the reward ``(*B,)``.
        """

    @abc.abstractmethod
    def observe(self, state: State) -> Tensor:
        """Return what the policy sees, ``(*B, observation_dim)``: a pure function of the state."""

    def allowed(self, state: State) -> Tensor | None:
        """Return which discrete actions are allowed, bool ``(*B, M)`` or ``(*B, H, M)``; optional.

        At least one of each choice; a pure function of the state. ``None`` is no mask; a subclass
        that returns it sets :attr:`has_action_mask` to ``False``.
        """
        return None

    @abc.abstractmethod
    def initial_state(self) -> dict[str, Tensor]:
        """Draw fresh states for the whole batch from the environment's generator."""

    @abc.abstractmethod
    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Draw the noise of ``num_steps`` steps, ``(*B, num_steps, *noise_shape)``."""

    def opposite_noise(self, noise: Tensor) -> Tensor | None:
        """Return noise as likely as this one that moves everything the other way; optional.

        Where noise is symmetric it is ``-noise``. The mean of what follows from both varies less
        than of two independent draws: what is linear in the noise cancels (antithetic variates;
        Hammersley and Morton 1956).

        Args:
            noise: what :meth:`draw_noise` returned, with any axes.

        Returns:
            The same shape; ``None`` where there is no such noise.
        """
        return None

    def heuristic_choice(self, observation: Tensor) -> Tensor:
        """Return the discrete action a simple rule would take, int64 ``(*B,)``; optional.

        :class:`~hpo_torchrl.algorithms.Pathwise` learns the continuous action beside it.

        Raises:
            NotImplementedError: the environment knows no such rule.
        """
        raise NotImplementedError(f"{type(self).__name__} has no heuristic_choice.")

    def reference(self, test: Test) -> Reference:
        """Return what the best policy costs in this environment, or bounds on it; optional.

        Args:
            test: a test whose environment this is; its initial states and noise may matter.
        """
        return Reference()

    def rules(self) -> dict[str, Callable[[], nn.Module]]:
        """Return simple policies by name, each computed when it is called; optional.

        A rule reads state entries and writes ``("action", "discrete")`` and
        ``("action", "continuous")``; see :class:`~hpo_torchrl.modules.RulePolicy`.
        """
        return {}

    def describe(
        self,
        policy: Any,
        tests: Mapping[str, Test],
        reference: Reference,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """Say what a trained policy does, for the summary, and draw it; optional.

        Args:
            policy: the policy.
            tests: all tests of the run by name; this is the environment of the primary one.
            reference: what :meth:`reference` said of that one.
            folder: where pictures go (``policy.png``), or ``None``.

        Returns:
            Entries of ``summary.json``; by default what the reference has of them. ``"in_words"``,
            texts by label, are lines of the summary that a run prints.
        """
        return dict(reference.details)

    @property
    def counts_steps(self) -> bool:
        """Whether episodes end by the count of their steps: :meth:`advance` is the one here."""
        return type(self).advance is DifferentiableEnv.advance

    @property
    def equations(self) -> DifferentiableEnv:
        """The environment whose equations are called: this one."""
        return self

    @property
    def has_action_mask(self) -> bool:
        """Whether the discrete actions depend on the state, see :meth:`allowed`."""
        return type(self).allowed is not DifferentiableEnv.allowed

    @property
    def shown_names(self) -> tuple[str, ...]:
        """Names of what :meth:`show` returns."""
        return ("observation", ACTION_MASK) if self.has_action_mask else ("observation",)

    def show(self, state: State) -> dict[str, Tensor]:
        """Return what a policy may read: ``"observation"`` and, if there is one, the mask."""
        mask = self.allowed(state)
        masked = {} if mask is None else {ACTION_MASK: mask}
        return {"observation": self.observe(state), **masked}

    # -- noise ---------------------------------------------------------------------------------

    def fresh_state(self, over: Tensor | None = None) -> dict[str, Tensor]:
        """Draw states at the start of an episode, with their ``"step"``, without a graph.

        Args:
            over: which instances need one, bool ``(*B, 1)``, ``None`` for all; what is returned for
                the others is not used.
        """
        self.check_contract()
        with torch.no_grad():
            return {**self.initial_state(), "step": self._step_zero()}

    def check_contract(self) -> None:
        """Look once at what the equations return, before the first state is used.

        Raises:
            ValueError: it is not what this class asks for; the message says how to mend it.
        """
        if not self._checked:
            check_contract(self)
            self._checked = True

    def _draw(self, sampler: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        """Draw from the environment's generator: ``sampler`` is ``torch.rand``, ``randn``, ..."""
        place: dict[str, Any] = {"dtype": self.float_dtype, "device": self.device}
        return sampler(tuple(shape), generator=self.rng, **place)

    def sample_noise(self, num_steps: int, state: State | None = None) -> Tensor:
        """Draw the noise of a whole rollout in one call, without a graph.

        Args:
            num_steps: number of steps T.
            state: where the rollout starts; it matters only where noise depends on the step
                (given traces). ``None`` is the start of an episode.

        Returns:
            Tensor of shape ``(*B, T, *noise_shape)``.
        """
        check_int("num_steps", num_steps, minimum=1)
        if state is None:
            state = {"step": self._step_zero()}
        with torch.no_grad():
            noise = self.draw_noise(num_steps, state)
        return self.check_noise(noise, num_steps)

    # -- one step, shared by both routes ---------------------------------------------------------

    def advance(
        self, state: State, action: Action, noise: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Advance one step and count it.

        A subclass may end episodes for other reasons. Its rollouts then look at every step whether
        any did, and can be neither compiled nor computed again (``checkpoint_steps``).

        Returns:
            The next state with its ``"step"``, the reward ``(*B, 1)``, and the mask ``(*B, 1)``
            of episodes that reached the horizon (``None`` without a horizon).
        """
        next_state, reward = self.dynamics(state, self._within_bounds(action), noise)
        next_state["step"] = state["step"] + 1
        over = None if self.horizon is None else next_state["step"] >= self.horizon
        return next_state, reward.unsqueeze(-1), over

    def _within_bounds(self, action: Action) -> Action:
        """Move a continuous action beyond ``continuous_bounds``, a sample perhaps, to its end.

        A policy would else learn from what the equations make of actions that do not exist.
        """
        if self.continuous_bounds == (None, None):
            return action
        value, ends = action["continuous"], self.continuous_bounds
        if not all(end is None or isinstance(end, (int, float)) for end in ends):
            ends = tuple(None if end is None else torch.as_tensor(end).to(value) for end in ends)
        return {"discrete": action["discrete"], "continuous": value.clamp(*ends)}
