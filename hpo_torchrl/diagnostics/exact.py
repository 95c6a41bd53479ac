"""The exact policy gradient of small problems, term by term, by enumeration."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.func import functional_call

from hpo_torchrl.collectors.inputs import check_single_choice, is_functional
from hpo_torchrl.core.checks import check_choice, check_int
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.modules.sampling import NORMAL

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
        TypeError: the environment is no :class:`DifferentiableEnv`, or the policy no
            :class:`HybridPolicy`.
        ValueError: the enumeration would be too large, a shape is wrong, the steps leave the
            episode, or a policy that samples u is given without ``num_nodes``.

    Examples:
        >>> from hpo_torchrl.diagnostics import exact_gradient
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=4, initial_state="random", seed=0)
        >>> exact = exact_gradient(env, HybridPolicy.for_env(env), 5)
        >>> exact.norm("total") > 0
        True
    """
    if noise_support is not None:
        noise_support = torch.as_tensor(noise_support[0]), torch.as_tensor(noise_support[1])
    _check(env, policy, noise, noise_support)
    check_int("num_steps", num_steps, minimum=1)
    check_int("max_leaves", max_leaves, minimum=1)
    start = env.reset() if tensordict is None else tensordict
    missing = [key for key in env.state_names if start.get(key, None) is None]
    if missing or start.batch_size != env.batch_size:
        raise ValueError(
            f"tensordict must hold the state entries {list(env.state_names)} with the batch size "
            f"{tuple(env.batch_size)}, as env.reset() returns them; got the batch size "
            f"{tuple(start.batch_size)}" + (f" without {missing}." if missing else ".")
        )
    if env.horizon is not None and int(start["step"].max()) + num_steps > env.horizon:
        raise ValueError(
            f"num_steps={num_steps} from step {int(start['step'].max())} leaves the episode of "
            f"horizon {env.horizon}: the exact gradient covers one episode. Take fewer steps."
        )
    systems = env.batch_size.numel()
    if noise_support is None:
        noise = env.sample_noise(num_steps, start) if noise is None else noise
        expected = (*env.batch_size, num_steps, *env.noise_shape)
        noise = torch.as_tensor(noise)
        if tuple(noise.shape) != expected:
            raise ValueError(f"noise must have shape {expected}, got {tuple(noise.shape)}.")
        noise = noise.double().reshape(systems, num_steps, *env.noise_shape)
    env = _in_double(env)
    # A frozen parameter has an exact gradient too.
    network = copy.deepcopy(policy.network).double().requires_grad_(True)
    distribution = getattr(network, "distribution", NORMAL)
    nodes, weights = _nodes(env, network, num_nodes, distribution.noise)
    width = env.num_discrete * len(nodes) * (1 if noise_support is None else len(noise_support[0]))
    _check_size(env, width, num_steps, systems, max_leaves)

    parameters: dict[str, Tensor] = dict(network.named_parameters())
    detached = {name: value.detach() for name, value in parameters.items()}
    state = {
        name: _double(start.get(name)).reshape(systems, *start.get(name).shape[env.batch_dims :])
        for name in env.state_names
    }
    levels: list[_Level] = []
    for t in range(num_steps):
        observation = env.observe(state)
        logits, loc, scale = functional_call(network, parameters, (observation,))
        theta = functional_call(network, parameters, (observation.detach(),))[0]
        through_state = functional_call(network, detached, (observation,))[0]
        allowed = None if policy.mask_key is None else env.allowed(state)
        if allowed is not None:
            logits, theta, through_state = (
                value.masked_fill(~allowed, -torch.inf) for value in (logits, theta, through_state)
            )
        if noise_support is None:
            assert noise is not None
            step_noise = noise[:, t].repeat_interleave(len(loc) // systems, 0).unsqueeze(1)
            chance = torch.ones(1, dtype=torch.float64, device=loc.device)
        else:
            step_noise, chance = (part.double().to(loc.device) for part in noise_support)
            chance = chance / chance.sum()  # single-precision probabilities add up to about 1
            step_noise = step_noise.expand(len(loc), *step_noise.shape)
        # The branches of a node: discrete action x quadrature node x noise.
        shape = (len(loc), env.num_discrete, len(nodes), len(chance))
        action = distribution.mode(loc, None)[:, :, None]
        if scale is not None:
            parameters_of_u = loc.unsqueeze(1), scale.unsqueeze(1)
            action = distribution.sample(*parameters_of_u, nodes[:, None]).transpose(1, 2)
        rows = {
            "discrete": torch.arange(env.num_discrete, device=loc.device)[:, None, None],
            "continuous": action[:, :, :, None],
            "noise": step_noise[:, None, None],
        }
        rows |= {name: value[:, None, None, None] for name, value in state.items()}
        flat = {
            name: value.expand(*shape, *value.shape[4 if name != "discrete" else 3 :]).flatten(0, 3)
            for name, value in rows.items()
        }
        next_noise = flat.pop("noise")
        taken = {"discrete": flat.pop("discrete"), "continuous": flat.pop("continuous")}
        state, reward, _ = env.advance(flat, taken, next_noise)
        levels.append(
            _Level(
                probability=logits.softmax(-1),
                reward=reward.reshape(shape),
                theta=_log_softmax(theta),
                through_state=_log_softmax(through_state),
                weight=weights[:, None] * chance,
            )
        )
    return _differentiate(levels, list(parameters.values()), _names(policy, network), systems)


class _Level(NamedTuple):
    """One step of the tree: R nodes, M branches, G quadrature nodes, K values of the noise."""

    probability: Tensor  # (R, M), attached to everything
    reward: Tensor  # (R, M, G, K)
    theta: Tensor  # (R, M) log-probabilities, states detached
    through_state: Tensor  # (R, M) log-probabilities, parameters detached
    weight: Tensor  # (G, K)


def _differentiate(
    levels: list[_Level], parameters: list[Tensor], names: list[str], systems: int
) -> ExactGradient:
    value = torch.zeros_like(levels[-1].reward)
    advantages = []
    for level in reversed(levels):
        action_value = (level.weight * (level.reward + value.reshape(level.reward.shape))).sum(
            (-2, -1)
        )
        value = (level.probability * action_value).sum(-1)
        advantages.append((action_value - value.unsqueeze(-1)).detach())
    objective = value.mean()
    pathwise = score = cross = torch.zeros_like(objective)
    reach = torch.full_like(value, 1.0 / systems).detach()
    for level, advantage in zip(levels, reversed(advantages), strict=True):
        chosen = (reach.unsqueeze(-1) * level.probability).detach()
        leaf = chosen[:, :, None, None] * level.weight
        pathwise = pathwise + (leaf * level.reward).sum()
        score = score + (chosen * advantage * level.theta).sum()
        cross = cross + (chosen * advantage * level.through_state).sum()
        reach = leaf.flatten()

    def gradient(scalar: Tensor) -> Gradient:
        parts: list[Tensor | None] = [None] * len(parameters)
        if scalar.requires_grad:
            parts = list(
                torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
            )
        return {
            name: torch.zeros_like(parameter) if part is None else part
            for name, parameter, part in zip(names, parameters, parts, strict=True)
        }

    return ExactGradient(
        float(objective.detach()),
        *(gradient(scalar) for scalar in (objective, pathwise, score, cross)),
    )


def _log_softmax(logits: Tensor) -> Tensor:
    # A masked action is never reached: finite, its logarithm adds 0 instead of NaN.
    return logits.log_softmax(-1).clamp_min(torch.finfo(logits.dtype).min)


# Gauss quadrature, by the kind of noise.
_QUADRATURES = {
    "normal": np.polynomial.hermite_e.hermegauss,
    "uniform": np.polynomial.legendre.leggauss,
    "exponential": np.polynomial.laguerre.laggauss,
}


def _nodes(
    env: DifferentiableEnv, network: nn.Module, num_nodes: int | None, kind: str
) -> tuple[Tensor, Tensor]:
    """Nodes ``(G, n)`` and weights ``(G,)`` of the noise of u; one zero without a scale."""
    device = env.device
    if not getattr(network, "stochastic", True):
        zero = torch.zeros(1, env.continuous_dim, dtype=torch.float64, device=device)
        return zero, torch.ones(1, dtype=torch.float64, device=device)
    if num_nodes is None:
        raise ValueError(
            "The policy's continuous action is sampled: give num_nodes, the quadrature nodes per "
            "coordinate (5 to 10), or use a policy with scale=0."
        )
    check_int("num_nodes", num_nodes, minimum=1)
    points, weights = map(torch.from_numpy, _QUADRATURES[kind](num_nodes))
    if kind == "uniform":  # from [-1, 1] to [0, 1]
        points = (points + 1) / 2
    weights = weights / weights.sum()
    grid = torch.cartesian_prod(*[points] * env.continuous_dim).view(-1, env.continuous_dim)
    mass = torch.cartesian_prod(*[weights] * env.continuous_dim).view(len(grid), -1).prod(-1)
    return grid.to(device), mass.to(device)


def _check(
    env: DifferentiableEnv,
    policy: HybridPolicy,
    noise: Tensor | None,
    noise_support: tuple[Tensor, Tensor] | None,
) -> None:
    if not isinstance(env, DifferentiableEnv):
        raise TypeError(
            "exact_gradient branches the simulator, which takes a DifferentiableEnv, got "
            f"{type(env).__name__}; write its step as the method dynamics."
        )
    check_single_choice("exact_gradient", env)
    if not isinstance(policy, HybridPolicy):
        raise TypeError(f"policy must be a HybridPolicy, got {type(policy).__name__}.")
    policy.check_env(env)
    if not is_functional(env, policy):
        raise ValueError(
            "exact_gradient takes a policy that reads 'observation', and no mask but the "
            "environment's, got "
            f"observation_key={policy.observation_key!r}, mask_key={policy.mask_key!r}."
        )
    if noise_support is None:
        return
    if noise is not None:
        raise ValueError("Give either noise (fixed) or noise_support (enumerated), not both.")
    values, chance = noise_support
    if tuple(values.shape) != (len(chance), *env.noise_shape) or chance.ndim != 1:
        raise ValueError(
            f"noise_support must be values of shape (K, *noise_shape) = (K, *{env.noise_shape}) "
            f"and probabilities of shape (K,), got {tuple(values.shape)} and {tuple(chance.shape)}."
        )
    if bool((chance < 0).any()) or abs(float(chance.double().sum()) - 1.0) > 1e-6:
        raise ValueError(
            f"The probabilities of noise_support must be >= 0 and add up to 1, got a sum of "
            f"{float(chance.double().sum()):.12g}."
        )


def _check_size(
    env: DifferentiableEnv, width: int, num_steps: int, systems: int, max_leaves: int
) -> None:
    leaves = systems * width**num_steps
    if leaves > max_leaves:
        raise ValueError(
            f"The enumeration would be too large: {systems} initial states x ({env.num_discrete} "
            f"discrete actions x {width // env.num_discrete} values of action and noise) ** "
            f"{num_steps} steps = {leaves:.3g} rows, above max_leaves={max_leaves}. Take fewer "
            "steps, initial states, quadrature nodes or noise values, or raise max_leaves if "
            "memory allows."
        )


def _names(policy: HybridPolicy, network: nn.Module) -> list[str]:
    """Names of the network's parameters within the policy."""
    of_policy = {id(parameter): name for name, parameter in policy.named_parameters()}
    own = dict(policy.network.named_parameters())
    return [of_policy[id(own[name])] for name, _ in network.named_parameters()]


def _in_double(env: DifferentiableEnv) -> DifferentiableEnv:
    """A shallow copy whose tensors are float64, so that its arithmetic is."""
    twin = copy.copy(env)
    for name, value in vars(env).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(twin, name, value.double())
    return twin


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value
