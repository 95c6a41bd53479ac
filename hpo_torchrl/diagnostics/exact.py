"""Exact values and policy gradients of small problems, by walking the tree of all actions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from hpo_torchrl.collectors.inputs import check_functional, check_single_choice, noise_of
from hpo_torchrl.core.checks import check_choice, check_float, check_int, entries_of, in_dtype
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.modules.sampling import NORMAL, normalised

Gradient = dict[str, Tensor]


@dataclass(frozen=True)
class ExactGradient:
    """The gradient of the expected return and its three terms, float64, by parameter name.

    Attributes:
        objective: the expected return itself.
        total: its gradient, by autograd through the exact expectation.
        pathwise: through rewards and states, discrete actions fixed.
        score_function: through the probabilities of the discrete actions, states detached.
        cross: through the states that these probabilities depend on.
    """

    objective: float
    total: Gradient
    pathwise: Gradient
    score_function: Gradient
    cross: Gradient

    def norm(self, term: str) -> float:
        """Return the Euclidean norm of a term over all parameters.

        Args:
            term: ``"total"``, ``"pathwise"``, ``"score_function"`` or ``"cross"``.
        """
        check_choice("term", term, ("total", "pathwise", "score_function", "cross"))
        return float(torch.cat([g.flatten() for g in getattr(self, term).values()]).norm())


@torch.enable_grad()
def exact_gradient(
    env: DifferentiableEnv,
    policy: HybridPolicy,
    num_steps: int,
    *,
    tensordict: TensorDictBase | None = None,
    noise: Tensor | None = None,
    noise_support: tuple[Tensor, Tensor] | None = None,
    num_nodes: int | None = None,
    max_leaves: int = 2**22,
) -> ExactGradient:
    r"""Compute the gradient of :math:`\mathbb E \sum_{t<T} r_t` and its terms without sampling.

    All :math:`M^T` sequences of discrete actions are walked as one tree, so that the expectation
    is a finite sum that autograd differentiates in float64. With :math:`P` the probability of
    reaching a node and :math:`Q`, :math:`V` the exact values of its branches and of itself,

    .. math::
        \text{pathwise} &= \textstyle\sum P\, \tfrac{dr}{d\psi}, \qquad
        \text{score} = \sum P\,(Q - V)\, \partial_\theta \log \pi_\theta(d|s), \\
        \text{cross} &= \textstyle\sum P\,(Q - V)\, \partial_s \log \pi_\theta(d|s)\,
        \tfrac{ds}{d\psi},

    and their sum equals the total, which is computed on its own. A continuous action that is
    sampled is integrated over its noise by Gauss quadrature, exact for polynomials of degree
    ``2 num_nodes - 1`` (for a normal distribution Gauss-Hermite).

    Args:
        env: the environment; its batch is a set of initial states that is averaged over.
        policy: the policy, reading ``"observation"``, and no mask but the environment's.
        num_steps: number of steps T, within one episode.
        tensordict: initial states, as ``env.reset()`` returns them; ``None`` resets.
        noise: fixed exogenous noise, ``(*B, T, *noise_shape)``; ``None`` draws it once, and the
            gradient is exact for that draw.
        noise_support: instead of ``noise``, the values ``(K, *noise_shape)`` and probabilities
            ``(K,)`` of noise that is drawn anew at each step, enumerated too.
        num_nodes: quadrature nodes per coordinate of a sampled continuous action.
        max_leaves: largest number of rows at the last step.

    Returns:
        The expected return, its gradient and the three terms.

    Raises:
        TypeError: environment or policy cannot be unrolled on plain tensors.
        ValueError: the enumeration would be too large, a shape is wrong, the steps leave the
            episode, or a policy that samples u is given without ``num_nodes``.
        KeyError: ``tensordict`` lacks an entry of the state.

    Examples:
        >>> from hpo_torchrl.diagnostics import exact_gradient
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=4, initial_state="random", seed=0)
        >>> exact = exact_gradient(env, HybridPolicy.for_env(env), 5)
        >>> exact.norm("total") > 0
        True
    """
    check_int("num_steps", num_steps, minimum=1)
    check_int("max_leaves", max_leaves, minimum=1)
    check_functional("exact_gradient", env, policy, "write the env's step as the method dynamics")
    check_single_choice("exact_gradient", env)
    policy.check_env(env)
    start = env.reset() if tensordict is None else env.reset(tensordict, set_state=True)
    if env.horizon is not None and int(start["step"].max()) + num_steps > env.horizon:
        raise ValueError(
            f"num_steps={num_steps} from step {int(start['step'].max())} leaves the episode of "
            f"horizon {env.horizon}: the exact gradient covers one episode. Take fewer steps."
        )
    systems = env.batch_size.numel()
    values, chance = _noise(env, start, num_steps, noise, noise_support)
    nodes, weights = _nodes(env, policy, num_nodes)
    width = env.num_discrete * len(nodes) * len(chance)
    leaves = systems * float(width) ** min(num_steps, 99)
    if leaves > max_leaves:
        raise ValueError(
            f"The enumeration would be too large: {systems} initial states x ({env.num_discrete} "
            f"discrete actions x {width // env.num_discrete} values of action and noise) ** "
            f"{num_steps} steps = {leaves:.3g} rows, above max_leaves={max_leaves}. Take fewer "
            "steps (num_steps), initial states, nodes or noise values, or raise max_leaves."
        )

    # A frozen parameter has an exact gradient too.
    network = copy.deepcopy(policy.network).double().requires_grad_(True)
    frozen = copy.deepcopy(network).requires_grad_(False)
    env = _in_double(env)
    state = {
        name: _double(start[name]).reshape(systems, *start[name].shape[env.batch_dims :])
        for name in env.state_names
    }
    distribution, steps = policy.continuous_distribution, []
    for step_values in values.unbind(1):
        observation = env.observe(state)
        mask = None if policy.mask_key is None else env.allowed(state)
        logits, loc, scale = network(observation)
        theta = network(observation.detach())[0]
        through_state = frozen(observation)[0]
        if scale is None:
            u = distribution.mode(loc, None).unsqueeze(2)
        else:
            u = distribution.sample(loc.unsqueeze(1), scale.unsqueeze(1), nodes[:, None])
            u = u.transpose(1, 2)
        state, reward = _branch(env, state, u, step_values)
        chances = (normalised(each, mask).exp() for each in (logits, theta, through_state))
        steps.append((reward, *chances))
    place = next(name for name, module in policy.named_modules() if module is policy.network)
    parameters = dict(network.named_parameters(prefix=place))
    # Attached to all parameters: a term that none of them moves has the gradient 0.
    zero = sum(0.0 * value.sum() for value in parameters.values())
    weight = weights[:, None] * chance

    def gradient(chances: Sequence[Tensor], rewards: Sequence[Tensor]) -> Gradient:
        expected = _expected(chances, rewards, weight) + zero
        parts = torch.autograd.grad(expected, list(parameters.values()), retain_graph=True)
        return dict(zip(parameters, parts, strict=True))

    rewards, full, theta, through_state = zip(*steps, strict=True)
    given, fixed = ([part.detach() for part in parts] for parts in (rewards, full))
    return ExactGradient(
        objective=float(_expected(fixed, given, weight)),
        total=gradient(full, rewards),
        pathwise=gradient(fixed, rewards),
        score_function=gradient(theta, given),
        cross=gradient(through_state, given),
    )


def _expected(chances: Sequence[Tensor], rewards: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Return the expected return.

    Given for each step the probabilities ``(R, M)`` and rewards ``(R, M, G, K)`` of all branches,
    and the weight ``(G, K)`` of the nodes of u and values of the noise. What it is differentiated
    through makes the term. Q - V is then Q: what adds up to 1 has derivatives that add up to 0.
    """
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    reach = torch.full_like(chances[0][:, 0], 1.0 / len(chances[0]))
    for chance, reward in zip(chances, rewards, strict=True):
        leaf = (reach.unsqueeze(-1) * chance)[:, :, None, None] * weight
        total = total + (leaf * reward).sum()
        reach = leaf.flatten()
    return total


