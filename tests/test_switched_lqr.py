"""The switched LQR against its equations, and its optimum against every mode sequence."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_discrete_are
from tensordict import TensorDict
from torch.autograd.gradcheck import gradcheck
from torchrl.envs.utils import check_env_specs

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.experiments.build import build_env
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.problems import SwitchedLQREnv
from hpo_torchrl.problems.switched_lqr import fixed_mode_cost, switched_lqr_optimum
from hpo_torchrl.problems.switched_lqr.system import System

EXAMPLE = {
    "A": [[[2, 1], [0, 1]], [[2, 1], [0, 0.5]]],
    "B": [[[1], [1]], [[1], [2]]],
    "Q": [[1, 0], [0, 1]],
    "R": [[1]],
}
EYE = np.eye(2)


def random_system(M, n, m, seed=0, growth=1.2, per_mode_cost=True):
    """Matrices without any structure; Q may be singular."""
    rng = np.random.default_rng(seed)
    A = growth * rng.standard_normal((M, n, n)) / math.sqrt(n)
    B = rng.standard_normal((M, n, m))
    root = rng.standard_normal((M, n, max(1, n - 1)))
    Q, R = root @ root.mT, np.stack([np.eye(m) * (0.1 + rng.random()) for _ in range(M)])
    return (A, B, Q, R) if per_mode_cost else (A, B, Q[0], R[0])


def recipe_matrices(dim, num_modes):
    env = SwitchedLQREnv.from_recipe(dim, num_modes, dtype=torch.float64)
    return env.A, env.B, env.Q, env.R


def env_of(matrices, **arguments):
    return SwitchedLQREnv(*matrices, **{"dtype": torch.float64, "seed": 0} | arguments)


def play(env, x0, modes, inputs, noise=None):
    """Step through given actions ``(B, T)`` from a given state; stack states and rewards."""
    td = env.reset(TensorDict({"x": x0}, env.batch_size), set_state=True)
    env.load_noise(noise)
    states, rewards = [], []
    for t in range(modes.shape[-1]):
        action = {"discrete": modes[..., t], "continuous": inputs[..., t, :]}
        td = env.step(td.update({"action": TensorDict(action, td.batch_size)}))["next"]
        states.append(td["x"])
        rewards.append(td["reward"][..., 0])
    return torch.stack(states, -2), torch.stack(rewards, -1)


def slow_play(A, B, Q, R, x, modes, inputs, noise, limit):
    states, rewards = [], []
    for d, u, w in zip(modes, inputs, noise, strict=True):
        rewards.append(-(x @ Q[d] @ x + u @ R[d] @ u))
        x = np.clip(A[d] @ x + B[d] @ u + w, -limit, limit)
        states.append(x)
    return np.array(states), np.array(rewards)


# -- the environment -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=10)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4)),
    batch=st.lists(st.integers(1, 3), max_size=2),
    horizon=st.integers(1, 5),
    noise=st.sampled_from([0.0, 0.3]),
    observe_time=st.booleans(),
    per_mode_cost=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_any_sizes_make_a_sound_environment(
    sizes, batch, horizon, noise, observe_time, per_mode_cost, dtype, seed
):
    M, n, m = sizes
    env = SwitchedLQREnv(
        *random_system(M, n, m, seed, per_mode_cost=per_mode_cost),
        horizon=horizon,
        process_noise=noise,
        observe_time=observe_time,
        batch_size=batch,
        dtype=dtype,
        seed=seed,
    )
    check_env_specs(env, break_when_any_done="both")
    assert env.reward_spec.dtype == dtype
    rollout = env.rollout(7, break_when_any_done=False)
    assert rollout["x"].shape == (*batch, 7, n)
    assert rollout["observation"].shape == (*batch, 7, n + observe_time)
    assert rollout["action", "continuous"].shape == (*batch, 7, m)
    assert (env.num_discrete, env.cost_units, env.A.shape) == (M, n, (M, n, n))
    assert (rollout["next", "reward"] <= 0).all()
    assert rollout["next", "x"].abs().max() <= 100
    ends = rollout["next", "terminated"].squeeze(-1).int().sum(-1)
    assert (ends == 7 // horizon).all()
    assert not rollout["next", "truncated"].any()


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 1), (3, 3, 5), (3, 4, 2)])
def test_dynamics_follow_the_equations(sizes):
    M, n, m = sizes
    matrices = random_system(*sizes)
    env = env_of(matrices, batch_size=5, process_noise=1.0, horizon=9, state_limit=12.0)
    x0, modes = 5 * torch.randn(5, n).double(), torch.randint(M, (5, 9))
    inputs, w = torch.randn(5, 9, m).double(), env.sample_noise(9)
    states, rewards = play(env, x0, modes, inputs, w)
    for b in range(5):
        inputs_b = (value[b].numpy() for value in (x0, modes, inputs, w))
        slow = slow_play(*matrices, *inputs_b, limit=12.0)
        np.testing.assert_allclose(states[b], slow[0], rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(rewards[b], slow[1], rtol=1e-10)


def test_dynamics_map_and_are_pure():
    A, B, Q, R = random_system(3, 4, 2)
    state = {"x": torch.randn(7, 4).double()}
    action = {"discrete": torch.randint(3, (7,)), "continuous": torch.randn(7, 2).double()}
    inputs = (state, action, torch.randn(7, 4).double())
    for transitions in (A, A[[0, 0, 0]]):
        env = env_of((transitions, B, Q, R))
        torch.testing.assert_close(torch.vmap(env.dynamics)(*inputs), env.dynamics(*inputs))


def test_the_guard_clips_and_passes_no_gradient():
    env = env_of(([[[2.0]], [[0.5]]], [[[1.0]], [[1.0]]], EYE[:1, :1], EYE[:1, :1]), batch_size=2)
    x0 = torch.full((2, 1), 90.0).double().requires_grad_()
    states, _ = play(env, x0, torch.tensor([[0], [1]]), torch.zeros(2, 1, 1).double())
    assert states.flatten().tolist() == [100.0, 45.0]
    assert torch.autograd.grad(states.sum(), x0)[0].flatten().tolist() == [0.0, 0.5]


def test_gradients_agree_with_finite_differences():
    env = env_of(random_system(3, 3, 2), batch_size=2, process_noise=0.2)
    inputs = torch.randn(2, 3).double(), torch.randn(2, 4, 2).double()
    modes, w = torch.randint(3, (2, 4)), env.sample_noise(4)
    assert gradcheck(
        lambda x, u: play(env, x, modes, u, w)[1].sum(-1), [v.requires_grad_() for v in inputs]
    )


@pytest.mark.parametrize("observe_time", [False, True])
def test_both_rollout_routes_are_equal(observe_time):
    runs, arguments = [], {"batch_size": 6, "horizon": 4, "process_noise": 0.1}
    for route in ("functional", "general"):
        env = env_of(random_system(3, 3, 2), observe_time=observe_time, **arguments)
        torch.manual_seed(1)
        policy = HybridPolicy.for_env(env, hidden=(8,), scale=0.3)
        rollout = differentiable_rollout(env, policy, 7, route=route)
        loss = rollout["next", "reward"].sum()
        gradients = torch.autograd.grad(loss, policy.parameters(), allow_unused=True)
        runs.append((dict(rollout.items(True, True)), gradients))
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def test_the_observation_is_of_order_one_and_ends_with_the_time():
    env = SwitchedLQREnv.from_recipe(4, 2, batch_size=2000, initial_range=6.0, horizon=5, seed=0)
    start = env.reset()
    assert start["x"].abs().max() <= 3.0  # 6 / sqrt(4)
    assert start["x"].std().item() == pytest.approx(3 / math.sqrt(3), rel=0.03)
    torch.testing.assert_close(start["observation"][:, :4], start["x"] / 3)
    times = env.rollout(5)["observation"][0, :, -1]
    torch.testing.assert_close(times, torch.arange(5) / 5)
    assert env.action_scale.tolist() == [3.0] * 4
    # So has the process noise the spread it should.
    env = SwitchedLQREnv.from_recipe(3, 2, batch_size=500, process_noise=0.7, seed=0)
    drawn = env.sample_noise(40)
    assert drawn.mean().abs() < 0.01
    assert drawn.std().item() == pytest.approx(0.7, rel=0.01)
    assert not SwitchedLQREnv.from_recipe(3, 2).sample_noise(5).any()


def test_recipe():
    env = SwitchedLQREnv.from_recipe(7, 3, dtype=torch.float64)
    Z = np.random.default_rng(0).standard_normal((7, 7))
    Z = (Z + Z.T) / 2
    A = 1.10 * np.eye(7) + 0.05 * Z / np.abs(Z).max()
    gains = [np.array([0, 0, 0, 1, 1, 2, 2]) == mode for mode in range(3)]
    for mode in range(3):
        np.testing.assert_allclose(env.A[mode], A)
        np.testing.assert_allclose(env.B[mode], np.diag(np.where(gains[mode], 1.0, 0.15)))
        np.testing.assert_allclose(env.Q[mode], np.eye(7))
        np.testing.assert_allclose(env.R[mode], 0.1 * np.eye(7))
    other = SwitchedLQREnv.from_recipe(7, 3, recipe_seed=1, dtype=torch.float64)
    assert not torch.equal(other.A, env.A)


def test_configuration_names():
    small = ["env=switched_lqr", "env.dim=4", "env.num_modes=3", "env.horizon=7"]
    assert build_env(compose_config(small)).num_discrete == 3
    assert build_env(compose_config(["env=switched_lqr_2d"])).continuous_dim == 1
    with pytest.raises(ValueError, match=r"env\.modes=3"):
        compose_config([*small, "env.modes=3"])


# -- the optimum ---------------------------------------------------------------------------------


def sequence_cost(A, B, Q, R, modes, x0):
    """The cost of a mode sequence with its best inputs, as one least-squares problem."""
    n, m, T = A.shape[1], B.shape[2], len(modes)
    free, forced, cost = np.eye(n), np.zeros((n, T * m)), 0.0
    H, G, F = np.zeros((T * m, T * m)), np.zeros((T * m, n)), np.zeros((n, n))
    for t, d in enumerate(modes):
        H += forced.T @ Q[d] @ forced
        G += forced.T @ Q[d] @ free
        F += free.T @ Q[d] @ free
        block = slice(t * m, (t + 1) * m)
        H[block, block] += R[d]
        free, forced = A[d] @ free, A[d] @ forced
        forced[:, block] += B[d]
    cost = F - G.T @ np.linalg.solve(H, G)
    return np.einsum("bi,ij,bj->b", x0, cost, x0)


SYSTEMS = [(1, 2, 1, 6), (2, 1, 1, 7), (2, 3, 2, 7), (2, 2, 3, 7), (3, 3, 1, 5), (3, 2, 2, 5)]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("M", "n", "m", "horizon"), SYSTEMS)
def test_optimum_equals_the_best_of_all_sequences(M, n, m, horizon, seed):
    matrices = random_system(M, n, m, seed)
    x0 = np.random.default_rng(seed).standard_normal((30, n))
    sequences = itertools.product(range(M), repeat=horizon)
    best = np.min([sequence_cost(*matrices, modes, x0) for modes in sequences], 0)
    exact = switched_lqr_optimum(*matrices, horizon)
    np.testing.assert_allclose(exact.cost(x0), best, rtol=1e-10)
    np.testing.assert_allclose(exact.lower_bound(x0), best, rtol=1e-9)
    fixed = [sequence_cost(*matrices, [d] * horizon, x0) for d in range(M)]
    np.testing.assert_allclose(fixed_mode_cost(*matrices, horizon, x0), fixed, rtol=1e-9)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("M", "n", "m"), [(2, 2, 1), (2, 3, 3), (3, 3, 2)])
def test_bounds_hold_at_any_tolerance(M, n, m, seed):
    matrices = random_system(M, n, m, seed, growth=1.0)
    exact = switched_lqr_optimum(*matrices, 6)
    x0 = torch.randn(200, n, dtype=torch.float64) ** 3  # also lopsided states
    assert abs(exact.width(x0)) < 1e-9
    for tolerance in (0.003, 0.03, 0.3, 3.0):
        rough = switched_lqr_optimum(*matrices, 6, tolerance)
        assert (rough.lower_bound(x0) <= exact.lower_bound(x0) * (1 + 1e-9)).all()
        assert (rough.cost(x0) >= exact.cost(x0) * (1 - 1e-9)).all()
        assert sum(rough.num_matrices) <= sum(exact.num_matrices)
        assert rough.width(x0) <= 4 * tolerance


@pytest.mark.parametrize(("batch", "tolerance"), [((), 0.0), ((40,), 0.05), ((3, 5), 0.0)])
def test_the_policy_attains_the_cost_in_the_environment(batch, tolerance):
    for matrices in (recipe_matrices(4, 2), tuple(EXAMPLE.values()), random_system(3, 3, 2)):
        env = env_of(matrices, batch_size=batch, horizon=6)
        optimum = switched_lqr_optimum(env.A, env.B, env.Q, env.R, 6, tolerance)
        rollout = env.rollout(6, optimum)
        x0 = rollout["x"][..., 0, :]
        total = -rollout["next", "reward"].sum((-2, -1))
        torch.testing.assert_close(total, optimum.cost(x0), rtol=1e-12, atol=0)
        assert optimum.cost(x0).shape == optimum.lower_bound(x0).shape == batch


def test_the_policy_follows_each_systems_own_step_and_type():
    matrices = recipe_matrices(3, 2)
    env = env_of(matrices, batch_size=3, horizon=6, dtype=torch.float32)
    policy = switched_lqr_optimum(*matrices, 6)
    x, step = torch.randn(3, 3), torch.tensor([[0], [3], [5]])
    td = policy(env.reset(TensorDict({"x": x, "step": step}, 3), set_state=True))
    assert td["action", "continuous"].dtype == torch.float32
    assert not td["action", "continuous"][2].any()  # nothing is charged after the last step
    for i, horizon in enumerate((6, 3, 1)):
        mode, u = switched_lqr_optimum(*matrices, horizon).decide(x[i], torch.zeros(1).long())
        assert mode == td["action", "discrete"][i]
        torch.testing.assert_close(u, td["action", "continuous"][i], atol=1e-6, rtol=0)


def test_a_fixed_mode_tends_to_the_algebraic_riccati_equation():
    A, B, Q, R = random_system(3, 4, 2, growth=0.9)
    Q = Q + 0.1 * np.eye(4)
    x0 = torch.eye(4).double()
    costs = fixed_mode_cost(A, B, Q, R, 300, x0)
    for mode in range(3):
        P = solve_discrete_are(*(matrix[mode] for matrix in (A, B, Q, R)))
        np.testing.assert_allclose(costs[mode], np.diag(P), rtol=1e-9)


# Computed once by an independent program: cost per period over all dimensions. The mean of 4,096
# draws of x0 has a standard error of about 1 %.
@pytest.mark.parametrize(("n", "expected"), [(3, 2.262), (8, 2.441)])
def test_reference_values(n, expected):
    env = env_of(recipe_matrices(n, 2), batch_size=4096)
    x0 = env.reset()["x"]
    optimum = switched_lqr_optimum(*recipe_matrices(n, 2), 20, 1e-3)
    cost = optimum.cost(x0).mean().item() / 20
    assert cost == pytest.approx(expected, rel=0.03)
    assert 0 <= optimum.width(x0[:64]) < 1e-3
    excess = fixed_mode_cost(*recipe_matrices(n, 2), 20, x0).mean(-1).min().item() / 20 / cost - 1
    assert 0.27 < excess < 0.48


@pytest.mark.parametrize(("n", "M"), [(8, 8), (16, 6)])
def test_larger_recipes_are_certified_to_one_percent_and_need_every_mode(n, M):
    optimum = switched_lqr_optimum(*recipe_matrices(n, M), 20, 0.01)
    env = env_of(recipe_matrices(n, M), batch_size=256)
    rollout = env.rollout(20, optimum)
    assert 0 < optimum.width(rollout["x"][:, 0]) < 0.01
    assert rollout["action", "discrete"].unique().tolist() == list(range(M))


# -- bad input -----------------------------------------------------------------------------------

BAD_MATRICES = [
    ({"A": EYE}, ValueError, r"A must have shape \(M, n, n\).*got \(2, 2\); a single mode is A=\["),
    ({"A": np.zeros((0, 2, 2))}, ValueError, r"A must have .*at least one mode, got \(0, 2, 2\)"),
    ({"A": np.zeros((2, 2, 3))}, ValueError, r"A must have shape.*got \(2, 2, 3\)"),
    ({"A": [[[1, 0], [1]]]}, ValueError, "A must have rows of equal length"),
    ({"A": "two"}, TypeError, "A must hold real numbers.*got 'two'"),
    ({"B": [[[1], [math.inf]]] * 2}, ValueError, "B must hold finite numbers; it holds NaN or inf"),
    ({"B": [[1, 1], [1, 2]]}, ValueError, r"B must have shape \(M, n, m\) = \(2, 2, m\).*\(2, 2\)"),
    ({"B": np.ones((3, 2, 1))}, ValueError, r"B must have.*got \(3, 2, 1\)"),
    ({"B": np.ones((2, 2, 0))}, ValueError, "B must have.*at least one input"),
    ({"R": EYE}, ValueError, r"R must have shape \(1, 1\), or \(2, 1, 1\).*got \(2, 2\)"),
    ({"Q": [[1, 1], [0, 1]]}, ValueError, "Q must be symmetric.* by up to 1;"),
    ({"Q": [[1, 2], [2, 1]]}, ValueError, "Q must be positive semidefinite.* eigenvalue of -1"),
    ({"R": [[0]]}, ValueError, "R must be positive definite.* eigenvalue of 0 in mode 0"),
    ({"R": [[[1]], [[-1]]]}, ValueError, "R must be positive definite.* -1 in mode 1"),
    ({"horizon": 0}, ValueError, "horizon must be an integer >= 1, got 0"),
]
BAD_ENV = [
    ({"horizon": None}, TypeError, "horizon must be an integer"),
    ({"process_noise": -1.0}, ValueError, "process_noise must be a finite number >= 0, got -1"),
    ({"initial_range": 0.0}, ValueError, "initial_range must be a finite number > 0"),
    ({"state_limit": math.nan}, ValueError, "state_limit must be a finite number > 0"),
    ({"state_limit": 5.0}, ValueError, r"state_limit must be at least .* = 7\.071.*got 5"),
    ({"observe_time": 1}, TypeError, "observe_time must be true or false"),
    ({"A": np.array([EYE, 1e300 * EYE])}, ValueError, "must be finite in torch.float32, got"),
    ({"B": np.zeros((2, 2, 1))}, ValueError, "no policy can hold.* 2 times per step in every"),
]
BAD_RECIPE = [
    ({"num_modes": 4}, ValueError, "num_modes must be at most dim=3, got 4"),
    ({"num_modes": 0}, ValueError, "num_modes must be an integer >= 1"),
    ({"dim": 3.0}, TypeError, "dim must be an integer"),
    ({"growth": math.inf}, ValueError, "growth must be a finite number"),
    ({"input_cost": 0.0}, ValueError, "input_cost must be a finite number > 0"),
    ({"recipe_seed": -1}, ValueError, "recipe_seed must be an integer >= 0"),
]


def test_bad_input_is_named():
    fixed_cost = functools.partial(fixed_mode_cost, x0=[1.0, 0.0])
    unstable = {**EXAMPLE, "A": [[[2, 1], [0, 2]]] * 2, "dtype": torch.float32}
    for functions, good, cases in [
        ([SwitchedLQREnv], unstable, [*BAD_MATRICES, *BAD_ENV]),
        ([switched_lqr_optimum, fixed_cost], {**EXAMPLE, "horizon": 5}, BAD_MATRICES),
        ([SwitchedLQREnv.from_recipe], {"dim": 3, "num_modes": 2}, BAD_RECIPE),
    ]:
        for function, (arguments, error, message) in itertools.product(functions, cases):
            with pytest.raises(error, match=message):
                function(**good | arguments)


def test_bad_input_of_an_optimum_is_named():
    with pytest.raises(ValueError, match="tolerance must be a finite number >= 0, got -1"):
        switched_lqr_optimum(**EXAMPLE, horizon=5, tolerance=-1)
    with pytest.raises(MemoryError, match=r"max_matrices=10 is less than the 16 .*raise tolerance"):
        switched_lqr_optimum(**EXAMPLE, horizon=9, max_matrices=10)
    optimum = switched_lqr_optimum(**EXAMPLE, horizon=5)
    with pytest.raises(ValueError, match=r"x0 must have shape .* n = 2 .* got \(4, 3\)"):
        optimum.cost(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="x0 must be finite"):
        optimum.lower_bound([[math.nan, 0.0]])


def test_what_counts_as_uncontrollable_growth():
    def growth(A, B):
        return System.of(A, B, EYE, [[1]]).uncontrollable_growth()

    diagonal = np.array([np.diag([1.5, 3.0]), np.diag([2.0, 0.1])])
    first, second, none = np.array([[[1.0], [0]]] * 2), np.array([[[0.0], [1]]] * 2), 0 * EYE[:, :1]
    assert growth(diagonal, first) == pytest.approx(0.1)  # mode 1 shrinks it
    assert growth(diagonal, second) == pytest.approx(1.5)
    assert growth(diagonal, np.array([none] * 2)) == pytest.approx(1.5)
    # Each mode reaches one coordinate alone: neither is stabilisable, switching between them is.
    assert growth(diagonal, np.stack([first[0], second[0]])) == 0.0
    # Reached through another coordinate, or by switching only.
    chain = np.array([[[2.0, 1], [0, 2]]])
    assert growth(chain, second[:1]) == 0.0
    assert growth(chain, first[:1]) == pytest.approx(2.0)
    assert growth(np.stack([2 * EYE, chain[0]]), second) == 0.0
