"""A trained policy as a function of plain tensors, and as a graph that leaves this library."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from hpo_torchrl.core.checks import first_line
from hpo_torchrl.modules.policy import HybridPolicy


class DeterministicPolicy(nn.Module):
    """The most probable discrete action and the mode of its branch, on plain tensors.

    It computes what a :class:`HybridPolicy` does under ``ExplorationType.DETERMINISTIC``, without
    TorchRL around it: no tensordict, no random numbers.

    Args:
        policy: the policy.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.modules import DeterministicPolicy, HybridPolicy
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> env = InventoryEnv(num_items=3, batch_size=4)
        >>> policy = DeterministicPolicy(HybridPolicy.for_env(env))
        >>> discrete, continuous, logits = policy(env.reset()["observation"])
        >>> discrete.shape, continuous.shape, logits.shape
        (torch.Size([4]), torch.Size([4, 3]), torch.Size([4, 2]))
    """

    def __init__(self, policy: HybridPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self, observation: Tensor, action_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the action and the log-probabilities that its discrete part was chosen by.

        Args:
            observation: ``(*B, k)``.
            action_mask: the discrete actions that may be chosen, bool ``(*B, M)`` or
                ``(*B, H, M)``; ``None`` allows all.

        Returns:
            Discrete actions, int64 ``(*B,)`` or ``(*B, H)``; continuous actions ``(*B, n)``; and
            logits, normalised and minus infinity where the mask forbids, ``(*B, M)`` or
            ``(*B, H, M)``.
        """
        found = self.policy.distribution(observation, action_mask).draw(None)
        return found.discrete, found.continuous, found.logits


def traced(policy: HybridPolicy, observation: Tensor, mask: Tensor | None) -> ExportedProgram:
    """Return the graph of a :class:`DeterministicPolicy`, on the CPU, for batches of any size.

    Args:
        policy: the policy.
        observation: an example, ``(b, k)`` with b >= 2.
        mask: an example of the mask, ``(b, M)`` or ``(b, H, M)``; ``None`` if it reads none.

    Raises:
        ValueError: ``torch.export`` cannot follow the network.
    """
    module = DeterministicPolicy(copy.deepcopy(policy)).cpu().eval()
    inputs = [observation.cpu()] if mask is None else [observation.cpu(), mask.cpu()]
    batch = Dim("batch")
    names = ("observation", "action_mask")
    shapes = {name: {0: batch} for name, _ in zip(names, inputs, strict=False)}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own parts
            return export(module, tuple(inputs), dynamic_shapes=shapes)
    except Exception as error:
        raise ValueError(
            f"torch.export cannot follow {type(policy.network).__name__} ({first_line(error)}): "
            "its forward must take a batch of any size, without Python branches on the values of "
            "tensors."
        ) from error
