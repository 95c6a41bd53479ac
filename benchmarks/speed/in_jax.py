"""Hybrid Policy Optimization in plain JAX: what the library's speed is compared with beside torch.

As somebody would write it who knows JAX and needs nothing else: a scan over the steps, one jitted
function for a rollout, for its gradient and for a whole update, Adam as pure functions. What it
computes is what :class:`~benchmarks.speed.hand.HandWritten` computes, for any problem whose
equations are given as :class:`Equations`. All random numbers are arguments of the pure functions,
so that :mod:`benchmarks.speed.agreement` can hold the numbers against PyTorch's.

Shapes: T steps come first, then B instances; n coordinates of the continuous action, M discrete
actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.speed import hand

BETAS, EPSILON = (0.9, 0.95), 1e-5  # of Adam
COMPONENTS = ("discrete", "continuous", "value")
Array = jax.Array
Params = dict[str, Any]  # by component
State = tuple[Array, ...]  # (B, ...) each


class Equations(NamedTuple):
    """A problem: what differs from one to the next.

    Attributes:
        num_discrete: number M of discrete actions.
        dimension: dimension n of the continuous action.
        unit: natural size of a continuous action.
        mean: from raw outputs of the network to means of the continuous action, of any shape.
        dynamics: from state, one-hot discrete action ``(B, M)``, continuous action ``(B, n)`` and
            noise to the next state and the reward ``(B,)``.
        observe: from a state to the observation ``(B, k)``.
        draw_start: from a key and B to a state.
        draw_noise: from a key and ``(T, B)`` to the noise of a rollout.
    """

    num_discrete: int
    dimension: int
    unit: float
    mean: Callable[[Array], Array]
    dynamics: Callable[[State, Array, Array, Array], tuple[State, Array]]
    observe: Callable[[State], Array]
    draw_start: Callable[[Array, int], State]
    draw_noise: Callable[[Array, tuple[int, int]], Array]


class Draws(NamedTuple):
    """All random numbers of a rollout: ``(T, B, ...)``.

    Attributes:
        gumbel: of the discrete action, ``(T, B, M)``.
        normal: of the continuous one, ``(T, B, n)``.
        noise: of the environment.
    """

    gumbel: Array
    normal: Array
    noise: Array


class Steps(NamedTuple):
    """What a rollout keeps of its steps, ``(T, B, ...)``; see ``hand.Trajectory``."""

    observations: Array
    options: Array
    actions: Array
    means: Array
    log_probs: Array
    option_log_probs: Array
    rewards: Array


class Learned(NamedTuple):
    """Everything that an update changes.

    Attributes:
        params: the networks.
        first: Adam's mean of the gradients.
        second: its mean of their squares.
        counts: number of its steps, by component.
        multipliers: of the learning rate of each component.
        moments: running mean and variance of the rewards, and the weight that they have.
        state: where the last batch ended.
    """

    params: Params
    first: Params
    second: Params
    counts: dict[str, Array]
    multipliers: dict[str, Array]
    moments: tuple[Array, Array, Array]
    state: State


class InJax:
    """Rollout and update of one problem.

    Args:
        equations: the problem.
        batch: number of instances B.
        horizon: number of steps T.
        scale: standard deviation of a continuous action, in units of its natural size.
        target_kl: see ``HandWritten``, as what follows.
        epochs: passes over the detached data.
        num_minibatches: minibatches in a pass.
        target_action_change: change of the mean action that its step size adapts to.
        reset_fraction: share of the instances that start a batch afresh.
        discount: the discount factor.
        dtype: floating-point type.

    Raises:
        ValueError: the data of a batch cannot be split into equal minibatches.
    """

    def __init__(
        self,
        equations: Equations,
        batch: int,
        horizon: int,
        *,
        scale: float,
        target_kl: float,
        epochs: int = 2,
        num_minibatches: int = 4,
        target_action_change: float = 0.1,
        reset_fraction: float = 1.0,
        discount: float = hand.DISCOUNT,
        dtype: Any = jnp.float32,
    ) -> None:
        if batch * horizon % num_minibatches:
            raise ValueError(
                f"batch x horizon must be a multiple of num_minibatches={num_minibatches}, got "
                f"{batch} x {horizon}: shapes are fixed in JAX. Choose another batch."
            )
        self.equations, self.batch, self.horizon = equations, batch, horizon
        self.sigma, self.target_kl = scale * equations.unit, target_kl
        self.epochs, self.num_minibatches = epochs, num_minibatches
        self.target_action_change, self.reset_fraction = target_action_change, reset_fraction
        self.discount, self.dtype = discount, dtype
        self.jitted_rollout = jax.jit(self._drawn_rollout)
        self.jitted_gradient = jax.jit(jax.grad(self._mean_reward, has_aux=True))
        self.jitted_update = jax.jit(self._drawn_update)

    # -- random numbers, drawn as JAX draws them ---------------------------------------------------

    def draw(self, key: Array) -> Draws:
        """Draw the random numbers of a rollout."""
        shape = (self.horizon, self.batch)
        gumbel, normal, noise = jax.random.split(key, 3)
        return Draws(
            jax.random.gumbel(gumbel, (*shape, self.equations.num_discrete), self.dtype),
            jax.random.normal(normal, (*shape, self.equations.dimension), self.dtype),
            self.equations.draw_noise(noise, shape),
        )

    def draw_orders(self, key: Array) -> Array:
        """Draw the order of the data in each pass, ``(epochs, T B)``.

        One sort of random bits: ``jax.random.permutation`` sorts twice.
        """
        bits = jax.random.bits(key, (self.epochs, self.horizon * self.batch))
        return jnp.argsort(bits, axis=-1)

    def _drawn_rollout(self, params: Params, key: Array) -> tuple[State, Steps]:
        start, draws = jax.random.split(key)
        return self.rollout(params, self.equations.draw_start(start, self.batch), self.draw(draws))

    def _mean_reward(self, params: Params, key: Array) -> tuple[Array, tuple[State, Steps]]:
        found = self._drawn_rollout(params, key)
        return found[1].rewards.mean(), found

    def _drawn_update(self, learned: Learned, key: Array) -> tuple[Learned, dict[str, Array]]:
        resets, start, draws, orders = jax.random.split(key, 4)
        fresh = jax.random.uniform(resets, (self.batch,)) < self.reset_fraction
        begin = self.equations.draw_start(start, self.batch)

        def renewed(new: Array, old: Array) -> Array:
            return jnp.where(fresh.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        begin = jax.tree.map(renewed, begin, learned.state)
        learned = learned._replace(state=begin)
        return self.update(learned, self.draw(draws), self.draw_orders(orders))

    # -- the rollout -------------------------------------------------------------------------------

    def rollout(self, params: Params, start: State, draws: Draws) -> tuple[State, Steps]:
        """Roll the policy out; gradients shrink by the discount at every step.

        Returns:
            The state after the last step, and what is kept of the steps.
        """
        spread = self.equations.dimension * (math.log(self.sigma) + 0.5 * math.log(2 * math.pi))

        def step(carried: State, drawn: Draws) -> tuple[State, Steps]:
            # At the first step nothing that is learned lies before it.
            state = jax.tree.map(partial(scale_gradient, factor=self.discount), carried)
            seen = self.equations.observe(state)
            logits = lax.stop_gradient(choice(params, seen))
            option = jnp.argmax(logits + drawn.gumbel, -1)
            taken = jax.nn.one_hot(option, logits.shape[-1], dtype=logits.dtype)
            option_log_prob = (logits * taken).sum(-1)
            mean = self.branch(params, seen, taken)
            action = mean + self.sigma * drawn.normal
            log_prob = option_log_prob - 0.5 * jnp.square(drawn.normal).sum(-1) - spread
            after, reward = self.equations.dynamics(state, taken, action, drawn.noise)
            return after, Steps(seen, option, action, mean, log_prob, option_log_prob, reward)

        return lax.scan(step, start, draws)

    def branch(self, params: Params, seen: Array, taken: Array) -> Array:
        """Return the mean action of the discrete actions taken, given as one-hot ``(..., M)``."""
        part = params["continuous"]
        raw = mlp(part["net"], seen, jax.nn.relu) + seen @ part["skip"]
        raw = raw.reshape(*raw.shape[:-1], self.equations.num_discrete, -1)
        # Products with 0 and 1 are faster than a gather, whose gradient is a scatter.
        return (self.equations.mean(raw) * taken[..., None]).sum(-2)

    # -- the update --------------------------------------------------------------------------------

    def begin(self, params: Params, state: State) -> Learned:
        """Return what a training begins with."""
        zeros, none = jax.tree.map(jnp.zeros_like, params), jnp.zeros((), self.dtype)
        first = jnp.asarray(hand.FIRST_MULTIPLIER, self.dtype)
        multipliers = {"discrete": first, "continuous": first, "value": jnp.ones((), self.dtype)}
        counts = dict.fromkeys(params, none)
        return Learned(params, zeros, zeros, counts, multipliers, (none, none, none), state)

    def update(
        self, learned: Learned, draws: Draws, orders: Array
    ) -> tuple[Learned, dict[str, Array]]:
        """Roll out, take one step on the whole graph, then passes over the detached data.

        Args:
            learned: what was learned so far, and where the batch starts.
            draws: the random numbers of the rollout.
            orders: those of the passes: row of each entry, ``(epochs, T B)``, time first.
        """
        gradient = jax.grad(self.whole_loss, has_aux=True)
        start = learned.state
        grads, found = gradient(learned.params, start, draws, learned.moments)
        metrics, steps, held, before, advantages, targets, moments, last = found
        learned = descend(learned, grads)._replace(moments=moments, state=last)
        data = (held, steps.options, steps.option_log_probs, advantages, targets)
        data = jax.tree.map(lambda entry: entry.reshape(-1, *entry.shape[2:]), data)

        def minibatch(learned: Learned, rows: Array) -> tuple[Learned, None]:
            part = jax.tree.map(lambda entry: entry[rows], data)
            # The detached data say nothing of the continuous action, whose network rests.
            moving = {name: learned.params[name] for name in ("discrete", "value")}
            return descend(learned, jax.grad(self.detached_loss)(moving, *part)), None

        def one_pass(passed: tuple) -> tuple:
            done, _, learned = passed
            learned, _ = lax.scan(
                minibatch, learned, orders[done].reshape(self.num_minibatches, -1)
            )
            return done + 1, divergence(learned.params, held, before), learned

        def goes_on(passed: tuple) -> Array:
            return (passed[0] < self.epochs) & (passed[1] <= self.target_kl)

        kl = divergence(learned.params, held, before)
        _, kl, learned = lax.while_loop(goes_on, one_pass, (0, kl, learned))
        taken = jax.nn.one_hot(steps.options, self.equations.num_discrete, dtype=self.dtype)
        moved = (self.branch(learned.params, held, taken) - steps.means) / self.equations.unit
        change = jnp.sqrt(jnp.square(moved).mean())
        adapted = {
            "discrete": adapt(learned.multipliers["discrete"], jnp.sqrt(kl / self.target_kl)),
            "continuous": adapt(
                learned.multipliers["continuous"], change / self.target_action_change
            ),
            "value": learned.multipliers["value"],
        }
        learned = learned._replace(multipliers=adapted)
        return learned, metrics | {"kl": kl, "action_change": change}

    def whole_loss(
        self, params: Params, start: State, draws: Draws, moments: tuple
    ) -> tuple[Array, tuple]:
        """Return pathwise, score-function, critic and entropy term of a rollout, and its data."""
        last, steps = self.rollout(params, start, draws)
        held = lax.stop_gradient(steps.observations)
        value = value_of(params, held)
        # Its gradient goes to the state and not to the critic.
        beyond = value_of(lax.stop_gradient(params), self.equations.observe(last))
        ahead = lax.stop_gradient(beyond)
        values = lax.stop_gradient(value)
        moments, reward = self.rescale(moments, steps.rewards, values, ahead)
        advantages = self.advantages(lax.stop_gradient(reward), values, ahead)
        targets = advantages + values
        pathwise = reward.mean() + self.discount * beyond.mean() / self.horizon
        logits = choice(params, steps.observations)
        metrics = {
            "loss_pathwise": -pathwise,
            "loss_objective": -surrogate(logits, steps.options, steps.option_log_probs, advantages),
            "loss_critic": jnp.square(value - targets).mean(),
            "loss_entropy": -advantages.std() * entropy_of(choice(params, held)).mean(),
        }
        before = lax.stop_gradient(logits)
        data = (metrics, steps, held, before, advantages, targets, moments, last)
        return sum(metrics.values()), lax.stop_gradient(data)

    def detached_loss(
        self,
        params: Params,
        seen: Array,
        options: Array,
        old: Array,
        advantages: Array,
        targets: Array,
    ) -> Array:
        """Return score-function, critic and entropy term of a minibatch."""
        logits = choice(params, seen)
        objective = surrogate(logits, options, old, advantages)
        critic = jnp.square(value_of(params, seen) - targets).mean()
        return critic - objective - advantages.std() * entropy_of(logits).mean()

    def rescale(
        self, moments: tuple, rewards: Array, values: Array, last: Array
    ) -> tuple[tuple, Array]:
        """Divide rewards by their running deviation, and take the average off."""
        mean, variance, weight = moments
        raw = lax.stop_gradient(rewards)
        weight = hand.DECAY * weight + 1.0 - hand.DECAY
        share = (1.0 - hand.DECAY) / weight
        shift = raw.mean() - mean
        spread = raw.var() + (1.0 - share) * jnp.square(shift)
        variance = variance + share * (spread - variance)
        reward = rewards / jnp.sqrt(variance)
        after = (values[1:].sum() + last.sum()) / values.size
        average = lax.stop_gradient(reward).mean() + self.discount * after - values.mean()
        return (mean + share * shift, variance, weight), reward - average

    def advantages(self, rewards: Array, values: Array, last: Array) -> Array:
        """Generalised advantages ``(T, B)`` of an instance that goes on after the batch."""
        after = jnp.concatenate([values[1:], last[None]])
        errors = rewards + self.discount * after - values

        def step(later: Array, error: Array) -> tuple[Array, Array]:
            now = error + self.discount * hand.LAMBDA * later
            return now, now

        return lax.scan(step, jnp.zeros_like(last), errors, reverse=True)[1]


def mlp(layers: list, inputs: Array, activation: Callable[[Array], Array]) -> Array:
    """Call a multilayer perceptron, given as its weights ``(inputs, outputs)`` and biases."""
    *inner, (weight, bias) = layers
    for inner_weight, inner_bias in inner:
        inputs = activation(inputs @ inner_weight + inner_bias)
    return inputs @ weight + bias


def choice(params: Params, seen: Array) -> Array:
    """Return the log-probabilities of the discrete actions."""
    return jax.nn.log_softmax(mlp(params["discrete"], seen, jax.nn.relu))


def value_of(params: Params, seen: Array) -> Array:
    """Return the critic's values."""
    return mlp(params["value"], seen, jnp.tanh)[..., 0]


