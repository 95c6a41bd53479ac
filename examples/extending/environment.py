"""An environment of your own: a tank whose pump is off or runs, at a power to be chosen.

An environment is its equations. With the pump's state fixed they are smooth in level and flow.

python examples/extending/environment.py
hpo-train env._target_=environment.Tank env.fee=0.2                           # in this folder
"""

import tempfile

import torch
from torchrl.envs.utils import check_env_specs

from hpo_torchrl import DifferentiableEnv, train


class Tank(DifferentiableEnv):
    """Keep the level of a tank (m) near a target, while customers draw water from it.

    Args:
        target: level to be kept, in metres.
        fee: cost of a period in which the pump runs.
        others: arguments of :class:`DifferentiableEnv`: ``batch_size``, ``seed`` and so on.
    """

    def __init__(self, target: float = 1.0, fee: float = 0.1, **others):
        self.target, self.fee = target, fee
        super().__init__(
            num_discrete=2,  # off, on
            continuous_dim=1,
            continuous_bounds=(0.0, 1.0),
            state_shapes={"level": (1,)},
            observation_dim=1,
            noise_shape=(1,),
            **others,
        )

    def dynamics(self, state, action, noise):
        """Return the next state and the reward, ``(*B,)``."""
        on = action["discrete"].unsqueeze(-1).to(noise.dtype)
        level = state["level"] + on * action["continuous"] - noise
        cost = (level - self.target).square() + self.fee * on
        return {"level": level}, -cost.squeeze(-1)

    def observe(self, state):
        """Return what the policy sees, ``(*B, 1)``, of order 1."""
        return state["level"] - self.target

    def initial_state(self):
        """Return levels between 0 and 2 m."""
        return {"level": 2.0 * torch.rand(*self.batch_size, 1, generator=self.rng)}

    def draw_noise(self, num_steps, state):
        """Return the water drawn: uniform between 0 and 0.4 m in a period."""
        return 0.4 * torch.rand(*self.batch_size, num_steps, 1, generator=self.rng)


def main(updates: int = 100) -> dict[str, float]:
    """Check the environment, train on it, and return the test cost before and after."""
    check_env_specs(Tank(batch_size=4))
    settings = {"num_updates": updates, "reference": "none", "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        run = train(Tank(batch_size=64, seed=0), folder=folder, **settings)
        costs = {"before": run.metrics[0]["test_cost"], "after": run.summary["test_cost"]}
        action, _ = run.policy.predict([[-0.5], [0.5]])  # half a metre too low, too high
    print(f"cost {costs['before']:.3f} before, {costs['after']:.3f} after {updates} updates")
    print(f"pump when half a metre too low, too high: {action['discrete'].tolist()}")
    return costs


if __name__ == "__main__":
    main()
