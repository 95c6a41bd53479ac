"""Rollouts whose steps are compiled, a few at a time."""

from __future__ import annotations

import itertools
import math
import time
import types
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from hpo_torchrl.collectors.discounting import Entries, before_and_after
from hpo_torchrl.collectors.recomputing import NEXT
from hpo_torchrl.collectors.rollout import (
    check_counted,
    check_functional,
    differentiable_rollout,
    noise_of,
)
from hpo_torchrl.collectors.straight_through import acts_randomly
from hpo_torchrl.collectors.unrolling import (
    SCORED,
    Steps,
    Transition,
    entries_of,
    finished,
    fresh_states,
    stack_steps,
)
from hpo_torchrl.core.checks import check_float, check_int, first_line
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.modules.distribution import HybridDraw, branch, check_mask, draw_from, expand_scale
from hpo_torchrl.modules.layers import hooked
from hpo_torchrl.modules.policy import known

# Steps of a stretch, the better first: one that leaves no rest is taken.
_LENGTHS = (5, 6, 4, 7, 8, 3)
_NUMBERS = itertools.count()
# What torch raises where it does not compile, whatever the reason.
_REFUSALS = (
    torch._dynamo.exc.TorchDynamoException,
    torch._dynamo.exc.FailOnRecompileLimitHit,
)


