"""Rollouts whose graph reaches the discrete choice: Gumbel-softmax, straight-through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor

from hpo_torchrl.collectors.rollout import check_functional, check_single_choice, noise_of
from hpo_torchrl.collectors.unrolling import entries_of, unroll
from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridDistribution, HybridPolicy
from hpo_torchrl.modules.distribution import HybridDraw


def straight_through_rollout(
    env: DifferentiableEnv,
    policy: HybridPolicy,
    num_steps: int,
    *,
    tensordict: TensorDictBase | None = None,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    discount: float = 1.0,
) -> TensorDict:
    r"""Roll a policy out and let gradients flow through the discrete choice too.

    The straight-through Gumbel-softmax estimator [1]_ [2]_. With Gumbel noise g and the
    simulator evaluated at every option m, each with its own continuous action
    :math:`u_m = \mathrm{loc}_m + \mathrm{scale}_m\,\varepsilon`,

    .. math::
        d = \arg\max_m (\ell_m + g_m), \qquad
        w = \mathrm{onehot}(d) + \sigma - \mathrm{sg}(\sigma), \qquad
        \sigma = \mathrm{softmax}\bigl((\ell + g) / \tau\bigr), \qquad
        (s', r) = \sum_m w_m \, (f, r)(s, m, u_m, \xi)

    Forward, this is exactly :func:`differentiable_rollout`: from the same seed the same numbers,
    to the last bit, and d is an exact sample of the categorical. Backward, the executed option
    passes the usual gradient to (s, u), and the logits receive the slope between the options'
    outcomes. Integer entries of the state follow d and pass nothing.

    **Bias.** The gradient is pathwise only and biased, in two ways. The future is linearised at
    the state that was reached: an option is credited with slope times difference of the next
    states, which is right only where the later rewards are linear between them. And
    :math:`\sigma` has the mean :math:`\pi` only as :math:`\tau \to 0`, where the variance grows
    without bound. With one option it is the exact pathwise gradient.

    When the policy acts deterministically (``set_exploration_type``), d is the most probable
    option, u its mean, and :math:`\sigma = \mathrm{softmax}(\ell / \tau)`.

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
    check_int("num_steps", num_steps, minimum=1)
    check_float("temperature", temperature, minimum=0.0, strict=True)
    check_float("discount", discount, minimum=0.0, maximum=1.0, strict=True)
    check_functional(
        "straight_through_rollout", env, policy, "it branches the simulator, which must be pure"
    )
    check_single_choice("straight_through_rollout", env)

    def transition(carried: Mapping[str, Tensor], step_noise: Tensor) -> tuple:
        dist = policy.distribution(carried["observation"], policy.mask_of(carried))
        random = acts_randomly(policy)
        perturbed = _perturb(dist) if random else dist.logits
        branches, normal = draw_branches(dist, random)
        discrete = perturbed.argmax(-1)
        index = discrete[..., None, None].expand(*discrete.shape, 1, branches.shape[-1])
        continuous = branches.gather(-2, index).squeeze(-2)
        chosen = {"discrete": discrete, "continuous": continuous}
        draw = HybridDraw(discrete, continuous, dist.logits.detach())
        scale = dist.branch(discrete)[1]
        if scale is not None:
            draw = draw._replace(noise=normal, scale=scale.detach())
        after, reward, over = env.advance(carried, chosen, step_noise)
        soft = (perturbed / temperature).softmax(-1)
        if soft.requires_grad:
            others, rewards = _every_option(env, carried, branches, step_noise)
            reward = _StraightThrough.apply(reward, soft, rewards)
            after = {
                key: _StraightThrough.apply(value, soft, others[key])
                if value.is_floating_point()
                else value
                for key, value in after.items()
            }
        return entries_of(draw, policy), after, reward, over

    start = env.reset() if tensordict is None else tensordict
    return unroll(env, lambda: transition, start, noise_of(env, start, num_steps, noise), discount)


def acts_randomly(policy: HybridPolicy) -> bool:
    """Whether the policy samples now, given ``set_exploration_type`` and its default."""
    kind = interaction_type() or policy[-1].default_interaction_type
    return kind is InteractionType.RANDOM


def draw_branches(dist: HybridDistribution, random: bool) -> tuple[Tensor, Tensor]:
    """Return the continuous action of every option, ``(*B, M, n)``, and the one normal draw in it.

    The draw is ``(*B, n)``, 0 where the action is the mean.
    """
    normal = torch.zeros_like(dist.loc[..., 0, :])
    if dist.scale is None or not random:
        return dist.loc, normal
    normal = torch.randn_like(normal)
    return dist.loc + dist.scale * normal.unsqueeze(-2), normal


def _perturb(dist: HybridDistribution) -> Tensor:
    """Return the logits plus Gumbel noise."""
    # The logarithm of a standard exponential is minus a Gumbel: the random numbers, and their
    # order, of HybridDistribution.draw.
    clock = torch.empty(dist.logits.shape, dtype=dist.loc.dtype, device=dist.loc.device)
    return dist.logits - clock.exponential_().log()


@torch.no_grad()
def _every_option(
    env: DifferentiableEnv, state: Mapping[str, Tensor], branches: Tensor, noise: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Return what every option leads to, next states and rewards of batch ``(M, *B)``."""
    *batch, count, _ = branches.shape
    options = torch.arange(count, device=branches.device).view(-1, *(1,) * len(batch))
    action = {
        "discrete": options.expand(count, *batch),
        "continuous": branches.movedim(-2, 0),
    }
    copies = {key: value.expand(count, *value.shape) for key, value in state.items()}
    after, rewards, _ = env.advance(copies, action, noise.expand(count, *noise.shape))
    return after, rewards


class _StraightThrough(torch.autograd.Function):
    """The executed option's value, with the gradient of the sum of weight times value.

    A function of its own, because adding (soft - soft) * values would not be exact: it turns -0
    into 0, and the infinite value of an option not taken into NaN.
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
