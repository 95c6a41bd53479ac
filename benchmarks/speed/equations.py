"""The equations of the benchmark's problems in JAX, each the few lines that they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import stats

from benchmarks.speed import car, hand
from benchmarks.speed.in_jax import Array, Equations, State
from benchmarks.suite import battery
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import action_range

MOST_DEMAND = 60  # a Poisson demand of mean 10 beyond it has a probability of 1e-27


def inventory(env: DifferentiableEnv, dtype: Any) -> Equations:
    """Return the inventory problem of the hand-written yardstick; its state is ``(B, n, 2)``."""
    n, unit = env.continuous_dim, _unit(env)
    # One uniform number a demand, looked up in the table of its distribution: exact, and several
    # times faster than jax.random.poisson, which rejects.
    table = jnp.asarray(stats.poisson.cdf(np.arange(MOST_DEMAND), hand.DEMAND), dtype)

    def mean(raw: Array) -> Array:
        return unit * jax.nn.softplus(hand.SHARPNESS * (raw + hand.START)) / hand.SHARPNESS

    def dynamics(state: State, taken: Array, quantity: Array, demand: Array) -> tuple:
        (stock,) = state
        ordering = taken[:, 1]
        order = ordering[:, None] * jax.nn.relu(quantity)
        level = stock[..., 0] - demand
        cost = hand.HOLDING * jax.nn.relu(level) + hand.SHORTAGE * jax.nn.relu(-level)
        cost = (cost + hand.PROCUREMENT * order).sum(-1) + hand.FIXED * n * ordering
        return (jnp.stack([level + stock[..., 1], order], -1),), -cost

    def observe(state: State) -> Array:
        return state[0].reshape(len(state[0]), -1) / hand.DEMAND

    def draw_start(key: Array, batch: int) -> State:
        return (jnp.zeros((batch, n, 2), dtype),)

    def draw_noise(key: Array, shape: tuple[int, int]) -> Array:
        share = jax.random.uniform(key, (*shape, n), dtype)
        return jnp.searchsorted(table, share, side="right").astype(dtype)

    return Equations(2, n, unit, mean, dynamics, observe, draw_start, draw_noise)


def switched_lqr(env: Any, dtype: Any) -> Equations:
    """Return the switched linear system; its state is x, ``(B, n)``."""
    A, B, Q, R = (jnp.asarray(matrix.numpy(), dtype) for matrix in (env.A, env.B, env.Q, env.R))
    n, M, limit, scale = env.continuous_dim, env.num_discrete, env.state_limit, env.initial_scale
    unit, deviation = _unit(env), env.process_noise
    # One product with the inputs of all modes, of which each instance takes its own.
    inputs = B.transpose(2, 0, 1).reshape(n, -1)

    def dynamics(state: State, taken: Array, u: Array, noise: Array) -> tuple:
        (x,) = state
        # A, Q and R are the same in all modes of this system.
        cost = (x * (x @ Q[0].T)).sum(-1) + (u * (u @ R[0].T)).sum(-1)
        commanded = ((u @ inputs).reshape(-1, M, n) * taken[..., None]).sum(-2)
        return (jnp.clip(x @ A[0].T + commanded + noise, -limit, limit),), -cost

    def draw_start(key: Array, batch: int) -> State:
        return (scale * jax.random.uniform(key, (batch, n), dtype, -1.0, 1.0),)

    return Equations(
        num_discrete=M,
        dimension=n,
        unit=unit,
        mean=lambda raw: unit * raw,
        dynamics=dynamics,
        observe=lambda state: state[0] / scale,
        draw_start=draw_start,
        draw_noise=lambda key, shape: deviation * jax.random.normal(key, (*shape, n), dtype),
    )


def battery_on_a_price(env: DifferentiableEnv, dtype: Any) -> Equations:
    """Return the battery; the state is its charge and the price, ``(B, 1)`` each."""

    def dynamics(state: State, taken: Array, power: Array, noise: Array) -> tuple:
        (charge, price), power = state, jnp.clip(power, 0.0, 1.0)
        room, stock = (battery.CAPACITY - charge) / battery.EFFICIENCY, battery.EFFICIENCY * charge
        bought = jnp.where(taken[:, 1:2] > 0, jnp.minimum(power, room), 0.0)
        sold = jnp.where(taken[:, 2:3] > 0, jnp.minimum(power, stock), 0.0)
        after = charge + battery.EFFICIENCY * bought - sold / battery.EFFICIENCY
        reward = price * (sold - bought) - battery.WEAR * (1.0 - taken[:, :1])
        later = battery.MEAN + battery.KEPT * (price - battery.MEAN) + battery.SHOCK * noise
        return (jnp.clip(after, 0.0, battery.CAPACITY), later), reward[:, 0]

    def draw_start(key: Array, batch: int) -> State:
        first, second = jax.random.split(key)
        spread = battery.SHOCK / (1 - battery.KEPT**2) ** 0.5
        price = battery.MEAN + spread * jax.random.normal(first, (batch, 1), dtype)
        return battery.CAPACITY * jax.random.uniform(second, (batch, 1), dtype), price

    return Equations(
        num_discrete=3,
        dimension=1,
        unit=_unit(env),
        mean=partial(_between, low=0.0, high=1.0),
        dynamics=dynamics,
        observe=lambda s: jnp.concatenate([s[0] / 2 - 1, (s[1] - battery.MEAN) / 20], -1),
        draw_start=draw_start,
        draw_noise=partial(_normal, dtype=dtype),
    )


def car_in_gears(env: DifferentiableEnv, dtype: Any) -> Equations:
    """Return the car; the state is its speed and the one to follow, ``(B, 1)`` each."""
    pull, top = (jnp.asarray(row, dtype)[:, None] for row in (car.PULL, car.TOP))

    def dynamics(state: State, taken: Array, throttle: Array, noise: Array) -> tuple:
        (speed, wanted), throttle = state, jnp.clip(throttle, -1.0, 1.0)
        force = (taken @ pull) * throttle * jnp.exp(-jnp.square(speed / (taken @ top)))
        after = speed + car.STEP * (force - car.DRAG * speed * jnp.abs(speed))
        cost = jnp.square((after - wanted) / car.SPREAD) + car.FUEL * jnp.square(throttle)
        return (after, car.MEAN + car.KEPT * (wanted - car.MEAN) + car.SHOCK * noise), -cost[:, 0]

    def observe(state: State) -> Array:
        speed, wanted = state
        return jnp.concatenate([(speed - car.MEAN) / car.UNIT, (wanted - speed) / car.SPREAD], -1)

    def draw_start(key: Array, batch: int) -> State:
        first, second = jax.random.split(key)
        wanted = car.MEAN + car.SPREAD * jax.random.normal(first, (batch, 1), dtype)
        return 2 * car.MEAN * jax.random.uniform(second, (batch, 1), dtype), wanted

    return Equations(
        num_discrete=len(car.PULL),
        dimension=1,
        unit=_unit(env),
        mean=partial(_between, low=-1.0, high=1.0),
        dynamics=dynamics,
        observe=observe,
        draw_start=draw_start,
        draw_noise=partial(_normal, dtype=dtype),
    )


EQUATIONS: dict[str, Callable[[Any, Any], Equations]] = {
    "inventory": inventory,
    "switched_lqr": switched_lqr,
    "battery": battery_on_a_price,
    "car": car_in_gears,
}


def _unit(env: DifferentiableEnv) -> float:
    """Return the natural size of the continuous actions, which all share."""
    return float(env.action_scale.flatten()[0])


def _normal(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
    return jax.random.normal(key, (*shape, 1), dtype)


def _above_zero(raw: Array, unit: float) -> Array:
    return unit * jax.nn.softplus(hand.SHARPNESS * (raw + hand.START)) / hand.SHARPNESS


def _between(raw: Array, low: float, high: float) -> Array:
    """Return the library's range of two ends: its gradient falls more slowly than a sigmoid's."""
    share = jax.nn.sigmoid(raw)
    inside = jnp.clip(raw, -action_range._LINEAR, action_range._LINEAR)
    beyond = raw - inside
    steady = jax.nn.sigmoid(inside) + action_range._SLOPE * beyond / (1 + 0.5 * jnp.abs(beyond))
    share = lax.stop_gradient(share) + (steady - lax.stop_gradient(steady))
    return low + (high - low) * share
