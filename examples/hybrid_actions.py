"""Hybrid actions in TorchRL: spec, distribution, policy, and two losses on the same policy.

python examples/hybrid_actions.py
"""

import torch
from torchrl.data import Bounded, Categorical
from torchrl.objectives import ClipPPOLoss

from hpo_torchrl import HPOLoss, HybridPolicy, differentiable_rollout, make_value_network
from hpo_torchrl.modules import HybridDistribution
from hpo_torchrl.problems import InventoryEnv

# The spec: which of two actions (wait, order), and how much of each of three items.
env = InventoryEnv(num_items=3, batch_size=16, initial_state="random", seed=0)
spec = env.full_action_spec["action"]
assert spec["discrete"] == Categorical(2, shape=(16,))
assert isinstance(spec["continuous"], Bounded)  # (16, 3), from 0 on

# The distribution: a categorical, and for each discrete action a normal of its own.
logits, loc = torch.zeros(16, 2), torch.zeros(16, 2, 3, requires_grad=True)
action = HybridDistribution(logits, loc, torch.ones(16, 2, 3)).rsample()
assert action["discrete"].shape == (16,)
assert action["continuous"].requires_grad  # reparameterised in the branch that was drawn

# The policy: TorchRL's probabilistic modules around a network with one mean for each branch.
policy = HybridPolicy.for_env(env, scale=0.1)
critic = make_value_network(env)

# Without the simulator's gradient: TorchRL's own rollout and PPO on the joint log-probability.
ppo = ClipPPOLoss(policy, critic)
ppo.make_value_estimator(gamma=0.99, lmbda=0.95)
with torch.no_grad():
    data = env.rollout(20, policy)
terms = ppo(data)
print("PPO", *(key for key, _ in terms.items() if key.startswith("loss_")))

# With it: a rollout that keeps its graph, and the pathwise, score-function and cross terms.
hpo = HPOLoss(policy, critic)
hpo.make_value_estimator(gamma=0.99, lmbda=0.95)
terms = hpo(differentiable_rollout(env, policy, 20, discount=0.99))
print("HPO", *(key for key, _ in terms.items() if key.startswith("loss_")))
sum(value for key, value in terms.items() if key.startswith("loss_")).backward()
