"""Hybrid Policy Optimization on inventories, written by hand: the yardstick of the benchmark.

Plain PyTorch for this one problem, as somebody would write it who needs nothing else and cares for
speed: no tensordicts, no checks, no options, no graph that nobody differentiates, and nothing
computed twice that could be kept; only the table that demand is drawn from is the library's. What
it learns is what the library learns: it draws the same random numbers in the same order, so that
tests can hold rewards, log-probabilities, losses, gradients and trained parameters of the two
against each other.

Shapes: B instances, T steps, n items, lead time 2, so that a state is ``(B, n, 2)``: on hand, and
what arrives next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo_torchrl.problems.inventory.counts import CountTable

DEMAND, HOLDING, SHORTAGE, PROCUREMENT, FIXED = 10.0, 1.0, 9.0, 0.0, 64.0  # per item
DISCOUNT, LAMBDA, CLIP, MAX_NORM = 0.99, 0.95, 0.2, 0.5
SHARPNESS, START = 4.0, 1.3  # of the softplus that keeps quantities positive
LEARNING_RATE, FIRST_MULTIPLIER, LEAST_MULTIPLIER, FACTOR = 5e-3, 0.02, 1e-3, 1.5
DECAY = 0.99  # of the running moments of the reward


def mlp(inputs: int, outputs: int, hidden: Sequence[int], activation: type[nn.Module]) -> nn.Module:
    """Build a plain multilayer perceptron."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class Trajectory(NamedTuple):
    """A rollout with its graph: ``(B, T)`` first, but for the observations ``(B, T + 1)``.

    ``last`` is the state after the last step.
    """

    last: Tensor
    observations: Tensor
    options: Tensor
    quantities: Tensor
    means: Tensor
    log_probs: Tensor
    option_log_probs: Tensor
    rewards: Tensor


