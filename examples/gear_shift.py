"""A car with gears: which gear and how much pedal, to follow a wanted speed on little fuel.

With the gear fixed, speed and fuel are smooth in the pedal; the gear is a choice, and changing it
costs something. The speed wanted wanders, so no gear is good for long. With a state so small value
iteration on a grid finds the optimum, next to which the trained policy is measured.

python examples/gear_shift.py
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from matplotlib.figure import Figure
from tensordict.nn import TensorDictModule
from torch.nn import functional as F
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl import DifferentiableEnv, Evaluation, train
from hpo_torchrl.core.reference import Reference

RATIOS = torch.tensor([12.0, 7.0, 4.6, 3.2])  # turns of the engine per turn of the wheels
GEARS = len(RATIOS)
MASS, RADIUS = 1500.0, 0.3  # of the car in kg, of its wheels in m
TORQUE, BEST, WIDTH = 200.0, 350.0, 300.0  # the torque curve: N m, rad/s, rad/s
IDLE = 90.0  # rad/s
FUEL_ENERGY = 0.42 * 43e3  # J of work in the cylinders per g of fuel: efficiency times heat
BRAKES, ROLLING, DRAG = 8000.0, 180.0, 0.42  # N, N, N per (m/s)^2
TRACK, SHIFT = 0.5, 0.5  # costs in g of fuel: per (m/s)^2 missed in a second, per change of gear
KEPT, SPREAD = 0.97, 1.5  # of what drives the wanted speed: share left after 1 s, deviation
DISCOUNT = 0.99
GRID = (91, 121, 41)  # points of speed, drift and pedal; twice as many change the cost by 0.06 %


def drive(speed, pedal, ratio):
    """The equations of one second: next speed (m/s) and fuel (g); full brake is -1, throttle 1."""
    size = (pedal.square() + 0.01).sqrt()  # |pedal|, rounded where one pedal takes over
    throttle, brake = (size + pedal) / 2, (size - pedal) / 2
    engine = ((ratio * speed / RADIUS).square() + IDLE**2).sqrt()  # rad/s; slow, the clutch slips
    torque = throttle * TORQUE * torch.exp(-((engine - BEST) / WIDTH).square())  # in the cylinders
    friction = 12.0 + 0.06 * engine  # N m lost in the engine: why a high gear saves fuel
    forward = torch.tanh(speed / 4.0)  # brakes stop a car, and do not drive it backwards
    force = (torque - forward * friction) * ratio / RADIUS
    force = force - forward * (BRAKES * brake + ROLLING) - DRAG * speed * speed.abs()
    return speed + force / MASS, torque * engine / FUEL_ENERGY


def wanted_speed(drift):
    """The speed to follow, 4 to 30 m/s (14 to 108 km/h), of a drift that wanders around 0."""
    return 4.0 + 26.0 * torch.sigmoid(drift)


class Car(DifferentiableEnv):
    """The problem as an environment; the gear engaged is a part of the state, one-hot."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=GEARS,
            continuous_dim=1,
            continuous_bounds=(-1.0, 1.0),
            state_shapes={"speed": (1,), "gear": (GEARS,), "drift": (1,)},
            observation_dim=2 + GEARS,
            noise_shape=(1,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        ratio = RATIOS.to(noise)[action["discrete"]].unsqueeze(-1)
        gear = F.one_hot(action["discrete"], GEARS).to(noise)
        speed, fuel = drive(state["speed"], action["continuous"], ratio)
        missed = speed - wanted_speed(state["drift"])
        shifted = 1.0 - (gear * state["gear"]).sum(-1)
        cost = (TRACK * missed.square() + fuel).squeeze(-1) + SHIFT * shifted
        return {"speed": speed, "gear": gear, "drift": KEPT * state["drift"] + noise}, -cost

    def observe(self, state):
        missing = wanted_speed(state["drift"]) - state["speed"]
        return torch.cat([state["speed"] / 10.0 - 1.7, missing / 3.0, state["gear"]], -1)

    def initial_state(self):
        shape, place = (*self.batch_size, 1), {"generator": self.rng, "dtype": self.float_dtype}
        gear = torch.randint(GEARS, self.batch_size, generator=self.rng)
        return {
            "speed": 4.0 + 26.0 * torch.rand(shape, **place),
            "gear": F.one_hot(gear, GEARS).to(self.float_dtype),
            "drift": SPREAD * torch.randn(shape, **place),
        }

    def draw_noise(self, num_steps, state):
        shape, place = (*self.batch_size, num_steps, 1), {"dtype": self.float_dtype}
        return SPREAD * (1 - KEPT**2) ** 0.5 * torch.randn(shape, generator=self.rng, **place)


def hat(value, grid):
    """Linear interpolation as weights of the grid's points, one dimension more than ``value``."""
    value = value.clamp(grid[0], grid[-1]).unsqueeze(-1)
    return (1.0 - (value - grid).abs() / (grid[1] - grid[0])).clamp_min(0.0)


def best_policy(gears=range(GEARS), points=GRID, discount=DISCOUNT):
    """The optimum that keeps to some gears, by value iteration on a grid, as a policy.

    Dynamic programming on speed, drift and gear, with ``points`` of speed, drift and pedal. A
    change of gear costs the same from everywhere, so what a gear is worth once it is engaged needs
    no previous gear: ``worth[gear, speed, drift]``.
    """
    gears = torch.tensor(list(gears))
    speeds, pedals = torch.linspace(0, 40, points[0]), torch.linspace(-1, 1, points[2])
    drifts = SPREAD * torch.linspace(-3.5, 3.5, points[1])
    nodes, weights = (torch.tensor(x).float() for x in np.polynomial.hermite_e.hermegauss(9))
    moved = KEPT * drifts.unsqueeze(-1) + SPREAD * (1 - KEPT**2) ** 0.5 * nodes
    chance = torch.einsum("dnk,n->dk", hat(moved, drifts), weights / weights.sum())
    after, fuel = drive(speeds.unsqueeze(-1), pedals, RATIOS[gears, None, None])
    missed = after.unsqueeze(-1) - wanted_speed(drifts)
    reward, move = -TRACK * missed.square() - fuel.unsqueeze(-1), hat(after, speeds)
    value = torch.zeros(len(gears), points[0], points[1])
    for _ in range(5000):
        future = torch.einsum("gspk,gkd->gspd", move, value @ chance.T)
        worth, pedal = (reward + discount * future).max(2)
        change = torch.maximum(worth, worth.amax(0) - SHIFT) - value
        value = value + change - change.mean()  # a constant in the value changes no decision
        if change.max() - change.min() < 1e-4:
            break

    def decide(speed, gear, drift):
        def read(table):
            return torch.einsum("gsd,...id,...is->...g", table, *weight)

        weight = hat(drift, drifts), hat(speed, speeds)
        chosen = (read(worth) + SHIFT * gear[..., gears]).argmax(-1)
        return gears[chosen], read(pedals[pedal]).gather(-1, chosen.unsqueeze(-1))

    keys = [("action", "discrete"), ("action", "continuous")]
    return TensorDictModule(decide, in_keys=["speed", "gear", "drift"], out_keys=keys)


def plot_drives(path, policies, seconds=120):
    """Draw speed and gear of each policy on the same road."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[2, 1])
    for name, policy in policies.items():
        road = Car(batch_size=1, seed=3)
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            trip = road.rollout(seconds, policy)[0]
        if name == next(iter(policies)):
            wanted = wanted_speed(trip["drift"])
            above.plot(wanted, color="0.4", linestyle=":", label="wanted")
        above.plot(trip["next", "speed"], label=name)
        below.step(range(seconds), trip["action", "discrete"] + 1, where="post", label=name)
    above.set(ylabel="speed (m/s)")
    above.legend()
    below.set(xlabel="seconds", ylabel="gear", yticks=range(1, GEARS + 1))
    figure.savefig(path, dpi=120)


def main(
    updates: int = 500,
    folder: str | None = None,
    seed: int = 0,
    points: tuple[int, int, int] = GRID,
) -> dict[str, float]:
    test = Evaluation(Car(batch_size=512), num_steps=400, skip=50, seed=1)
    optimal = best_policy(points=points)
    optimum = test.run(optimal).mean
    fixed = [test.run(best_policy([gear], points)).mean for gear in range(GEARS)]
    car = Car(batch_size=128, seed=seed)
    # What the learning curve is drawn against.
    baselines = {"best single gear": min(fixed)}
    lines = Reference(optimal_cost=optimum, objective="average", baselines=baselines)
    test.env.reference = lambda test: lines
    settings = {"gae_lambda": 0.9, "seed": seed, "tests": test}
    run = train(car, folder=folder, num_updates=updates, **settings)
    first, last = run.metrics[0]["test_cost"], run.summary["test_cost"]
    print(f"cost       {first:.4f} before, {last:.4f} +- {run.summary['test_cost_se']:.4f} after")
    print("one gear   " + ", ".join(f"{gear + 1}: {cost:.4f}" for gear, cost in enumerate(fixed)))
    print(f"optimum    {optimum:.4f} by value iteration; gap {run.gap:+.2%}")
    print(f"trained    {updates} updates, {run.summary['wall_seconds']:.0f} s")
    plot_drives(run.folder / "drive.png", {"HPO": run.policy, "optimum": optimal})
    print(f"pictures   {run.folder}/learning_curve.png, {run.folder}/drive.png")
    return {"first": first, "last": last, "fixed": min(fixed), "optimum": optimum}


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:2]))
