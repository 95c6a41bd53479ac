"""One net for all members of a set, whatever their number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from hpo_torchrl.core.checks import check_choice, check_sizes
from hpo_torchrl.modules.layers import ACTIVATIONS


class SetNet(nn.Module):
    r"""One net for all members of a set, which sees each of them and the average of all.

    A hidden layer is :math:`h_i' = \sigma(A h_i + B \bar h + b)` with the average :math:`\bar h`
    over members; the last layer, which starts at zero, is linear. It has as many weights for a
    thousand members as for one, and what it learns of one it knows of all.

    Source: M. Zaheer et al. (2017), "Deep sets", NeurIPS, section 3.1, the equivariant layer.

    Args:
        inputs: numbers that show a member.
        outputs: numbers to say of it.
        hidden: width of each hidden layer.
        activation: see :class:`HybridNetwork`.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.modules import SetNet
        >>> net = SetNet(4, 1, hidden=[16])
        >>> net(torch.zeros(8, 3, 4)).shape, net(torch.zeros(8, 1000, 4)).shape
        (torch.Size([8, 3, 1]), torch.Size([8, 1000, 1]))
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int | Sequence[int] = (64, 64),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        widths = [inputs, *check_sizes("hidden", hidden)]
        pairs = [*itertools.pairwise(widths)]
        self.own = nn.ModuleList(nn.Linear(*pair) for pair in pairs)
        self.shared = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in pairs)
        self.last = nn.Linear(widths[-1], outputs)
        self.activation = ACTIVATIONS[check_choice("activation", activation, ACTIVATIONS)]()
        for layer in (*self.own, *self.shared):
            nn.init.orthogonal_(layer.weight, gain=math.sqrt(2))
        for layer in (*self.own, self.last):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.last.weight)

    def forward(self, members: Tensor) -> Tensor:
        """Return ``(*B, n, outputs)`` of ``(*B, n, inputs)``."""
        for own, shared in zip(self.own, self.shared, strict=True):
            average = members.mean(-2, keepdim=True)
            members = self.activation(own(members).add_(shared(average)))
        return self.last(members)
