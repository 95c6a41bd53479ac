"""Rollouts that keep the graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchrl.envs import EnvBase

from hpo_torchrl.collectors.branching import straight_through_step
from hpo_torchrl.collectors.compiling import can_scan, compiled
from hpo_torchrl.collectors.engine import Engine, policy_step
from hpo_torchrl.collectors.inputs import (
    Entries,
    Inputs,
    check_functional,
    check_single_choice,
    check_start,
    fresh_states,
    is_functional,
    noise_of,
    policy_noise,
)
from hpo_torchrl.core.checks import check_annotated, check_choice, check_float, check_int, shown
from hpo_torchrl.core.data import entry
from hpo_torchrl.core.rolled import rolled
from hpo_torchrl.core.wrappers import check_outcome
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy


@dataclass(kw_only=True, eq=False, repr=False)
class Rollout(Engine):
    r"""A rollout of one policy in one environment, made once and called many times.

    Two routes give the same numbers to the last bit. ``"functional"`` calls ``env.dynamics`` on
    plain tensors and builds one tensordict at the end; it needs a :class:`DifferentiableEnv` and
    a :class:`HybridPolicy`. ``"general"`` steps any :class:`~torchrl.envs.EnvBase` whose step
    keeps the graph. Instances that are done within the rollout are reset and go on.

    With ``compile`` or ``checkpoint_steps`` the steps are taken in chunks: each is a pure function
    ``(state, inputs) -> (state, outputs)``, compiled, wrapped in ``torch.utils.checkpoint``, or
    both. They and ``temperature`` need the functional route.

    With ``discount`` :math:`\gamma < 1` the gradient through every state transition is multiplied
    by :math:`\gamma` (values do not change, but for infinite ones). The gradient of
    :math:`\sum_t r_t` is then the sum over t of the gradient of the *discounted* return from t:
    each action is credited with its discounted future, and late actions weigh as much as early
    ones.

    Args:
        env: the environment, batch size ``*B``.
        policy: the policy; it samples unless ``set_exploration_type`` says otherwise.
        discount: factor on the gradient through each transition, in (0, 1].
        route: ``"auto"`` (functional where possible), ``"functional"`` or ``"general"``.
        temperature: of a :func:`straight_through_rollout`; ``None`` is an ordinary rollout.
        checkpoint_steps: keep the graph of that many steps at once and compute the others again
            when gradients flow back (activation checkpointing): less memory for more time. The
            parameters must still be those of the rollout when gradients are taken. ``None`` keeps
            the whole graph.
        compile: by what the steps are compiled, in the first call. ``"xla"`` takes all of them as
            one loop, see :class:`~hpo_torchrl.collectors.scan.Scan`: on a CPU, with JAX (extra
            ``jax``), without ``checkpoint_steps``. ``"inductor"`` is ``torch.compile`` of chunks of
            ``checkpoint_steps`` or about five steps, where the policy samples and gradients are
            kept. ``True`` is the former where it is possible, else the latter; ``"auto"`` is the
            former, and nothing where it is impossible.
        randomness: where the policy's random numbers come from; ``None`` is ``policy.randomness``.

    Raises:
        TypeError: the environment or the policy has no functional core where one is needed, or
            chunks are asked for and the environment ends episodes by itself.
        ValueError: an argument is out of range, or does not go with another.
        MissingExtraError: JAX is asked for and not installed.

    Examples:
        >>> from hpo_torchrl.collectors import Rollout
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=4, initial_state="random")
        >>> rollout = Rollout(env, HybridPolicy.for_env(env), discount=0.99, checkpoint_steps=5)
        >>> batch = rollout(10)
        >>> (-batch["next", "reward"].mean()).backward()
    """

    route: str = "auto"
    temperature: float | None = None
    checkpoint_steps: int | None = None
    compile: bool | str = False

    def __post_init__(self) -> None:
        env, policy = self.env, self.policy
        check_annotated(Rollout, vars(self))
        if not callable(policy):
            raise TypeError(f"policy must be a module or function, got {shown(policy)}.")
        check_float("discount", self.discount, minimum=0.0, maximum=1.0, strict=True)
        check_choice("route", self.route, ("auto", "functional", "general"))
        compile = self.compile
        if compile == "auto":
            compile = self.scannable() and "xla"
        asked = {
            "temperature of a straight_through_rollout": self.temperature is not None,
            "checkpoint_steps": self.checkpoint_steps is not None,
            "compile": bool(compile),
            "route='functional'": self.route == "functional",
        }
        for name in (name for name, needed in asked.items() if needed):
            check_functional(name, env, policy, "leave it out")
            if self.route == "general":
                raise ValueError(
                    f"{name} needs the functional route, got route='general'; leave one out."
                )
            if name in ("checkpoint_steps", "compile") and not env.counts_steps:
                raise TypeError(
                    f"{name} needs episodes that end at the horizon, but {type(env).__name__} has "
                    "an advance of its own, which may end them; leave it out."
                )
        check_outcome(env)
        if self.checkpoint_steps is not None:
            check_int("checkpoint_steps", self.checkpoint_steps, minimum=1)
        self.make_step = policy_step
        if self.temperature is not None:
            check_float("temperature", self.temperature, minimum=0.0, strict=True)
            check_single_choice("straight_through_rollout", env)
            self.make_step = partial(straight_through_step, temperature=self.temperature)
        self.functional = self.route != "general" and is_functional(env, policy)
        given = (self.chunk, env, policy, self.checkpoint_steps)
        self.compiled = compiled(compile, *given, quiet=self.compile == "auto")

    def scannable(self) -> bool:
        """Whether XLA may take the steps, as far as can be told beforehand."""
        env: Any = self.env
        functional = self.route != "general" and is_functional(env, self.policy)
        return functional and env.counts_steps and can_scan(env, self.checkpoint_steps)

    @property
    def compile_seconds(self) -> float:
        """Time spent on compiling in this process since this object was made."""
        return 0.0 if self.compiled is None else self.compiled.seconds

    def __call__(
        self,
        num_steps: int,
        *,
        tensordict: TensorDictBase | None = None,
        noise: Tensor | None = None,
        first: Tensor | None = None,
    ) -> TensorDict:
        """Roll out; arguments and result are those of :func:`differentiable_rollout`.

        The functional route also takes discrete actions to begin with, ``first``: int64 ``(*B,)``,
        below 0 where the policy chooses.
        """
        check_int("num_steps", num_steps, minimum=1)
        start = self.env.reset() if tensordict is None else tensordict
        check_start(self.env, start)
        batch = self._rollout(num_steps, start, noise, first)
        key = ("next", "reward")
        if (reward := batch.get(key)).requires_grad:
            batch.set(key, rolled(reward, self.discount))
        return batch

    def _rollout(
        self, num_steps: int, start: TensorDictBase, noise: Tensor | None, first: Tensor | None
    ) -> TensorDict:
        env = self.env
        if not self.functional:
            return self.general(num_steps, start.copy(), noise)
        names = (*env.state_names, *env.shown_names)
        begin = {key: entry(start, key, "the start of a rollout") for key in names}
        noise = noise_of(env, begin, num_steps, noise).movedim(len(env.batch_size), 0)
        fresh = fresh_states(env, begin["step"], num_steps)
        own = policy_noise(env, self.policy, num_steps, self.randomness, first)
        once = not any(fresh)
        pieces = self._pieces(begin, Inputs(noise, own, fresh), once)
        return self.finished(begin, pieces, once)

    def _pieces(self, carried: Entries, inputs: Inputs, once: bool) -> list[dict[Any, Tensor]]:
        """Take the steps in chunks: the entries of each chunk, stacked."""
        num_steps = len(inputs.noise)
        size = self.checkpoint_steps or num_steps
        fast = self.compiled
        if fast is not None and not fast.serves(inputs):
            fast = None
        if fast is not None:
            size = fast.length(num_steps, self.checkpoint_steps)
            carried, inputs = fast.prepare(carried, inputs)

        def chunk(carried: Entries, part: Inputs) -> tuple[Entries, dict[Any, Tensor]]:
            if fast is not None and len(part.noise) == size:
                return fast(carried, part, once)
            return self.chunk(carried, part, once)

        versions = [] if self.checkpoint_steps is None else self._versions()

        def again(carried: Entries, part: Inputs) -> tuple[Entries, dict[Any, Tensor]]:
            if versions != self._versions():
                raise RuntimeError(
                    "The parameters have changed since the rollout, whose steps are computed again "
                    "when gradients are taken: take them before the optimizer's step, or leave "
                    "checkpoint_steps out."
                )
            return chunk(carried, part)

        pieces = []
        for first in range(0, num_steps, size):
            part = inputs.part(slice(first, first + size))
            if self.checkpoint_steps is None:
                carried, piece = chunk(carried, part)
            else:
                carried, piece = checkpoint(again, carried, part, use_reentrant=False)
            pieces.append(piece)
        return pieces

    def _versions(self) -> list[int]:
        return [parameter._version for parameter in self.policy.parameters()]


def differentiable_rollout(
    env: EnvBase,
    policy: HybridPolicy,
    num_steps: int,
    *,
    tensordict: TensorDictBase | None = None,
    noise: Tensor | None = None,
    **settings: Any,
) -> TensorDict:
    """Roll a policy out and keep the graph: gradients flow along the whole trajectory.

    For many rollouts of one kind, and for compiled ones, make a :class:`Rollout` once.

    Args:
        env: the environment, batch size ``*B``.
        policy: the policy; it samples unless ``set_exploration_type`` says otherwise.
        num_steps: number of steps T.
        tensordict: where to start, as ``env.reset()`` returns it; ``None`` resets.
        noise: noise of the rollout, ``(*B, T, *noise_shape)``, as ``env.sample_noise(T)`` returns
            it; ``None`` draws it. Only for a :class:`DifferentiableEnv`.
        settings: ``discount``, ``route``, ``checkpoint_steps`` and ``randomness`` of a
            :class:`Rollout`.

    Returns:
        Tensordict of shape ``(*B, T)`` as ``env.rollout`` returns it, without the distribution's
        parameters. On the functional route, without resets, what a step leads to and what the next
        one starts from share their memory: change one in place and the other changes too.

    Raises:
        TypeError: the functional route is asked for an env or policy that has none.
        ValueError: an argument is out of range or the noise has the wrong shape.

    Examples:
        >>> from hpo_torchrl.collectors import differentiable_rollout
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=4, initial_state="random")
        >>> policy = HybridPolicy.for_env(env)
        >>> rollout = differentiable_rollout(env, policy, 10)
        >>> (-rollout["next", "reward"].mean()).backward()
        >>> policy.network.continuous[-1].bias.grad is not None
        True
    """
    return Rollout(env, policy, **settings)(num_steps, tensordict=tensordict, noise=noise)


def straight_through_rollout(
    env: DifferentiableEnv,
    policy: HybridPolicy,
    num_steps: int,
    *,
    temperature: float = 1.0,
    **settings: Any,
) -> TensorDict:
    r"""Roll a policy out and let gradients flow through the discrete choice too.

    The straight-through Gumbel-softmax estimator [1]_ [2]_. With Gumbel noise g and the
    simulator evaluated at every discrete action m, each with its own continuous action
    :math:`u_m = \mathrm{loc}_m + \mathrm{scale}_m\,\varepsilon`,

    .. math::
        d = \arg\max_m (\ell_m + g_m), \qquad
        w = \mathrm{onehot}(d) + \sigma - \mathrm{sg}(\sigma), \qquad
        \sigma = \mathrm{softmax}\bigl((\ell + g) / \tau\bigr), \qquad
        (s', r) = \sum_m w_m \, (f, r)(s, m, u_m, \xi)

    Forward, this is exactly :func:`differentiable_rollout`: from the same seed the same numbers,
    to the last bit, and d is an exact sample of the categorical. Backward, the executed action
    passes the usual gradient to (s, u), and the logits receive the slope between their
    outcomes. Integer entries of the state follow d and pass nothing.

    **Bias.** The gradient is pathwise only and biased, in two ways. The future is linearised at
    the state that was reached: a discrete action is credited with slope times difference of the
    next states, which is right only where the later rewards are linear between them. And
    :math:`\sigma` has the mean :math:`\pi` only as :math:`\tau \to 0`, where the variance grows
    without bound. With one discrete action it is the exact pathwise gradient.

    When the policy acts deterministically (``set_exploration_type``), d is the most probable
    discrete action, u the mode of its branch, and :math:`\sigma = \mathrm{softmax}(\ell / \tau)`.

    Args:
        env: the environment, batch size ``*B``. Its dynamics are called with the batch
            ``(M, *B)``, without a graph, besides the call that executes d.
        policy: a policy that reads ``"observation"``, and no mask but the environment's.
        num_steps: number of steps T.
        temperature: :math:`\tau > 0`; lower has less bias and more variance.
        settings: ``tensordict``, ``noise``, ``discount``, ``checkpoint_steps`` and ``randomness``
            of a :func:`differentiable_rollout`.

    Returns:
        Tensordict of shape ``(*B, T)`` with the entries of :func:`differentiable_rollout`.

    Raises:
        TypeError: the environment or the policy has no functional core.
        ValueError: an argument is out of range or the noise has the wrong shape.

    References:
        .. [1] Jang, Gu & Poole, *Categorical Reparameterization with Gumbel-Softmax*, ICLR 2017.
        .. [2] Maddison, Mnih & Teh, *The Concrete Distribution*, ICLR 2017.

    Examples:
        >>> from hpo_torchrl.collectors import straight_through_rollout
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=4, initial_state="random")
        >>> policy = HybridPolicy.for_env(env)
        >>> rollout = straight_through_rollout(env, policy, 10, temperature=0.5)
        >>> (-rollout["next", "reward"].mean()).backward()
        >>> policy.network.discrete[-1].bias.grad.any().item()
        True
    """
    return differentiable_rollout(env, policy, num_steps, temperature=temperature, **settings)