def _branch(
    env: DifferentiableEnv, state: Mapping[str, Tensor], u: Tensor, noise: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Advance every row by every discrete action, node of u and value of the noise.

    Given R rows, u ``(R, M, G, n)`` and noise ``(S, K, *noise_shape)`` for S equal parts of the
    rows, return the next state with ``R M G K`` rows, and the reward, ``(R, M, G, K)``.
    """
    rows, number, nodes = u.shape[:3]
    values = noise.shape[1]
    width = number * nodes * values
    discrete = torch.arange(number, device=u.device).repeat_interleave(nodes * values)
    after, reward, _ = env.advance(
        {name: value.repeat_interleave(width, 0) for name, value in state.items()},
        {
            "discrete": discrete.repeat(rows),
            "continuous": u.flatten(0, 2).repeat_interleave(values, 0),
        },
        noise.repeat_interleave(rows * number * nodes // len(noise), 0).flatten(0, 1),
    )
    return after, reward.reshape(rows, number, nodes, values)


# Gauss quadrature, by the kind of noise.
_QUADRATURES = {
    "normal": np.polynomial.hermite_e.hermegauss,
    "uniform": np.polynomial.legendre.leggauss,
    "exponential": np.polynomial.laguerre.laggauss,
}


def _nodes(
    env: DifferentiableEnv, policy: HybridPolicy, num_nodes: int | None
) -> tuple[Tensor, Tensor]:
    """Nodes ``(G, n)`` and weights ``(G,)`` of the noise of u; a single one without a scale."""
    dim, kind = env.continuous_dim, policy.continuous_distribution.noise
    if not policy.stochastic:
        num_nodes = 1
    elif num_nodes is None:
        raise ValueError(
            "The policy's continuous action is sampled: give num_nodes, the quadrature nodes per "
            "coordinate (5 to 10), or use a policy with scale=0."
        )
    check_int("num_nodes", num_nodes, minimum=1)
    points, weights = map(torch.from_numpy, _QUADRATURES[kind](num_nodes))
    if kind == "uniform":  # from [-1, 1] to [0, 1]
        points = (points + 1) / 2
    grid = torch.cartesian_prod(*[points] * dim).view(-1, dim)
    mass = torch.cartesian_prod(*[weights / weights.sum()] * dim).view(-1, dim).prod(-1)
    return grid.to(env.device), mass.to(env.device)


def _noise(
    env: DifferentiableEnv,
    start: TensorDictBase,
    num_steps: int,
    noise: Tensor | None,
    support: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Values of the noise, ``(S, T, K, *noise_shape)`` for S parts of the batch, and chances."""
    if support is None:
        noise = noise_of(env, start, num_steps, noise).double()
        return noise.reshape(-1, num_steps, 1, *env.noise_shape), noise.new_ones(1)
    if noise is not None:
        raise ValueError("Give either noise (fixed) or noise_support (enumerated), not both.")
    parts = entries_of("noise_support", support)
    values, chance = (in_dtype("noise_support", part, torch.float64, env.device) for part in parts)
    if values.shape != (len(chance), *env.noise_shape) or chance.ndim != 1:
        raise ValueError(
            f"noise_support must be values of shape (K, *noise_shape) = (K, *{env.noise_shape}) "
            f"and probabilities of shape (K,), got {tuple(values.shape)} and {tuple(chance.shape)}."
        )
    if not bool((chance >= 0).all()) or abs(float(chance.sum()) - 1.0) > 1e-6:
        raise ValueError(
            "The probabilities of noise_support must be >= 0 and add up to 1, got a sum of "
            f"{float(chance.sum()):.12g}."
        )
    # Single-precision probabilities add up to about 1.
    return values.expand(1, num_steps, *values.shape), chance / chance.sum()


def _in_double(env: DifferentiableEnv) -> DifferentiableEnv:
    """Return a shallow copy whose tensors are float64, so that its arithmetic is."""
    twin = copy.copy(env)
    twin.__dict__ |= {k: _double(value) for k, value in vars(env).items() if torch.is_tensor(value)}
    return twin


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


class BestResponse(nn.Module):
    r"""Network that chooses discrete actions by their exact value, given how u is chosen.

    .. math::
        \pi(d | s, t) \propto \exp(Q_t(s, d) / \tau), \qquad
        Q_t(s, d) = r(s, d, u_d) + \sum_{d'} \pi(d' | s', t + 1)\, Q_{t+1}(s', d')

    up to the horizon. As :math:`\tau \to 0` this is the best response to the continuous policy; a
    negative :math:`\tau` chooses what is worst. Without noise, of the environment or of u, Q is
    exact. At a best response the expected cross term is zero (Alvo, Russo & Kanoria 2026): where a
    state moves probability from one discrete action to another, the two are worth the same.

    Args:
        env: the environment; its noise counts as zero.
        network: gives ``loc`` of every branch; its logits are not used.
        horizon: steps in an episode.
        temperature: :math:`\tau`, in units of the return; not 0.
        state_of: recovers the state, with its ``"step"``, from an observation.

    Raises:
        ValueError: temperature or horizon is out of range, or the environment is not in float64.
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
        frozen = copy.deepcopy(self.network).requires_grad_(False)
        state = self.state_of(observation.reshape(-1, observation.shape[-1]))
        value = self._action_values(state, frozen)
        return value.reshape(loc.shape[:-1]) / self.temperature, loc, None

    def _action_values(self, state: Mapping[str, Tensor], network: nn.Module) -> Tensor:
        loc = network(self.env.observe(state))[1]
        u = self.distribution.mode(loc, None).unsqueeze(2)
        after, reward = _branch(self.env, state, u, u.new_zeros(1, 1, *self.env.noise_shape))
        value = reward.flatten(1)
        if int(after["step"].flatten()[0]) < self.horizon:
            future = self._action_values(after, network)
            chance = (future / self.temperature).softmax(-1)
            value = value + (chance * future).sum(-1).view_as(value)
        return value
