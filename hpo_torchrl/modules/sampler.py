"""The probabilistic modules of a hybrid policy, for TorchRL."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType, ProbabilisticTensorDictModule, TensorDictModuleBase
from tensordict.nn.probabilistic import interaction_type
from torch import nn

from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.modules.continuous import ContinuousDistribution
from hpo_torchrl.modules.distribution import HybridDistribution
from hpo_torchrl.modules.sampling import NORMAL

DISCRETE_LOG_PROB = "discrete_log_prob"
_PARAMETERS = ("logits", "loc", "scale")


def is_stochastic(network: nn.Module) -> bool:
    """Whether a network's answer has a scale."""
    return getattr(network, "stochastic", True)


class HybridParameters(TensorDictModuleBase):
    """Write logits, loc and (for a stochastic u) scale of the network's answer."""

    def __init__(self, network: nn.Module, observation_key: str) -> None:
        super().__init__()
        self.network = network
        self.in_keys = [observation_key]
        self.out_keys = list(_PARAMETERS[: 3 if is_stochastic(network) else 2])

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        answer = self.network(tensordict.get(self.in_keys[0]))
        for key, value in zip(_PARAMETERS, answer, strict=True):
            if value is not None:
                tensordict.set(key, value)
        return tensordict


class HybridSampler(ProbabilisticTensorDictModule):
    """Sample a hybrid action from ``logits``, ``loc`` and ``scale``, and write it in one go.

    ``RANDOM`` samples d and reparameterises u, any other type takes the most probable discrete
    action and the mode of its branch. Written are ``("action", "discrete")``,
    ``("action", "continuous")`` and, with ``return_log_prob``, the joint ``"action_log_prob"``
    and ``"discrete_log_prob"``, each ``(*B,)`` and without a graph.

    Args:
        mask_key: entry with the discrete actions that may be chosen, bool ``(*B, M)``; ``None``
            allows all.
        stochastic: whether ``scale`` is read; without it u is deterministic.
        heads: whether there are several discrete choices, see :class:`HybridDistribution`.
        distribution: the distribution of u.
        return_log_prob: whether log-probabilities are written.
        default_interaction_type: what is done outside ``set_exploration_type``.

    Attributes:
        randomness: where random numbers come from.
    """

    def __init__(
        self,
        *,
        mask_key: str | None = None,
        stochastic: bool = True,
        heads: bool = False,
        distribution: ContinuousDistribution = NORMAL,
        return_log_prob: bool = True,
        default_interaction_type: InteractionType = InteractionType.RANDOM,
    ) -> None:
        in_keys = {key: key for key in _PARAMETERS[: 3 if stochastic else 2]}
        if mask_key is not None:
            in_keys["mask"] = mask_key
        super().__init__(
            in_keys=in_keys,
            out_keys=["action"],
            distribution_class=HybridDistribution,
            distribution_kwargs={"heads": heads, "distribution": distribution},
            return_log_prob=return_log_prob,
            default_interaction_type=default_interaction_type,
        )
        self.randomness = Randomness()

    @property
    def out_keys(self) -> list:
        """Entries that are written."""
        return [*super().out_keys, *([DISCRETE_LOG_PROB] if self.return_log_prob else [])]

    @out_keys.setter
    def out_keys(self, value: list) -> None:
        self._out_keys = value

    @property
    def acts_randomly(self) -> bool:
        """Whether actions are sampled now, given ``set_exploration_type`` and the default."""
        return (interaction_type() or self.default_interaction_type) is InteractionType.RANDOM

    def forward(
        self,
        tensordict: TensorDictBase,
        tensordict_out: TensorDictBase | None = None,
        _requires_sample: bool = True,
    ) -> TensorDictBase:
        """Sample the action of ``tensordict`` (or score the one it holds) and write it."""
        out = tensordict if tensordict_out is None else tensordict_out
        dist = self.get_dist(tensordict)
        if _requires_sample:
            noise = dist.sample_noise((), self.randomness) if self.acts_randomly else None
            draw = dist.draw(noise)
            action = {"discrete": draw.discrete, "continuous": draw.continuous}
            out.set("action", TensorDict(action, batch_size=draw.continuous.shape[:-1]))
            if self.return_log_prob:
                own = None if noise is None else noise.continuous
                joint, discrete = draw.log_probs(own, dist.distribution)
        else:
            action = tensordict.get("action")
            with torch.no_grad():
                discrete = dist.log_prob_discrete(action["discrete"])
                joint = discrete + dist.log_prob_continuous(
                    action["discrete"], action["continuous"]
                )
        if self.return_log_prob:
            out.set("action_log_prob", joint)
            out.set(DISCRETE_LOG_PROB, discrete)
        return out