def surrogate(logits: Array, options: Array, old: Array, advantages: Array) -> Array:
    """Return the clipped score function."""
    taken = jax.nn.one_hot(options, logits.shape[-1], dtype=logits.dtype)
    ratio = jnp.exp((logits * taken).sum(-1) - old)
    within = jnp.clip(ratio, 1.0 - hand.CLIP, 1.0 + hand.CLIP)
    return jnp.minimum(ratio * advantages, within * advantages).mean()


def descend(learned: Learned, grads: Params) -> Learned:
    """Take one step of Adam in the components that have a gradient, each of them clipped."""
    moved: dict[str, dict] = {name: {} for name in ("params", "first", "second", "counts")}
    for name, grad in grads.items():
        count = learned.counts[name] + 1
        squares = [jnp.square(entry).sum() for entry in jax.tree.leaves(grad)]
        share = jnp.minimum(1.0, hand.MAX_NORM / (jnp.sqrt(sum(squares)) + 1e-6))
        step = partial(
            adam, share=share, rate=hand.LEARNING_RATE * learned.multipliers[name], count=count
        )
        entries = (learned.params[name], learned.first[name], learned.second[name])
        found = jax.tree.map(step, grad, *entries)
        triples = jax.tree.transpose(jax.tree.structure(grad), jax.tree.structure((0, 0, 0)), found)
        for field, value in zip(moved, (*triples, count), strict=True):
            moved[field][name] = value
    return learned._replace(**{field: getattr(learned, field) | moved[field] for field in moved})


