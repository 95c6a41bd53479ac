"""Small worlds with hybrid actions for Gymnasium, two after the description of "gym-hybrid".

An agent in a square accelerates, turns or brakes, and is to come to a stop in a target area: each
discrete action has a number of its own, braking none. ``Moving`` goes where it points to at once;
``Sliding`` keeps its momentum, so that turning only changes where the next push goes.
"""

from __future__ import annotations

import math

import gymnasium
import numpy as np
from gymnasium import spaces

ACCELERATE, TURN, BRAKE = range(3)
COORDINATES = [[0], [1], []]
TIME_STEP, SPEED_LIMIT, PUSH, FRICTION = 0.05, 1.0, 0.2, 0.02
RADIUS, STOPPED, PENALTY = 0.15, 0.05, 0.01


BOX = spaces.Box(-1.0, 1.0, (2,))
FORMS = {
    "one box": spaces.Tuple([spaces.Discrete(3, start=-1), BOX]),
    "a box each": spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 2, (1,)), BOX]),
    "names": spaces.Dict({"how": BOX, "which": spaces.Discrete(2, start=5)}),
    "several": spaces.Tuple(
        [spaces.MultiDiscrete([2, 3]), spaces.Box(0, np.inf, (2, 2)), spaces.MultiBinary(2)]
    ),
    "nested": spaces.Dict(
        {"a": spaces.Tuple([spaces.Discrete(2), BOX]), "b": spaces.MultiDiscrete([3], start=[4])}
    ),
}


class Moving(gymnasium.Env):
    """The agent goes where it points to.

    Actions are ``Tuple(Discrete(3), Box(2))``: a push in [0, 1], a turn in [-1, 1] half circles.
    The reward is the way that the distance to the target has shrunk, less a small one for time, 1
    for a stop in the target, and -1 for leaving the square. Success is ``info["success"]``.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self) -> None:
        low, high = np.float32([0.0, -1.0]), np.float32([1.0, 1.0])
        self.action_space = spaces.Tuple([spaces.Discrete(3), spaces.Box(low, high)])
        self.observation_space = spaces.Box(-np.inf, np.inf, (9,), dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.target = self.np_random.uniform(-0.9, 0.9, (2, 2))
        self.velocity = np.zeros(2)
        self.angle = float(self.np_random.uniform(-math.pi, math.pi))
        return self._seen(), {"success": False}

    def step(self, action):
        choice, (push, turn) = int(action[0]), np.asarray(action[1], dtype=float)
        before = self._distance()
        if choice == ACCELERATE:
            self._accelerate(PUSH * push)
        elif choice == TURN:
            self._turn(math.pi * turn)
        else:
            self._brake()
        self.place = self.place + TIME_STEP * self.velocity
        stopped = float(np.linalg.norm(self.velocity)) < STOPPED
        success = self._distance() < RADIUS and stopped and choice == BRAKE
        left = bool((np.abs(self.place) > 1.0).any())
        reward = before - self._distance() - PENALTY + 1.0 * success - 1.0 * left
        return self._seen(), float(reward), success or left, False, {"success": success}

    def _accelerate(self, push):
        speed = min(float(np.linalg.norm(self.velocity)) + push, SPEED_LIMIT)
        self.velocity = speed * self._pointing()

    def _turn(self, angle):
        self.angle = math.remainder(self.angle + angle, 2 * math.pi)
        self.velocity = float(np.linalg.norm(self.velocity)) * self._pointing()

    def _brake(self):
        self.velocity = np.zeros(2)

    def _pointing(self):
        return np.array([math.cos(self.angle), math.sin(self.angle)])

    def _distance(self):
        return float(np.linalg.norm(self.target - self.place))

    def _seen(self):
        away = self.target - self.place
        state = [self.place, self.velocity, self._pointing(), away, [self._distance()]]
        return np.concatenate(state).astype(np.float32)


class Sliding(Moving):
    """The agent slides: pushes add up as vectors, and brakes take half of the speed away."""

    def _accelerate(self, push):
        self.velocity = (1.0 - FRICTION) * self.velocity + push * self._pointing()
        self.velocity *= min(1.0, SPEED_LIMIT / max(float(np.linalg.norm(self.velocity)), 1e-9))

    def _turn(self, angle):
        self.angle = math.remainder(self.angle + angle, 2 * math.pi)
        self.velocity = (1.0 - FRICTION) * self.velocity

    def _brake(self):
        self.velocity = 0.5 * self.velocity


class Walk(gymnasium.Env):
    """Episodes of random length, half of which terminate; it remembers what it was told."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), dtype=np.float64)

    def __init__(self, action_space=FORMS["a box each"]):
        self.action_space, self.told = action_space, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.length = 0, int(self.np_random.integers(2, 6))
        self.episode = float(self.np_random.random())
        return self._seen(), {"action_mask": self._mask()}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.told.append(action)
        self.steps += 1
        over, terminates = self.steps == self.length, self.episode < 0.5
        reward, info = self.steps + self.episode, {"action_mask": self._mask()}
        return self._seen(), reward, over and terminates, over and not terminates, info

    def _seen(self):
        return np.array([self.steps, self.length, self.episode])

    def _mask(self):
        return np.array([1, self.steps % 2], dtype=np.int8)


for world in (Moving, Sliding):
    name = f"{world.__name__}-v0"
    if name not in gymnasium.registry:
        gymnasium.register(name, f"{__name__}:{world.__name__}", max_episode_steps=200)
