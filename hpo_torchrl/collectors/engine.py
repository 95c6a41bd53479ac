"""The rollout engine: chunks of steps as pure functions of a state and of random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hpo_torchrl.collectors.compiling import Compiled
from hpo_torchrl.collectors.entries import (
    NEXT,
    discount_gradients,
    entries_of,
    expand_mask,
    finished,
)
from hpo_torchrl.collectors.inputs import (
    Entries,
    Inputs,
    check_counted,
    check_functional,
    fresh_states,
    noise_of,
    policy_noise,
    steps_of,
)
from hpo_torchrl.core.checks import check_bool, check_float, check_int
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.modules.sampling import HybridDraw, Noise

# From the entries of a step, the environment's noise and the policy's to the draw, and to what
# env.advance returns.
Transition = Callable[
    [Entries, Tensor, "Noise | None"],
    tuple[HybridDraw, dict[str, Tensor], Tensor, "Tensor | None"],
]


class Rollout:
    """A rollout of one policy in one environment, made once and called many times.

    It is what :func:`differentiable_rollout` and :func:`straight_through_rollout` call. With
    ``compile`` or ``checkpoint_steps`` the steps are taken in chunks: each is a pure function
    ``(state, inputs) -> (state, outputs)``, compiled by ``torch.compile``, wrapped in
    ``torch.utils.checkpoint``, or both.

    Args:
        env: the environment.
        policy: the policy.
        discount: factor on the gradient through each transition.
        checkpoint_steps: steps of a chunk whose graph is kept at once; ``None`` keeps all.
        compile: compile chunks, of ``checkpoint_steps`` or about five steps. The first call
            compiles. Where the policy does not sample or no gradients are kept, nothing is
            compiled.
        step: makes what takes one step, of an environment and a policy; by default
            :func:`policy_step`. :func:`straight_through_step` is another one.
        randomness: where the policy's random numbers come from; ``None`` is ``policy.randomness``.

    Raises:
        TypeError: the environment or the policy has no functional core, or chunks are asked for and
            the environment ends episodes by itself.
        ValueError: an argument is out of range.

    Examples:
        >>> from hpo_torchrl.collectors import Rollout
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=4, initial_state="random")
        >>> rollout = Rollout(env, HybridPolicy.for_env(env), discount=0.99, checkpoint_steps=5)
        >>> batch = rollout(10)
        >>> (-batch["next", "reward"].mean()).backward()
    """

    def __init__(
        self,
        env: DifferentiableEnv,
        policy: HybridPolicy,
        *,
        discount: float = 1.0,
        checkpoint_steps: int | None = None,
        compile: bool = False,
        step: Callable[[DifferentiableEnv, HybridPolicy], Transition] | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        check_float("discount", discount, minimum=0.0, maximum=1.0, strict=True)
        check_functional("Rollout", env, policy, "use differentiable_rollout(..., route='general')")
        if checkpoint_steps is not None:
            check_int("checkpoint_steps", checkpoint_steps, minimum=1)
            check_counted("checkpoint_steps", env)
        self.env, self.policy, self.discount = env, policy, discount
        self.checkpoint_steps, self.step = checkpoint_steps, step or policy_step
        self.randomness = randomness
        self.compiled: Compiled | None = None
        if check_bool("compile", compile):
            check_counted("compile", env)
            self.compiled = Compiled(self._chunk, f"{type(env).__name__} and its policy")

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
    ) -> TensorDict:
        """Roll out; arguments and result are those of :func:`differentiable_rollout`."""
        check_int("num_steps", num_steps, minimum=1)
        env = self.env
        start = env.reset() if tensordict is None else tensordict
        begin = {key: start.get(key) for key in (*env.state_names, *env.shown_names)}
        noise = noise_of(env, begin, num_steps, noise).movedim(len(env.batch_size), 0)
        fresh = fresh_states(env, begin["step"], num_steps)
        own = policy_noise(env, self.policy, begin, num_steps, self.randomness)
        inputs = Inputs(noise, own, fresh)
        once = all(new is None for new in fresh)
        worth_it = own is not None and torch.is_grad_enabled()
        compiled = self.compiled if worth_it else None
        if compiled is None and self.checkpoint_steps is None:
            pieces = self._steps(begin, inputs)[1]
        else:
            pieces = self._pieces(begin, inputs, once, compiled)
        return self._finished(begin, pieces, inputs, once)

    def _pieces(
        self, begin: Entries, inputs: Inputs, once: bool, compiled: Compiled | None
    ) -> list[dict[str, Tensor]]:
        """Take the steps in chunks: the entries of each chunk, stacked."""
        num_steps, size = len(inputs.noise), self.checkpoint_steps or 1
        carried = begin
        if compiled is not None:
            size = compiled.length(num_steps, self.checkpoint_steps)
            carried, inputs = compiled.prepare(begin, inputs)
        versions = [parameter._version for parameter in self.policy.parameters()]

        def chunk(carried: Entries, part: Inputs) -> tuple[Entries, dict[str, Tensor]]:
            if versions != [parameter._version for parameter in self.policy.parameters()]:
                raise RuntimeError(
                    "The parameters have changed since the rollout, whose steps are computed again "
                    "when gradients are taken: take them before the optimizer's step, or leave "
                    "checkpoint_steps out."
                )
            if compiled is not None and len(part.noise) == size:
                return compiled(carried, part, once)
            return self._chunk(carried, part, once)

        pieces = []
        for first in range(0, num_steps, size):
            part = inputs.part(slice(first, first + size))
            if self.checkpoint_steps is None:
                carried, piece = chunk(carried, part)
            else:
                carried, piece = checkpoint(chunk, carried, part, use_reentrant=False)
            pieces.append(piece)
        return pieces

    def _chunk(
        self, carried: Entries, inputs: Inputs, once: bool
    ) -> tuple[Entries, dict[str, Tensor]]:
        """Take some steps: a pure function of where they start and of random numbers.

        Returns where they lead to, and the entries of each step, stacked; if no instance is reset,
        without the states that steps start from.
        """
        names = (*self.env.state_names, *self.env.shown_names)
        end, rows = self._steps(carried, inputs)
        kept = [key for key in rows[0] if not (once and key in names)]
        return end, {key: torch.stack([row[key] for row in rows]) for key in kept}

    def _steps(self, carried: Entries, inputs: Inputs) -> tuple[Entries, list[dict[str, Tensor]]]:
        """Return where the steps lead to, and the entries of each."""
        env, transition = self.env, self.step(self.env, self.policy)
        never = torch.zeros((*env.batch_size, 1), dtype=torch.bool, device=env.device)
        asks = not env.counts_steps
        noise, own = inputs.noise.unbind(), steps_of(inputs.policy, len(inputs.noise))
        rows = []
        new: Any
        for step, new in enumerate(inputs.fresh):
            draw, after, reward, over = transition(carried, noise[step], own[step])
            after |= env.show(after)
            row = {**carried, **entries_of(draw, self.policy)}
            row |= {NEXT + key: value for key, value in after.items()}
            row |= {"reward": reward, "over": never if over is None else over}
            rows.append(row)
            carried = discount_gradients(after, self.discount)
            if asks and new is not None:
                ends = over is not None and bool(over.any())
                new = new(over) if ends else None
            if new is not None and over is not None:
                carried = {
                    key: torch.where(expand_mask(over, value), new[key], value)
                    for key, value in carried.items()
                }
        return carried, rows

    def _finished(
        self, begin: Entries, pieces: list[dict[str, Tensor]], inputs: Inputs, once: bool
    ) -> TensorDict:
        """Build the tensordict of a rollout from its steps, or from chunks of stacked steps."""
        rows = pieces[0]["reward"].ndim == len(self.env.batch_size) + 1
        join = torch.stack if rows else torch.cat
        stacked: dict[str, Tensor] = {}
        for key in list(pieces[0]):
            # Popped, so that what is stacked already is not held twice.
            values = [piece.pop(key) for piece in pieces]
            name = key.removeprefix(NEXT)
            if not once or name not in begin:
                stacked[key] = join(values)
            elif key != name:  # held once: what a step leads to, and what the next one starts from
                start = begin[name] if rows else begin[name].unsqueeze(0)
                if any(value.requires_grad for value in (start, *values)):
                    found = _States.apply(join, self.discount, start, *values)
                else:
                    states = join([start, *values])
                    found = states[:-1], states[1:]
                stacked[name], stacked[key] = found
        return finished(self.env, self.policy, stacked, inputs.policy)


class _States(torch.autograd.Function):
    """What steps start from and what they lead to, without resets: two views of one memory.

    The gradient of the former, but for the start, has passed a transition and is discounted.
    """

    @staticmethod
    def forward(ctx: Any, join: Callable, discount: float, *values: Tensor) -> tuple:
        ctx.set_materialize_grads(False)
        ctx.discount, ctx.sizes = discount, [len(v) for v in values] if join is torch.cat else None
        states = join(values)
        return states[:-1], states[1:]

    @staticmethod
    def backward(ctx: Any, before: Tensor | None, after: Tensor | None) -> tuple:
        some = before if after is None else after
        if some is None:
            return None, None, *[None] * (1 if ctx.sizes is None else len(ctx.sizes))
        total = some.new_zeros(len(some) + 1, *some.shape[1:])
        if before is not None:
            total[:-1] = before * ctx.discount
            total[0] = before[0]  # no transition leads to the start
        if after is not None:
            total[1:] += after
        return None, None, *(total.unbind() if ctx.sizes is None else total.split(ctx.sizes))


def policy_step(env: DifferentiableEnv, policy: HybridPolicy) -> Transition:
    """Return what takes one step by sampling from the policy.

    What it computes once, such as a learned scale, belongs to the graph of one chunk.
    """
    sample = policy.sampler()

    def transition(carried: Entries, noise: Tensor, own: Noise | None) -> tuple:
        draw = sample(carried["observation"], policy.mask_of(carried), own)
        action = {"discrete": draw.discrete, "continuous": draw.continuous}
        return draw, *env.advance(carried, action, noise)

    return transition
