"""Rollouts whose graph reaches the discrete choice: Gumbel-softmax, straight-through."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from hpo_torchrl.collectors.engine import Rollout, Transition
from hpo_torchrl.collectors.inputs import Entries, check_functional, check_single_choice
from hpo_torchrl.core.checks import check_float
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridDistribution, HybridPolicy
from hpo_torchrl.modules.sampling import Noise


def straight_through_rollout(
    env: DifferentiableEnv,
    policy: HybridPolicy,
    num_steps: int,
    *,
    tensordict: TensorDictBase | None = None,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    discount: float = 1.0,
    randomness: Randomness | None = None,
) -> TensorDict:
    r"""Roll a policy out and let gradients flow through the discrete choice too.

    The straight-through Gumbel-softmax estimator [1]_ [2]_. With Gumbel noise g and the
    simulator evaluated at every discrete action m, each with its own continuous action
    :math:`u_m = \mathrm{loc}_m + \mathrm{scale}_m\,\varepsilon`,

    .. math::
        d = \arg\max_m (\ell_m + g_m), \qquad
        w = \mathrm{onehot}(d) + \sigma - \mathrm{sg}(\sigma), \qquad
        \sigma = \mathrm{softmax}\bigl((\ell + g) / \tau\bigr), \qquad
        (s', r) = \sum_m w_m \, (f, r)(s, m, u_m, \xi)

    Forward, this is exactly :func:`differentiable_rollout`: from the same seed the same numbers,
    to the last bit, and d is an exact sample of the categorical. Backward, the executed action
    passes the usual gradient to (s, u), and the logits receive the slope between their
    outcomes. Integer entries of the state follow d and pass nothing.

    **Bias.** The gradient is pathwise only and biased, in two ways. The future is linearised at
    the state that was reached: a discrete action is credited with slope times difference of the
    next states, which is right only where the later rewards are linear between them. And
    :math:`\sigma` has the mean :math:`\pi` only as :math:`\tau \to 0`, where the variance grows
    without bound. With one discrete action it is the exact pathwise gradient.

    When the policy acts deterministically (``set_exploration_type``), d is the most probable
    discrete action, u the mode of its branch, and :math:`\sigma = \mathrm{softmax}(\ell / \tau)`.

    Args:
        env: the environment, batch size ``*B``. Its dynamics are called with the batch
            ``(M, *B)``, without a graph, besides the call that executes d.
        policy: a policy that reads ``"observation"``, and no mask but the environment's.
        num_steps: number of steps T.
        tensordict: where to start, as ``env.reset()`` returns it; ``None`` resets.
        noise: noise of the rollout, ``(*B, T, *noise_shape)``, as ``env.sample_noise(T)`` returns
            it; ``None`` draws it.
        temperature: :math:`\tau > 0`; lower has less bias and more variance.
        discount: factor on the gradient through each transition, in (0, 1], as in
            :func:`differentiable_rollout`.
        randomness: where the policy's random numbers come from; ``None`` is ``policy.randomness``.

    Returns:
        Tensordict of shape ``(*B, T)`` with the entries of :func:`differentiable_rollout`.

    Raises:
        TypeError: the environment or the policy has no functional core.
        ValueError: an argument is out of range or the noise has the wrong shape.

    References:
        .. [1] Jang, Gu & Poole, *Categorical Reparameterization with Gumbel-Softmax*, ICLR 2017.
        .. [2] Maddison, Mnih & Teh, *The Concrete Distribution*, ICLR 2017.

    Examples:
        >>> from hpo_torchrl.collectors import straight_through_rollout
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=4, initial_state="random")
        >>> policy = HybridPolicy.for_env(env)
        >>> rollout = straight_through_rollout(env, policy, 10, temperature=0.5)
        >>> (-rollout["next", "reward"].mean()).backward()
        >>> policy.network.discrete[-1].bias.grad.any().item()
        True
    """
    step = straight_through(env, policy, temperature)
    rollout = Rollout(env, policy, discount=discount, step=step, randomness=randomness)
    return rollout(num_steps, tensordict=tensordict, noise=noise)


def straight_through(env: DifferentiableEnv, policy: HybridPolicy, temperature: float) -> Any:
    """Return the ``step`` of a :class:`Rollout` of this kind; arguments are checked."""
    check_float("temperature", temperature, minimum=0.0, strict=True)
    fix = "it branches the simulator, which must be pure"
    check_functional("straight_through_rollout", env, policy, fix)
    check_single_choice("straight_through_rollout", env)
    return functools.partial(_step, temperature=temperature)


def _step(env: DifferentiableEnv, policy: HybridPolicy, temperature: float) -> Transition:
    def transition(carried: Entries, noise: Tensor, own: Noise | None) -> tuple:
        logits, loc, scale = policy.network(carried["observation"])
        dist = HybridDistribution(
            logits,
            loc,
            scale,
            policy.mask_of(carried),
            validate_args=False,
            distribution=policy.continuous_distribution,
        )
        draw = dist.draw(own)
        action = {"discrete": draw.discrete, "continuous": draw.continuous}
        after, reward, over = env.advance(carried, action, noise)
        perturbed = dist.logits if own is None else dist.logits - own.discrete
        soft = (perturbed / temperature).softmax(-1)
        if soft.requires_grad:
            with torch.no_grad():
                branches = dist.actions(None if own is None else own.continuous)
                others, rewards = _every_action(env, carried, branches, noise)
            reward = _StraightThrough.apply(reward, soft, rewards)
            after = {
                key: _StraightThrough.apply(value, soft, others[key])
                if value.is_floating_point()
                else value
                for key, value in after.items()
            }
        return draw, after, reward, over

    return transition


def _every_action(
    env: DifferentiableEnv, state: Mapping[str, Tensor], branches: Tensor, noise: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Return what every discrete action leads to, next states and rewards of batch ``(M, *B)``."""
    *batch, count, _ = branches.shape
    every = torch.arange(count, device=branches.device).view(-1, *(1,) * len(batch))
    action = {
        "discrete": every.expand(count, *batch),
        "continuous": branches.movedim(-2, 0),
    }
    copies = {key: value.expand(count, *value.shape) for key, value in state.items()}
    after, rewards, _ = env.advance(copies, action, noise.expand(count, *noise.shape))
    return after, rewards


class _StraightThrough(torch.autograd.Function):
    """The executed action's value, with the gradient of the sum of weight times value.

    A function of its own, because adding (soft - soft) * values would not be exact: it turns -0
    into 0, and the infinite value of an action not taken into NaN.
    """

    @staticmethod
    def forward(value: Tensor, soft: Tensor, values: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, soft, values = inputs
        ctx.leading = soft.ndim
        ctx.save_for_backward(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (values,) = ctx.saved_tensors
        slopes = (gradient * values).flatten(ctx.leading).sum(-1)
        return gradient, slopes.movedim(0, -1), None
