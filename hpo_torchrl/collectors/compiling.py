"""Compiled chunks of a rollout: by ``torch.compile``, or by XLA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import calculate_time_spent
from torch.utils._pytree import tree_map_only
from torchrl.envs.utils import exploration_type

from hpo_torchrl.collectors.inputs import Inputs, Step, warn_uncompiled
from hpo_torchrl.core.checks import check_choice, first_line
from hpo_torchrl.core.extras import extra

if TYPE_CHECKING:
    from hpo_torchrl.collectors.scan import Scan

COMPILERS = ("auto", "xla", "inductor")

# Steps of a chunk, the better first: one that leaves no rest is taken.
_LENGTHS = (5, 6, 4, 7, 8, 3)
# Graphs that one object may compile, and that all of a process may: torch counts them per function.
_OWN_GRAPHS, _ALL_GRAPHS = 8, 1024
# The errors of torch where it does not compile, whatever the reason.
_REFUSALS = (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit)


def _seconds() -> float:
    """Return the time that this process has spent on compiling, forward and backward."""
    return calculate_time_spent()["total_wall_time"]


class Compiled:
    """A compiled chunk; where it cannot be compiled, a warning and the chunk itself.

    On a GPU each chunk, forward and backward, is replayed as a CUDA graph. Compiled code is cached
    on disk, so that the first call of a later process takes a part of the time.

    Args:
        chunk: from a state, inputs and a flag to a state and entries.
        name: what the chunk is called in the warning.
    """

    def __init__(self, chunk: Callable[..., Any], name: str) -> None:
        self.chunk, self.name = chunk, name
        self._before, self._graphs = _seconds(), 0
        self._length: int | None = None
        # A loss may go through the graph more than once. For good, because torch asks for it when
        # gradients are taken, too.
        torch._functorch.config.donated_buffer = False
        options: dict[str, Any] = {"triton.cudagraphs": True} if torch.cuda.is_available() else {}
        self._compiled: Any = torch.compile(chunk, fullgraph=True, dynamic=False, options=options)

    @property
    def seconds(self) -> float:
        """Time spent on compiling in this process since this object was made."""
        return _seconds() - self._before

    def serves(self, inputs: Inputs) -> bool:
        """Return whether a rollout of these inputs is compiled: one of training."""
        return inputs.policy is not None and torch.is_grad_enabled()

    def length(self, num_steps: int, given: int | None) -> int:
        """Return the steps of a chunk: those given, or about five that divide the first rollout."""
        if self._length is None:
            dividing = (length for length in _LENGTHS if num_steps % length == 0)
            self._length = given or min(num_steps, next(dividing, _LENGTHS[0]))
        return self._length

    def prepare(
        self, begin: Mapping[str, Tensor], inputs: Inputs
    ) -> tuple[dict[str, Tensor], Inputs]:
        """Bring a rollout into the form that all its chunks share, so that there is one graph."""
        if torch.cuda.is_available():
            torch.compiler.cudagraph_mark_step_begin()  # it may take the last rollout's memory
        fresh = inputs.fresh
        if any(fresh):
            # A step without an end takes nothing from what stands there. Always other objects: a
            # graph is bound to which of its inputs are the same.
            fresh = [
                {key: value.detach() for key, value in (new or begin).items()} for new in fresh
            ]
        # The first chunk, like all others, has gradients for where it begins.
        carried = {
            key: value.detach().requires_grad_()
            if value.is_floating_point() and not value.requires_grad
            else value
            for key, value in begin.items()
        }
        return carried, inputs._replace(fresh=fresh)

    def __call__(self, *given: Any) -> Any:
        """Call the chunk."""
        if self._compiled is None:
            return self.chunk(*given)
        before = _seconds()
        try:
            limits = {"recompile_limit": _ALL_GRAPHS, "accumulated_recompile_limit": _ALL_GRAPHS}
            with torch._dynamo.config.patch(limits):
                found = self._compiled(*given)
        except _REFUSALS as error:
            self._give_up(first_line(getattr(error, "inner_exception", error)))
            return self.chunk(*given)
        self._graphs += _seconds() > before
        if self._graphs > _OWN_GRAPHS:
            self._give_up(f"it has been compiled {self._graphs} times")
        return found

    def _give_up(self, cause: str) -> None:
        self._compiled = None
        warn_uncompiled(self.name, cause, ", or no C++ compiler on this machine")


class ByXla:
    """What XLA computes for one owner, a :class:`Scan` for each kind of steps.

    Args:
        quiet: whether nothing is said where something goes on uncompiled.

    Raises:
        MissingExtraError: JAX is not installed.
    """

    def __init__(self, quiet: bool) -> None:
        extra("jax", "jax")
        from hpo_torchrl.collectors import scan  # JAX is slow to load

        self.settings_of, self.make = scan.settings_of, scan.Scan
        self.quiet, self.scans = quiet, list[scan.Scan]()

    def another(self, modules: Sequence[nn.Module], name: str) -> Scan:
        """Return what takes steps of another kind; the arguments are those of :class:`Scan`."""
        self.scans.append(self.make(modules, None if self.quiet else name))
        return self.scans[-1]

    @property
    def seconds(self) -> float:
        """Time spent on compiling since this object was made."""
        return sum(scan.seconds for scan in self.scans)


class Scanned(ByXla):
    """A chunk of any length whose steps XLA takes; see :class:`Scan`.

    Args:
        chunk: from a state, inputs and a flag to a state and entries.
        env: the environment.
        policy: the policy.
        quiet: see :class:`ByXla`.
    """

    def __init__(self, chunk: Callable[..., Any], env: Any, policy: Any, quiet: bool) -> None:
        super().__init__(quiet)
        self.chunk, self.env = chunk, env.equations
        name = f"{type(env).__name__} and its policy"
        self.scan, self.branches = self.another([policy], name), self.another([policy], name)

    def serves(self, inputs: Inputs) -> bool:
        """Return whether a rollout of these inputs is compiled: all are."""
        return True

    def length(self, num_steps: int, given: int | None) -> int:
        """Return the steps of a chunk: all."""
        return num_steps

    def prepare(
        self, begin: Mapping[str, Tensor], inputs: Inputs
    ) -> tuple[dict[str, Tensor], Inputs]:
        """Bring a rollout into the form that all its steps share."""
        fresh = inputs.fresh
        if any(fresh):  # a step without an end takes nothing from what stands there
            fresh = [{**(new or begin)} for new in fresh]
        return dict(begin), inputs._replace(fresh=fresh)

    def __call__(
        self, carried: Mapping[str, Tensor], inputs: Inputs, once: bool
    ) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
        """Call the chunk."""
        noise, own, fresh = inputs
        rows = None
        if any(fresh):
            rows = {key: torch.stack([row[key] for row in fresh]) for key in fresh[0]}

        def step(carried: Any, given: Any) -> Any:
            now, mine = tree_map_only(Tensor, lambda part: part.unsqueeze(0), given[:2])
            after, entries = self.chunk(carried, Inputs(now, mine, [given[2]]), once)
            return after, {key: value.squeeze(0) for key, value in entries.items()}

        return self.scan(step, dict(carried), (noise, own, rows), self._settings(once))

    def loop(self, step: Step, carried: dict[str, Tensor], inputs: Any, settings: Any) -> Any:
        """Take the steps of branches; see :func:`branched_returns`."""
        return self.branches(step, carried, inputs, self._settings(settings))

    def _settings(self, *own: Any) -> Any:
        return (*own, str(exploration_type()), *self.settings_of(self.env))


def can_scan(env: Any, checkpoint_steps: int | None) -> bool:
    """Whether XLA takes steps of such rollouts: on a CPU, all at once, where JAX is installed."""
    installed = all(find_spec(name) is not None for name in ("jax", "jaxlib"))
    return _on_cpu(env) and checkpoint_steps is None and installed


def _on_cpu(env: Any) -> bool:
    return torch.device(env.device or "cpu").type == "cpu"


def compiled(
    how: bool | str,
    chunk: Callable[..., Any],
    env: Any,
    policy: Any,
    checkpoint_steps: int | None,
    *,
    quiet: bool = False,
) -> Compiled | Scanned | None:
    """Return the compiled form of a chunk, or ``None`` without one.

    Args:
        how: by what, a name of :data:`COMPILERS`; ``True`` chooses, ``False`` is not.
        chunk: from a state, inputs and a flag to a state and entries.
        env: the environment.
        policy: the policy.
        checkpoint_steps: see :class:`Rollout`.
        quiet: whether nothing is said where steps go on uncompiled.
    """
    if not how:
        return None
    if how is True:
        how = "xla" if can_scan(env, checkpoint_steps) else "inductor"
    if check_choice("compile", how, COMPILERS) == "inductor":
        return Compiled(chunk, f"{type(env).__name__} and its policy")
    if checkpoint_steps is not None or not _on_cpu(env):
        raise ValueError(
            f"compile='xla' is of rollouts on a CPU whose steps are not computed again, got "
            f"device={env.device} and checkpoint_steps={checkpoint_steps}; use compile='inductor'."
        )
    return Scanned(chunk, env, policy, quiet)


def compiled_passes(how: bool | str, env: Any) -> ByXla | None:
    """Return what XLA computes of an algorithm whose rollouts keep no graph; ``None`` for nothing.

    Args:
        how: see :func:`compiled`; ``"auto"`` is nothing where it is impossible.
        env: the environment.

    Raises:
        ValueError: it is something else, or the environment is not on a CPU.
        MissingExtraError: JAX is asked for and not installed.
    """
    if not how or (how == "auto" and not can_scan(env, None)):
        return None
    if check_choice("compile", "xla" if how is True else how, COMPILERS) == "inductor":
        raise ValueError(
            "compile='inductor' is of rollouts with a graph, which this algorithm does not make; "
            "XLA takes its passes: compile='xla'."
        )
    if not _on_cpu(env):
        raise ValueError(f"compile='xla' is of a CPU, got device={env.device}; leave it out.")
    return ByXla(how == "auto")
