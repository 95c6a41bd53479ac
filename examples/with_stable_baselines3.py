"""Let Stable-Baselines3 order stock: an environment of this package with a flattened action.

pip install stable-baselines3 'hpo_torchrl[gym]'
python examples/with_stable_baselines3.py
"""

from __future__ import annotations

import torch
from gymnasium.wrappers import TransformReward
from stable_baselines3 import PPO

from hpo_torchrl.envs.gym import as_gymnasium
from hpo_torchrl.problems import InventoryEnv

HORIZON = 50  # periods of an episode


def make():
    """One item; the action is a Box: a score of waiting, one of ordering, and how much."""
    return as_gymnasium(InventoryEnv(horizon=HORIZON, seed=0), flatten="argmax")


def cost(model, episodes=20):
    """Return the mean cost of a period, the most probable actions being taken."""
    env, total = make(), 0.0
    for episode in range(episodes):
        observation, over = env.reset(seed=episode)[0], False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total - reward, terminated or truncated
    return total / (episodes * HORIZON)


def main(total_timesteps=30_000):
    """Train, and print the cost of a period before and after."""
    torch.set_num_threads(1)
    how = {"n_steps": 1000, "batch_size": 250, "gamma": 0.95, "learning_rate": 1e-3, "seed": 0}
    # Costs are tens, up to hundreds: smaller rewards suit its critic.
    stock = TransformReward(make(), lambda reward: reward / 100.0)
    model = PPO("MlpPolicy", stock, device="cpu", **how)
    before = cost(model)
    model.learn(total_timesteps)
    after = cost(model)
    print(f"cost of a period: {before:.1f} before, {after:.1f} after {total_timesteps:,} steps")
    return before, after


if __name__ == "__main__":
    main()
