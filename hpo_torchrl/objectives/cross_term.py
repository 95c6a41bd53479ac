"""The weight of the cross term: its signal over its signal and its noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpo_torchrl.core import ranks
from hpo_torchrl.core.checks import check_float, check_int


class CrossTermWeight(nn.Module):
    r"""Weight of the cross term that minimises the mean squared error of its estimate.

    A batch gives the cross term :math:`\bar c` with expectation c. The multiple :math:`w \bar c`
    that is closest to c in mean square has the weight

    .. math::
        w = \frac{S}{S + N}, \qquad S = \lVert c \rVert^2, \quad
        N = \mathbb E \lVert \bar c - c \rVert^2 .

    Halves of a batch are independent, so that with their cross terms :math:`c_1, c_2` the inner
    product :math:`c_1 \cdot c_2` estimates S and :math:`\lVert (c_1 + c_2) / 2 \rVert^2` estimates
    S + N, both without bias. Running means of the two, then their ratio cut to [0, 1], give w.

    **Bias.** The gradient lacks :math:`(1 - w)\, c`. Where the cross term is clear the weight is
    near 1 and the bias near 0; close to a discrete best response, where c vanishes while its noise
    grows, the weight is near 0 and the update is the decentralised one. As the current batch has a
    share in w, the two are slightly correlated. Halves are every other rollout, the last of an odd
    number left out; where rollouts differ by design (each from its own fixed start), the halves do
    too, and S is estimated too low.

    Args:
        decay: weight of the past in the running means; 0 uses each batch alone.
        num_seeds: number S of policies on a leading axis, each with a weight of its own; ``None``
            is a single policy without that axis.
    """

    signal: Tensor
    power: Tensor

    def __init__(self, decay: float = 0.95, *, num_seeds: int | None = None) -> None:
        super().__init__()
        self.num_seeds = num_seeds
        self.decay = check_float("decay", decay, minimum=0.0, maximum=1.0)
        if num_seeds is not None:
            check_int("num_seeds", num_seeds, minimum=1)
        shape = () if num_seeds is None else (num_seeds,)
        for name in ("signal", "power"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @property
    def weight(self) -> Tensor:
        """The weight w in [0, 1], a scalar or ``(S,)``; 1 before anything was observed."""
        unseen = self.power == 0
        return torch.where(unseen, 1.0, self.signal / self.power.where(~unseen, 1.0)).clamp(
            0.0, 1.0
        )

    def observe(self, cross: Tensor, parameters: Sequence[Tensor]) -> None:
        """Take a batch into the running means.

        A batch whose gradients are not finite is left out.

        Args:
            cross: surrogate of the cross term, ``(*B, T)``: its gradient is each step's share. With
                seeds ``(S, *B, T)``.
            parameters: the parameters that the cross term reaches; with seeds ``(S, ...)``.

        Raises:
            ValueError: the batch is a single rollout, which has no halves.
        """
        single = self.num_seeds is None
        rows = cross.reshape(1 if single else len(cross), -1, cross.shape[-1])
        begin, number = ranks.place(rows.shape[1])
        if number < 2:
            raise ValueError(
                "cross_term='adaptive' compares the halves of a batch, got a single rollout; "
                "collect at least two at once, or use cross_term=True or False."
            )
        halves = []
        pairs = number // 2
        rows = rows[:, : 2 * pairs - begin]
        for start in (begin % 2, (begin + 1) % 2):
            half = rows[:, start::2].sum((1, 2)).sum() / (pairs * rows.shape[-1])
            parts = torch.autograd.grad(half, parameters, retain_graph=True, allow_unused=True)
            reached = [part.reshape(len(rows), -1) for part in parts if part is not None]
            if not reached:  # every parameter that the cross term reaches is frozen
                return
            halves.append(ranks.total(torch.cat(reached, 1).double()))
        first, second = halves
        with torch.no_grad():
            signal = (first * second).sum(1).reshape(self.signal.shape)
            power = (0.5 * (first + second)).square().sum(1).reshape(self.power.shape)
            share = (1.0 - self.decay) * (signal.isfinite() & power.isfinite()).double()
            self.signal.lerp_(signal.nan_to_num(), share)
            self.power.lerp_(power.nan_to_num(), share)