def adam(
    grad: Array,
    param: Array,
    first: Array,
    second: Array,
    *,
    share: Array,
    rate: Array,
    count: Array,
) -> tuple[Array, Array, Array]:
    """Move one parameter, given its gradient and the share of it that clipping leaves."""
    first = BETAS[0] * first + (1.0 - BETAS[0]) * share * grad
    second = BETAS[1] * second + (1.0 - BETAS[1]) * jnp.square(share * grad)
    deviation = jnp.sqrt(second / (1.0 - BETAS[1] ** count)) + EPSILON
    return param - rate * first / (1.0 - BETAS[0] ** count) / deviation, first, second


def divergence(params: Params, held: Array, before: Array) -> Array:
    """Mean KL divergence of today's choice from that before the update."""
    after = choice(params, held)
    return jnp.maximum(0.0, (jnp.exp(before) * (before - after)).sum(-1).mean())


def adapt(now: Array, moved: Array) -> Array:
    """Adapt a learning-rate multiplier to how far the policy moved."""
    slower, faster = now / hand.FACTOR, now * hand.FACTOR
    now = jnp.where(moved > 2.0, slower, jnp.where(moved < 0.5, faster, now))
    return jnp.clip(now, hand.LEAST_MULTIPLIER, 1.0)


def entropy_of(logits: Array) -> Array:
    """Entropy in nats of normalised log-probabilities."""
    return -(jnp.exp(logits) * logits).sum(-1)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def scale_gradient(value: Array, factor: float) -> Array:
    """The value itself, exactly, with its gradient multiplied by ``factor``."""
    return value


@scale_gradient.defjvp
def _scaled(factor: float, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return primals[0], factor * tangents[0]
