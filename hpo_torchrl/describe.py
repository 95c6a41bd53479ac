"""What a trained policy looks like: the rule it follows, as figures and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.envs import InventoryEnv, RecordedInventoryEnv, SwitchedLQREnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.oracles import s_S_cost
from hpo_torchrl.reporting import plot_inventory_policy, plot_mode_plane
from hpo_torchrl.training import Evaluation, Reference, view_inventory_policy

_GRID, _PATHS = 201, 12


def describe_policy(
    test: Evaluation, policy: HybridPolicy, reference: Reference, run_dir: Path | None
) -> dict[str, Any]:
    """Read the rule off a policy, and draw it where there is a folder.

    Args:
        test: the headline test.
        policy: the policy.
        reference: the optimum of that test.
        run_dir: folder of ``policy.png``, or ``None``.

    Returns:
        What the summary tells of the rule.
    """
    if not isinstance(policy, HybridPolicy):
        return {}  # a rule says what it does
    env = test.env
    env.set_seed(test.seed)
    if isinstance(env, InventoryEnv):
        return _describe_inventory(env, policy, reference, run_dir)
    if isinstance(env, SwitchedLQREnv):
        return _describe_switched_lqr(env, policy, reference, run_dir)
    return {}


def compare_on_record(tests: Mapping[str, Evaluation], reference: Reference) -> dict[str, Any]:
    """Run the rule that a record's reference stands for on all tests.

    Args:
        tests: evaluations by name.
        reference: that of the headline test.

    Returns:
        Where demand is recorded, ``record``: for each test its counted periods and the rule's
        cost, paired with the policy's (the same starts and demand); and the ``rule``: items, Q, S.
    """
    policy: Any = reference.policy
    rows, rule = {}, {}
    for name, test in tests.items():
        env = test.env
        if isinstance(env, RecordedInventoryEnv) and policy is not None:
            rows[name] = {
                "periods": env.span(test.skip, test.num_steps),
                "rule_cost": test.run(policy).mean,
            }
            rule = {"items": env.items, "Q": policy.Q, "S": policy.S.tolist()}
    return {"record": rows, "rule": rule} if rows else {}


def _describe_inventory(
    env: InventoryEnv, policy: HybridPolicy, reference: Reference, run_dir: Path | None
) -> dict[str, Any]:
    view = view_inventory_policy(env, policy)
    if run_dir is not None:
        plot_inventory_policy(
            run_dir / "policy.png",
            **{key: value.tolist() for key, value in view._asdict().items()},
            optimal_s=reference.s,
            optimal_S=reference.S,
        )
    if reference.s is None:
        return {}  # several items follow no (s, S)
    s, S = view.reorder_point, view.order_up_to_level
    found: dict[str, Any] = {"optimal_s": reference.s, "optimal_S": reference.S}
    found |= {"learned_s": s, "learned_S": S, "learned_rule_cost": None}
    if s is not None and S is not None and s < S:
        costs = (env.demand_mean, env.holding_cost, env.shortage_cost)
        mean, holding, shortage = (float(value) for value in costs)
        rule = s_S_cost(s, S, mean, holding, shortage, env.fixed_cost, env.lead_time)
        found["learned_rule_cost"] = rule + mean * float(env.procurement_cost)
    return found


@torch.no_grad()
def _describe_switched_lqr(
    env: SwitchedLQREnv, policy: HybridPolicy, reference: Reference, run_dir: Path | None
) -> dict[str, Any]:
    """Share of the test's decisions that take each mode; in two dimensions, the plane."""
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        run = differentiable_rollout(env, policy, env.horizon)
    modes = run["action", "discrete"].flatten()
    shares = torch.bincount(modes, minlength=env.num_options) / modes.numel()
    if run_dir is not None and env.A.shape[-1] == 2:
        extent = env.initial_scale
        line = torch.linspace(-extent, extent, _GRID, dtype=env.float_dtype, device=env.device)
        x = torch.cartesian_prod(line, line).flip(-1)  # rows by the second coordinate
        first = {"x": x, "step": torch.zeros(len(x), 1, dtype=torch.int64, device=env.device)}
        planes = {"learned": policy.distribution(env.observe(first)).logits.argmax(-1)}
        trails = {"learned": run["x"][:_PATHS]}
        if reference.policy is not None:
            chosen = reference.policy(TensorDict(first, batch_size=[len(x)]))
            planes["optimal"] = chosen["action", "discrete"]
            start = run[:, 0].select("x", "step").copy()
            trails["optimal"] = env.rollout(
                env.horizon,
                reference.policy,
                tensordict=env.reset(start, set_state=True),
                auto_reset=False,
            )["x"][:_PATHS]
        plot_mode_plane(
            run_dir / "policy.png",
            extent=extent,
            planes={name: p.reshape(_GRID, _GRID).tolist() for name, p in planes.items()},
            paths={name: trail.tolist() for name, trail in trails.items()},
            num_modes=env.num_options,
        )
    return {"mode_shares": [round(share, 4) for share in shares.tolist()]}
