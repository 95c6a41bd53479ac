"""Discrete policies that respond to a continuous one: the case in which the cross term vanishes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hpo_torchrl.collectors.inputs import check_single_choice
from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules.sampling import NORMAL


class BestResponse(nn.Module):
    r"""Network that chooses discrete actions by their exact value, given how u is chosen.

    .. math::
        \pi(d | s, t) \propto \exp(Q_t(s, d) / \tau), \qquad
        Q_t(s, d) = r(s, d, u_d) + \sum_{d'} \pi(d' | s', t + 1)\, Q_{t+1}(s', d')

    up to the horizon, by walking the tree of all of them. As :math:`\tau \to 0` this is the best
    response to the continuous policy; a negative :math:`\tau` chooses what is worst. Without
    noise, of the environment or of u, Q is exact.

    At a best response the expected cross term is zero (Alvo, Russo & Kanoria 2026): where a state
    moves probability from one discrete action to another, the two are worth the same.

    Args:
        env: the environment; its noise counts as zero.
        network: gives ``loc`` of every branch; its logits are not used.
        horizon: steps in an episode.
        temperature: :math:`\tau`, in units of the return; not 0.
        state_of: recovers the state, with its ``"step"``, from an observation.

    Raises:
        ValueError: the temperature is 0 or not finite, the horizon is below 1, or the environment
            is not in float64.
    """

    stochastic = False

    def __init__(
        self,
        env: DifferentiableEnv,
        network: nn.Module,
        *,
        horizon: int,
        temperature: float,
        state_of: Callable[[Tensor], Mapping[str, Tensor]],
    ) -> None:
        super().__init__()
        self.env, self.network, self.state_of = env, network, state_of
        self.distribution = getattr(network, "distribution", NORMAL)
        self.horizon = check_int("horizon", horizon, minimum=1)
        if env.float_dtype != torch.float64:
            raise ValueError(
                f"BestResponse needs an env with dtype=torch.float64, got {env.float_dtype}."
            )
        check_single_choice("BestResponse", env)
        if check_float("temperature", temperature) == 0.0:
            raise ValueError("temperature must not be 0; take a small one such as 0.01.")
        self.temperature = temperature

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return logits ``(*B, M)`` and loc ``(*B, M, n)`` of the observations of one step."""
        loc = self.network(observation)[1]
        # The choice is a function of the state alone: it does not move with the parameters of u.
        detached = {name: value.detach() for name, value in self.network.named_parameters()}
        value = self._action_values(self.state_of(observation), detached)
        return value / self.temperature, loc, None

    def _action_values(self, state: Mapping[str, Tensor], detached: dict[str, Tensor]) -> Tensor:
        observation = self.env.observe(state)
        loc = functional_call(self.network, detached, (observation,))[1]
        number = self.env.num_discrete
        shape = (*loc.shape[:-2], number)
        after, reward, _ = self.env.advance(
            {
                name: value.unsqueeze(len(shape) - 1).expand(*shape, *value.shape[len(shape) - 1 :])
                for name, value in state.items()
            },
            {
                "discrete": torch.arange(number, device=loc.device).expand(shape),
                "continuous": self.distribution.mode(loc, None),
            },
            loc.new_zeros(*shape, *self.env.noise_shape),
        )
        value = reward.squeeze(-1)
        if int(after["step"].flatten()[0]) < self.horizon:
            future = self._action_values(after, detached)
            chance = (future / self.temperature).softmax(-1)
            value = value + (chance * future).sum(-1)
        return value
