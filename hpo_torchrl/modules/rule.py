"""Rules as policies: heuristics to compare with, and starting points."""

from __future__ import annotations

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor


class RulePolicy(TensorDictModuleBase):
    """Reads the state, writes ``("action", "discrete")`` and ``("action", "continuous")``."""

    out_keys = [("action", "discrete"), ("action", "continuous")]  # noqa: RUF012

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Decide for every instance of the batch."""
        discrete, continuous = self.decide(*(tensordict.get(key) for key in self.in_keys))
        action = {"discrete": discrete, "continuous": continuous}
        return tensordict.set("action", TensorDict(action, batch_size=tensordict.batch_size))

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Return discrete actions ``(*B,)`` and continuous actions ``(*B, n)``."""
        raise NotImplementedError
