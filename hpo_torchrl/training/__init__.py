"""Training runs: the trainer, its callbacks, evaluation, checkpoints, and the folder of a run."""

from hpo_torchrl.training.callbacks import Callback, StopTraining
from hpo_torchrl.training.checkpoint import Checkpoint, CheckpointError
from hpo_torchrl.training.evaluation import CostEstimate, Evaluation
from hpo_torchrl.training.run_folder import RunFolder, RunFolderError
from hpo_torchrl.training.seed_run import Selection
from hpo_torchrl.training.trainer import Trainer

__all__ = [
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "CostEstimate",
    "Evaluation",
    "RunFolder",
    "RunFolderError",
    "Selection",
    "StopTraining",
    "Trainer",
]
