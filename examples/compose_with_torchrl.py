"""The hybrid policy in TorchRL's own collector, trained by TorchRL's own PPO loss.

Nothing here knows about differentiable simulators: environment and policy are ordinary TorchRL
parts. Compare the cost after these few updates with that of ``hpo-train`` on the same problem.

python examples/compose_with_torchrl.py
"""

import torch
from torchrl.collectors import Collector
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory import optimal_s_S
from hpo_torchrl.training import Evaluation

SYSTEMS, WINDOW, UPDATES, EPOCHS = 64, 30, 30, 4


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    env = InventoryEnv(batch_size=SYSTEMS, initial_state="random", seed=0)
    policy = HybridPolicy.for_env(env, scale=0.1, learn_scale=True)
    critic = make_value_network(env)
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(policy, critic, normalize_advantage=True, entropy_coeff=0.01)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
    test = Evaluation(InventoryEnv(batch_size=256), num_steps=300, skip=100, seed=1)
    print(f"before   {test.run(policy).mean:8.2f} per period")

    frames = SYSTEMS * WINDOW
    collector = Collector(
        env,
        policy,
        frames_per_batch=frames,
        total_frames=frames * UPDATES,
        auto_register_policy_transforms=False,
    )
    for batch in collector:
        # Rewards of order one keep the critic's loss of order one.
        batch["next", "reward"] = batch["next", "reward"] / 100.0
        advantage(batch)
        for _ in range(EPOCHS):
            terms = loss(batch)
            optimizer.zero_grad()
            (terms["loss_objective"] + terms["loss_critic"] + terms["loss_entropy"]).backward()
            torch.nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
            optimizer.step()
    collector.shutdown()

    optimum = optimal_s_S(10, 1, 9, 64, 2).cost
    print(f"after    {test.run(policy).mean:8.2f} per period, {UPDATES} updates of PPO")
    print(f"optimum  {optimum:8.2f}")


if __name__ == "__main__":
    main()
