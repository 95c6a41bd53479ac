"""The probabilistic modules of a hybrid policy, for TorchRL."""

from __future__ import annotations

from typing import NamedTuple

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType, ProbabilisticTensorDictModule, TensorDictModuleBase
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor, nn

from hpo_torchrl.core.data import Key
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.modules.sampling import NORMAL, HybridDistribution

LOG_PROB, DISCRETE_LOG_PROB = "action_log_prob", "discrete_log_prob"


def parameter_keys(network: nn.Module) -> list[str]:
    """Return the entries of a network's answer; ``scale`` is that of a stochastic u."""
    return ["logits", "loc", "scale"] if getattr(network, "stochastic", True) else ["logits", "loc"]


class HybridParameters(TensorDictModuleBase):
    """Write logits, loc and (for a stochastic u) scale of the network's answer."""

    def __init__(self, network: nn.Module, observation_key: Key) -> None:
        super().__init__()
        self.network = network
        self.in_keys = [observation_key]
        self.out_keys = parameter_keys(network)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        logits, loc, scale = self.network(tensordict.get(self.in_keys[0]))
        tensordict.set("logits", logits).set("loc", loc)
        return tensordict if scale is None else tensordict.set("scale", scale)


class HybridAction(NamedTuple):
    """A sampled action as plain tensors; the log-probabilities carry no graph."""

    discrete: Tensor
    continuous: Tensor
    log_prob: Tensor | None = None
    discrete_log_prob: Tensor | None = None


class HybridSampler(ProbabilisticTensorDictModule):
    """Sample a hybrid action from ``logits``, ``loc`` and ``scale``, and write it in one go.

    ``RANDOM`` samples d and reparameterises u, any other type takes the most probable discrete
    action and the mode of its branch. Written are ``("action", "discrete")``,
    ``("action", "continuous")`` and, with ``return_log_prob``, the joint ``"action_log_prob"``
    and ``"discrete_log_prob"``, each ``(*B,)`` and without a graph.

    Args:
        network: the network that answers with them; see :class:`HybridPolicy` for what is read.
        mask_key: entry with the discrete actions that may be chosen, bool ``(*B, M)``; ``None``
            allows all.
        return_log_prob: whether log-probabilities are written.
        default_interaction_type: what is done outside ``set_exploration_type``.

    Attributes:
        randomness: where random numbers come from.
    """

    def __init__(
        self,
        network: nn.Module,
        mask_key: Key | None = None,
        return_log_prob: bool = True,
        default_interaction_type: InteractionType = InteractionType.RANDOM,
    ) -> None:
        in_keys: dict[str, Key] = {key: key for key in parameter_keys(network)}
        if mask_key is not None:
            in_keys["mask"] = mask_key
        own = {
            "heads": getattr(network, "num_heads", None) is not None,
            "distribution": getattr(network, "distribution", NORMAL),
        }
        super().__init__(
            in_keys=in_keys,
            out_keys=["action"],
            distribution_class=HybridDistribution,
            distribution_kwargs=own,
            return_log_prob=return_log_prob,
            default_interaction_type=default_interaction_type,
        )
        if return_log_prob:
            self._out_keys.append(DISCRETE_LOG_PROB)
        self.randomness = Randomness()

    @property
    def log_prob_keys(self) -> list[str]:
        """The joint log-probability, whatever ``set_composite_lp_aggregate`` says of composites."""
        return [LOG_PROB]

    log_prob_key = LOG_PROB

    @property
    def acts_randomly(self) -> bool:
        """Whether actions are sampled now, given ``set_exploration_type`` and the default."""
        return (interaction_type() or self.default_interaction_type) is InteractionType.RANDOM

    def get_dist(self, tensordict: TensorDictBase) -> HybridDistribution:
        """Return the distribution whose parameters are in a tensordict.

        Raises:
            KeyError: they are not; the message says how they get there.
        """
        needed = ("logits", "loc")  # a network may leave out a scale
        if missing := [key for key in needed if tensordict.get(key, None) is None]:
            raise KeyError(
                f"A hybrid distribution needs {', '.join(map(repr, missing))}, which the data do "
                "not hold: the rollouts and collectors of this library leave them out. Add them by "
                "policy[:-1](data) before the policy changes, or collect by TorchRL's Collector."
            )
        return super().get_dist(tensordict)

    def act(self, dist: HybridDistribution) -> HybridAction:
        """Sample an action of a distribution, and score it."""
        noise = dist.sample_noise((), self.randomness) if self.acts_randomly else None
        draw = dist.draw(noise)
        if not self.return_log_prob:
            return HybridAction(draw.discrete, draw.continuous)
        own = None if noise is None else noise.continuous
        return HybridAction(*draw[:2], *draw.log_probs(own, dist.distribution))

    def forward(
        self,
        tensordict: TensorDictBase,
        tensordict_out: TensorDictBase | None = None,
        _requires_sample: bool = True,
    ) -> TensorDictBase:
        """Sample the action of ``tensordict`` and write it; TorchRL's last flag is always true."""
        out = tensordict if tensordict_out is None else tensordict_out
        found = self.act(self.get_dist(tensordict))
        action = {"discrete": found.discrete, "continuous": found.continuous}
        out.set("action", TensorDict(action, batch_size=found.continuous.shape[:-1]))
        if self.return_log_prob:
            out.set(LOG_PROB, found.log_prob)
            out.set(DISCRETE_LOG_PROB, found.discrete_log_prob)
        return out
