"""Train from the command line; the same as the installed command ``hpo-train``.

python examples/train.py env=inventory env.num_items=3 seed=1
"""

from hpo_torchrl.experiments.commands import train

if __name__ == "__main__":
    train()
