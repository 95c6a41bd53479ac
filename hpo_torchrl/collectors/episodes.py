"""Returns and lengths of the episodes that end in a sequence of batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor


class Ended(NamedTuple):
    """The episodes that ended in a batch, in the order of instances and of time.

    Attributes:
        instance: number of the instance, in a batch that is flattened, ``(E,)``.
        total: sum of the rewards, ``(E,)``.
        steps: number of steps, ``(E,)``.
    """

    instance: Tensor
    total: Tensor
    steps: Tensor

    def first(self) -> Ended:
        """Return the first of each instance that there is, ``steps`` as a real number."""
        first = _starts(self.instance)
        return Ended(self.instance[first], self.total[first], self.steps[first].double())


def begun(env: Any) -> TensorDict:
    """Return what is known of episodes that begin now in every instance.

    It holds ``"total"``, the rewards so far, ``"steps"``, and ``"whole"``, whether the episode was
    seen from its beginning, each ``(*B,)``.
    """
    shape, place = env.batch_size, {"device": env.device}
    return TensorDict(
        {
            "total": torch.zeros(shape, dtype=torch.float64, **place),
            "steps": torch.zeros(shape, dtype=torch.int64, **place),
            "whole": torch.ones(shape, dtype=torch.bool, **place),
        },
        batch_size=shape,
        **place,
    )


def follow(running: TensorDictBase, reward: Tensor, done: Tensor) -> tuple[TensorDict, Ended]:
    """Follow episodes through a batch.

    Args:
        running: what is known of those that go on, as :func:`begun` returns it.
        reward: rewards ``(*B, T, 1)``.
        done: whether an episode ended with the step, bool ``(*B, T, 1)``.

    Returns:
        What is known after the batch, and the episodes that ended and were seen whole.

    Examples:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from hpo_torchrl.collectors.episodes import begun, follow
        >>> env = SimpleNamespace(batch_size=torch.Size([2]), device=None)
        >>> done = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]]).bool().unsqueeze(-1)
        >>> running, ended = follow(begun(env), torch.ones(2, 5, 1), done)
        >>> ended.instance.tolist(), ended.steps.tolist(), running["steps"].tolist()
        ([0, 0, 1], [2, 2, 5], [1, 0])
    """
    shape, times = running.batch_size, reward.shape[-2]
    over = done.reshape(-1, times)
    start, whole = running["total"].reshape(-1, 1), running["whole"].reshape(-1)
    total = start + reward.detach().double().reshape(-1, times).cumsum(-1)
    count = torch.arange(1, times + 1, device=total.device)
    steps = running["steps"].reshape(-1, 1) + count
    at = over.nonzero(as_tuple=True)
    # An episode's sum is the running one at its end, less that at the end of the one before.
    first = _starts(at[0])

    def since(values: Tensor) -> Tensor:
        own = values[at]
        return own - torch.where(first, torch.zeros_like(own), own.roll(1))

    seen = ~first | whole[at[0]]
    ended = Ended(at[0][seen], since(total)[seen], since(steps)[seen])
    last = torch.where(over, count, 0).amax(-1)  # the step after which no episode ended, from 1
    place, ends = (last - 1).clamp_min(0).unsqueeze(-1), last > 0

    def left(values: Tensor) -> Tensor:
        gone = torch.where(ends, values.gather(-1, place).squeeze(-1), torch.zeros_like(last))
        return (values[:, -1] - gone).to(values.dtype).reshape(shape)

    after = {"total": left(total), "steps": left(steps), "whole": (whole | ends).reshape(shape)}
    return TensorDict(after, batch_size=shape, device=running.device), ended


def _starts(instance: Tensor) -> Tensor:
    """Return where a sorted vector has a value for the first time."""
    first = torch.ones_like(instance, dtype=torch.bool)
    first[1:] = instance[1:] != instance[:-1]
    return first