class _Clock:
    """Adds up the time that torch spends on compiling in this process, forward and backward."""

    def __init__(self) -> None:
        self.seconds, self._start = 0.0, 0.0

    def listen(self) -> _Clock:
        """Let torch call it from now on, unless it does so already."""
        if self._begin not in torch._dynamo.callback.callback_handler.start_callbacks:
            torch._dynamo.on_compile_start(self._begin)
            torch._dynamo.on_compile_end(self._end)
        return self

    def _begin(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._start


_CLOCK = _Clock()  # one for all: torch calls it for as long as the process lives


class CompiledRollout:
    r"""A :func:`differentiable_rollout` by ``torch.compile``, for who makes many of one kind.

    A stretch of a few steps is compiled, forward and backward, and called again and again. Noise
    and the policy's random numbers are drawn outside, in the order of the ordinary rollout: from
    the same generators come the same actions, up to rounding.

    On a GPU each stretch, forward and backward, is replayed as a CUDA graph.

    The first call compiles; its results are cached on disk, so that the first call of a later
    process takes a part of the time. What a step leads to and what the next one starts from share
    their memory: change one in place and the other changes too.

    Args:
        env: the environment.
        policy: the policy, which samples.
        discount: see :func:`differentiable_rollout`.
        steps: steps of a stretch. More take longer to compile and gain little. By default about
            five, so that they divide the first rollout; steps that are left over are not compiled.

    Raises:
        TypeError: the environment or the policy has no functional core, or the environment ends
            episodes by itself.
        ValueError: an argument is out of range, or a module of the policy has hooks, which a
            compiled graph would pass over.

    Examples:
        >>> from hpo_torchrl.collectors import CompiledRollout
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=4, initial_state="random")
        >>> rollout = CompiledRollout(env, HybridPolicy.for_env(env), discount=0.99)
        >>> batch = rollout(10)  # doctest: +SKIP
        >>> (-batch["next", "reward"].mean()).backward()  # doctest: +SKIP
    """

    def __init__(
        self,
        env: DifferentiableEnv,
        policy: HybridPolicy,
        *,
        discount: float = 1.0,
        steps: int | None = None,
    ) -> None:
        check_functional("compile", env, policy, "leave it out")
        check_counted("compile", env)
        check_float("discount", discount, minimum=0.0, maximum=1.0, strict=True)
        self.steps = None if steps is None else check_int("steps", steps, minimum=1)
        self.env, self.policy, self.discount = env, policy, discount
        self._check_hooks()
        self._before = _CLOCK.listen().seconds
        # What a draw is scored by that need not come out of the graph.
        self._given = SCORED[1:] if known(policy.network) else SCORED[1:2]
        self._take: Any = Steps(env, self._begin, discount)
        # Code of its own: torch counts the graphs of a function, and refuses the ninth.
        code = CompiledRollout._stretch.__code__
        own = code.replace(co_name=f"{code.co_name}_{next(_NUMBERS)}")
        stretch = types.FunctionType(own, globals())
        self._compiled: Any = torch.compile(
            types.MethodType(stretch, self), fullgraph=True, dynamic=False, options=_options(env)
        )

    @property
    def compile_seconds(self) -> float:
        """What compiling has taken in this process since this object was made."""
        return _CLOCK.seconds - self._before

    def __call__(
        self,
        num_steps: int,
        *,
        tensordict: TensorDictBase | None = None,
        noise: Tensor | None = None,
    ) -> TensorDict:
        """Roll out; arguments and result are those of :func:`differentiable_rollout`.

        Where the policy does not sample (``set_exploration_type``) or no gradients are kept, it is
        that function which is called.
        """
        check_int("num_steps", num_steps, minimum=1)
        self._check_hooks()
        env = self.env
        if not (acts_randomly(self.policy) and torch.is_grad_enabled()):
            return differentiable_rollout(
                env,
                self.policy,
                num_steps,
                tensordict=tensordict,
                noise=noise,
                discount=self.discount,
            )
        if self.steps is None:
            dividing = (length for length in _LENGTHS if num_steps % length == 0)
            self.steps = min(num_steps, next(dividing, _LENGTHS[0]))
        if _on_gpu(env):
            torch.compiler.cudagraph_mark_step_begin()  # graphs may take the last rollout's memory
        start = env.reset() if tensordict is None else tensordict
        noise = noise_of(env, start, num_steps, noise).movedim(len(env.batch_size), 0)
        begin = {key: start.get(key) for key in (*env.state_names, *env.shown_names)}
        fresh: Any = fresh_states(env, begin["step"], num_steps)
        once = all(new is None for new in fresh)
        if not once:
            # A step without an end takes nothing from what stands there. Always other objects: a
            # graph is bound to which of its inputs are the same.
            given = [begin if new is None else new for new in fresh]
            fresh = [{key: value.detach() for key, value in new.items()} for new in given]
        clock, normal = self._random_numbers(num_steps, begin["observation"])
        # All stretches have one graph, the first included: with gradients for where they begin.
        carried: Entries = {
            key: value.detach().requires_grad_()
            if value.is_floating_point() and not value.requires_grad
            else value
            for key, value in begin.items()
        }
        pieces = []
        for first in range(0, num_steps, self.steps):
            part = slice(first, min(first + self.steps, num_steps))
            drawn = noise[part], clock[part], None if normal is None else normal[part]
            carried, piece = self._call(carried, drawn, fresh[part], once)
            pieces.append(piece)
        stacked = {}
        for key in pieces[0]:
            parts = [piece[key] for piece in pieces]
            name = key.removeprefix(NEXT)
            if once and name in begin:
                states = torch.cat([begin[name].unsqueeze(0), *parts])
                stacked[name], stacked[key] = before_and_after(states, self.discount)
            else:
                stacked[key] = torch.cat(parts)
        mask = self.policy.mask_of(stacked)
        if mask is not None and mask.device.type == "cpu":  # as the ordinary rollout does
            check_mask(mask)
        stacked |= self._scores(stacked["discrete"], normal)
        return finished(env, stacked)

    def _call(
        self, carried: Entries, drawn: tuple, fresh: Sequence[Entries | None], once: bool
    ) -> tuple[Entries, dict[str, Tensor]]:
        if self._compiled is None or len(drawn[0]) != self.steps:
            return self._stretch(carried, drawn, fresh, once)
        try:
            # A loss may go through the graph more than once.
            with torch._functorch.config.patch(donated_buffer=False):
                return self._compiled(carried, drawn, fresh, once)
        except _REFUSALS as error:
            self._compiled = None
            cause = first_line(getattr(error, "inner_exception", error))
            warnings.warn(
                f"compile: {type(self.env).__name__} and its policy cannot be compiled, and go on "
                f"as they are ({cause}). Usual causes: dynamics that look at a tensor's value (if, "
                ".item(), numpy), numbers of the environment that change from rollout to rollout, "
                "or no C++ compiler on this machine.",
                stacklevel=3,
            )
            return self._stretch(carried, drawn, fresh, once)

    def _stretch(
        self, carried: Entries, drawn: tuple, fresh: Sequence[Entries | None], once: bool
    ) -> tuple[Entries, dict[str, Tensor]]:
        """Take some steps: where they lead to, and the entries of each, stacked."""
        noise, clock, normal = drawn
        normals = [None] * len(clock) if normal is None else normal.unbind()
        rows = list(zip(noise.unbind(), clock.unbind(), normals, strict=True))
        carried, history = self._take(carried, rows, fresh)
        left_out = {*self._given, *(carried if once else ())}
        return carried, stack_steps(
            [{k: v for k, v in row.items() if k not in left_out} for row in history]
        )

    @torch.no_grad()
    def _scores(self, discrete: Tensor, normal: Tensor | None) -> dict[str, Tensor]:
        """Return what is known of the scores of all draws without the graph."""
        if normal is None or not self.policy.return_log_prob:
            return {}
        found = {SCORED[1]: normal}
        if SCORED[2] in self._given:  # it does not depend on the state
            network: Any = self.policy.network
            scale = network.scale()
            table = scale.expand(*discrete.shape[: 1 + len(self.env.batch_size)], *scale.shape)
            heads = network.num_heads is not None
            found[SCORED[2]] = branch(discrete, table, None, heads)[0]
        return found

    def _begin(self) -> Transition:
        def transition(carried: Entries, drawn: Any) -> tuple:
            noise, clock, normal = drawn
            draw = self._draw(carried, clock, normal)
            chosen = {"discrete": draw.discrete, "continuous": draw.continuous}
            return entries_of(draw, self.policy), *self.env.advance(carried, chosen, noise)

        return transition

    def _draw(self, carried: Entries, clock: Tensor, normal: Tensor | None) -> HybridDraw:
        """Sample as the policy does, with given random numbers."""
        network: Any = self.policy.network
        observation, finish = carried["observation"], None
        if known(network):
            logits, loc, scale = network.unbounded(observation)
            finish = network.bounded
        else:
            logits, loc, scale = network(observation)
            scale = None if scale is None else expand_scale(scale, loc)
        logits, mask = logits.detach(), self.policy.mask_of(carried)
        if mask is not None:
            logits = logits.masked_fill(~mask, -math.inf)
        heads = getattr(network, "num_heads", None) is not None
        logits = logits.log_softmax(-1)
        return draw_from(logits, loc, scale, heads=heads, clock=clock, noise=normal, finish=finish)

    def _random_numbers(self, num_steps: int, observation: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draw those of all steps in the order of an ordinary rollout: ``(T, *B, ...)``."""
        env = self.env
        heads = () if env.num_heads is None else (env.num_heads,)
        place: dict[str, Any] = {"dtype": env.float_dtype, "device": env.device}
        clock = torch.empty(num_steps, *env.batch_size, *heads, env.num_discrete, **place)
        normal, stochastic = None, self.policy.stochastic
        if stochastic and not known(self.policy.network):  # it may answer that it has no scale
            with torch.no_grad():
                stochastic = self.policy.network(observation)[2] is not None
        if stochastic:
            normal = torch.empty(num_steps, *env.batch_size, env.continuous_dim, **place)
        for step in range(num_steps):
            clock[step].exponential_()
            if normal is not None:
                normal[step].normal_()
        return clock.log_(), normal

    def _check_hooks(self) -> None:
        modules: list[nn.Module] = list(self.policy.modules())
        found = [type(module).__name__ for module in modules if hooked(module)]
        if found:
            raise ValueError(
                f"compile passes over hooks, and {', '.join(found)} of the policy has some; remove "
                "them or leave compile out."
            )


def _on_gpu(env: DifferentiableEnv) -> bool:
    return env.device is not None and env.device.type == "cuda"


def _options(env: DifferentiableEnv) -> dict[str, Any]:
    if _on_gpu(env):
        return {"triton.cudagraphs": True}
    # Imported here: it takes a second, which only who compiles should wait for.
    from hpo_torchrl.collectors._thin_products import TransposeThinProducts

    return {"post_grad_custom_pre_pass": TransposeThinProducts()}