class HandWritten:
    """Inventory problem, networks, rollout and update.

    Args:
        num_items: number of items n.
        batch: number of instances B.
        horizon: number of steps T.
        hidden: width of each hidden layer.
        scale: standard deviation of a quantity, in units of its natural size; above 0.
        epochs: passes over the detached data in an update.
        num_minibatches: minibatches in a pass.
        target_kl: divergence that ends the passes, and that the step size of the choice adapts to.
        target_action_change: change of the mean quantity that their step size adapts to.
        reset_fraction: share of the instances that start a batch afresh.
        max_norm: largest norm of a network's gradient.
        seed: seed of the demand.
        device: where the tensors live.
        dtype: floating-point type.
    """

    def __init__(
        self,
        num_items: int,
        batch: int,
        horizon: int,
        hidden: Sequence[int],
        *,
        scale: float,
        epochs: int = 2,
        num_minibatches: int = 4,
        target_kl: float = 0.015,
        target_action_change: float = 0.1,
        reset_fraction: float = 1.0,
        max_norm: float = MAX_NORM,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.num_items, self.batch, self.horizon, self.scale = num_items, batch, horizon, scale
        self.epochs, self.num_minibatches = epochs, num_minibatches
        self.target_kl, self.target_action_change = target_kl, target_action_change
        self.reset_fraction, self.max_norm = reset_fraction, max_norm
        self.device, self.dtype = torch.device(device), dtype
        self.rng = torch.Generator(device=self.device).manual_seed(seed)
        counts = np.arange(64)
        pmf = np.exp(counts * math.log(DEMAND) - DEMAND - [math.lgamma(k + 1) for k in counts])
        self.demand = CountTable(np.tile(pmf, (num_items, 1)), dtype=dtype, device=self.device)
        fixed = FIXED * num_items
        interval = max(2, round((2 * fixed / (HOLDING * DEMAND * num_items)) ** 0.5))
        self.unit, self.fixed = interval * DEMAND, fixed
        self.sigma = scale * self.unit
        self.normalizer = num_items * (math.log(self.sigma) + 0.5 * math.log(2 * math.pi))
        seen = 2 * num_items
        self.discrete = mlp(seen, 2, hidden, nn.ReLU)
        self.continuous = mlp(seen, 2 * num_items, hidden, nn.ReLU)
        self.skip = nn.Linear(seen, 2 * num_items, bias=False)
        self.value = mlp(seen, 1, hidden, nn.Tanh)
        self.nets = nn.ModuleList([self.discrete, self.continuous, self.skip, self.value])
        self.nets.to(device=self.device, dtype=dtype)
        self.groups = [
            list(self.discrete.parameters()),
            [*self.continuous.parameters(), *self.skip.parameters()],
            list(self.value.parameters()),
        ]
        self.multipliers = [FIRST_MULTIPLIER, FIRST_MULTIPLIER, 1.0]
        self.optimizer = torch.optim.Adam(
            [{"params": group} for group in self.groups],
            lr=LEARNING_RATE,
            betas=(0.9, 0.95),
            eps=1e-5,
        )
        self.reward_mean, self.reward_variance, self.reward_weight = (
            torch.zeros((), dtype=torch.float64, device=self.device) for _ in range(3)
        )
        self.carried: Tensor | None = None

    # -- the rollout -------------------------------------------------------------------------------

    def empty(self) -> Tensor:
        """Return the start of an episode."""
        shape = (self.batch, self.num_items, 2)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def rollout(self, start: Tensor | None = None) -> Trajectory:
        """Roll the policy out from ``start``; gradients shrink by the discount at every step."""
        inventory = self.empty() if start is None else start
        shape = (self.batch, self.horizon, self.num_items)
        demand = self.demand.draw(shape, self.rng)
        kept: list[tuple[Tensor, ...]] = []
        seen = (inventory / DEMAND).flatten(1)
        observations = [seen]
        for step in range(self.horizon):
            with torch.no_grad():  # the choice is scored later, on the whole batch at once
                logits = self.discrete(seen).log_softmax(-1)
                clock = torch.empty_like(logits).exponential_()
                option = (logits - clock.log_()).argmax(-1)
                option_log_prob = logits.gather(-1, option.unsqueeze(-1)).squeeze(-1)
            mean = self.branch(seen, option)
            noise = torch.randn_like(mean)
            quantity = mean + self.sigma * noise
            log_prob = option_log_prob - 0.5 * noise.square().sum(-1) - self.normalizer

            ordering = option.to(self.dtype)
            order = ordering.unsqueeze(-1) * quantity.clamp_min(0.0)
            level = inventory[..., 0] - demand[:, step]
            cost = (
                HOLDING * level.clamp_min(0.0)
                + SHORTAGE * (-level).clamp_min(0.0)
                + PROCUREMENT * order
            ).sum(-1) + self.fixed * ordering
            after = torch.stack([level + inventory[..., 1], order], -1)
            kept.append((option, quantity, mean, log_prob, option_log_prob, -cost))
            inventory = scale_gradient(after, DISCOUNT)
            # The last observation is that of the value beyond the batch, discounted in the loss.
            seen = ((inventory if step < self.horizon - 1 else after) / DEMAND).flatten(1)
            observations.append(seen)
        columns = (torch.stack(column, 1) for column in zip(*kept, strict=True))
        return Trajectory(after, torch.stack(observations, 1), *columns)

    def branch(self, seen: Tensor, option: Tensor) -> Tensor:
        """Return the mean quantities of the options taken, ``(..., n)``."""
        raw = (self.continuous(seen) + self.skip(seen)).unflatten(-1, (2, self.num_items))
        branches = self.unit * F.softplus(raw + START, beta=SHARPNESS)
        index = option[..., None, None].expand(*option.shape, 1, self.num_items)
        return branches.gather(-2, index).squeeze(-2)

    # -- the update --------------------------------------------------------------------------------

    def collect(self) -> Trajectory:
        """Roll on from where the last batch ended, some instances afresh."""
        start = self.carried
        if start is not None:
            fresh = torch.rand(self.batch, device=self.device) < self.reset_fraction
            start = torch.where(fresh[:, None, None], self.empty(), start)
        batch = self.rollout(start)
        self.carried = batch.last.detach()
        return batch

    def iterate(self) -> dict[str, float]:
        """Collect a batch and update."""
        return self.update(self.collect())

    def update(self, batch: Trajectory) -> dict[str, float]:
        """One step on the graph, then passes over the detached data."""
        for group, multiplier in zip(self.optimizer.param_groups, self.multipliers, strict=True):
            group["lr"] = multiplier * LEARNING_RATE
        held = batch.observations[:, :-1].detach()
        final = batch.observations[:, -1]
        values = self.value(held).squeeze(-1)
        with torch.no_grad():
            last = self.value(final).squeeze(-1)
        reward, cost = self.rescale(batch.rewards, values.detach(), last)
        with torch.no_grad():
            advantages = self.advantages(reward.detach(), values.detach(), last)
            targets = advantages + values.detach()
            unit = advantages.std(correction=0)

        logits = self.discrete(batch.observations[:, :-1]).log_softmax(-1)
        pathwise = reward.mean() + DISCOUNT * self.value_of_state(final).mean() / self.horizon
        objective = self.surrogate(logits, batch.options, batch.option_log_probs, advantages)
        critic = (values - targets).square().mean()
        entropy = entropy_of(self.discrete(held).log_softmax(-1)).mean()
        terms = {
            "loss_pathwise": -pathwise,
            "loss_objective": -objective,
            "loss_critic": critic,
            "loss_entropy": -unit * entropy,
        }
        self.descend(terms)
        metrics = {key: float(term.detach()) for key, term in terms.items()}

        before = logits.detach()
        options = batch.options.flatten()
        seen, old = held.flatten(0, 1), batch.option_log_probs.flatten()
        flat_advantages, flat_targets = advantages.flatten(), targets.flatten()
        passes, kl = 0, self.divergence(held, before)
        while passes < self.epochs and kl <= self.target_kl:
            order = torch.randperm(len(seen), device=self.device)
            for rows in order.chunk(self.num_minibatches):
                advantage = flat_advantages[rows]
                logits = self.discrete(seen[rows]).log_softmax(-1)
                objective = self.surrogate(logits, options[rows], old[rows], advantage)
                value = self.value(seen[rows]).squeeze(-1)
                self.descend(
                    {
                        "loss_objective": -objective,
                        "loss_critic": (value - flat_targets[rows]).square().mean(),
                        "loss_entropy": -advantage.std(correction=0) * entropy_of(logits).mean(),
                    }
                )
            kl = self.divergence(held, before)
            passes += 1
        with torch.no_grad():
            moved = (self.branch(held, batch.options) - batch.means) / self.unit
        change = float(moved.square().mean().sqrt())
        self.adapt(0, (kl / self.target_kl) ** 0.5)
        self.adapt(1, change / self.target_action_change)
        return metrics | {"cost": cost, "kl": kl, "action_change": change}

    def rescale(self, rewards: Tensor, values: Tensor, last: Tensor) -> tuple[Tensor, float]:
        """Divide rewards by their running deviation, and take the average off; mean cost too."""
        raw = rewards.detach().double()
        self.reward_weight.mul_(DECAY).add_(1.0 - DECAY)
        share = (1.0 - DECAY) / self.reward_weight
        shift = raw.mean() - self.reward_mean
        spread = raw.var(correction=0) + (1.0 - share) * shift**2
        self.reward_variance.lerp_(spread, share)
        self.reward_mean.add_(share * shift)
        reward = rewards / self.reward_variance.sqrt().to(self.dtype)
        after = (values[:, 1:].sum() + last.sum()) / values.numel()
        average = reward.detach().mean() + DISCOUNT * after - values.mean()
        return reward - average, -float(raw.mean()) / self.num_items

    def advantages(self, rewards: Tensor, values: Tensor, last: Tensor) -> Tensor:
        """Generalised advantages ``(B, T)`` of an instance that goes on after the batch."""
        after = torch.cat([values[:, 1:], last.unsqueeze(1)], 1)
        errors = (rewards + DISCOUNT * after - values).unbind(1)
        found = [errors[-1]]
        for error in errors[-2::-1]:
            found.append(error + DISCOUNT * LAMBDA * found[-1])
        return torch.stack(found[::-1], 1)

    def value_of_state(self, final: Tensor) -> Tensor:
        """The critic's values, whose gradient goes to the state and not to the critic."""
        for parameter in self.groups[2]:
            parameter.requires_grad_(False)
        value = self.value(final).squeeze(-1)
        for parameter in self.groups[2]:
            parameter.requires_grad_(True)
        return value

    def surrogate(self, logits: Tensor, options: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
        """The clipped score function."""
        log_prob = logits.gather(-1, options.unsqueeze(-1)).squeeze(-1)
        ratio = (log_prob - old).exp()
        within = ratio.clamp(1.0 - CLIP, 1.0 + CLIP)
        return torch.minimum(ratio * advantages, within * advantages).mean()

    def descend(self, terms: dict[str, Tensor]) -> None:
        """One step of Adam, the gradient of each network clipped."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        for parameters in self.groups:
            nn.utils.clip_grad_norm_(parameters, self.max_norm, error_if_nonfinite=True)
        self.optimizer.step()

    @torch.no_grad()
    def divergence(self, held: Tensor, before: Tensor) -> float:
        """Mean KL divergence of today's choice from that before the update."""
        after = self.discrete(held).log_softmax(-1)
        return max(0.0, float((before.exp() * (before - after)).sum(-1).mean()))

    def adapt(self, component: int, moved: float) -> None:
        """Adapt a learning-rate multiplier to how far the policy moved."""
        now = self.multipliers[component]
        now = now / FACTOR if moved > 2.0 else now * FACTOR if moved < 0.5 else now
        self.multipliers[component] = min(1.0, max(LEAST_MULTIPLIER, now))


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy in nats of normalised log-probabilities."""
    return -(logits.exp() * logits).sum(-1)


def scale_gradient(value: Tensor, factor: float) -> Tensor:
    """The value itself, exactly, with its gradient multiplied by ``factor``."""
    return torch.lerp(value.detach(), value, factor)
