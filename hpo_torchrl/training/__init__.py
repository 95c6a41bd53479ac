"""Training runs: the trainer, its callbacks, evaluation, checkpoints, and the folder of a run."""

from hpo_torchrl.training.callbacks import Callback, ProgressBar, StopTraining
from hpo_torchrl.training.checkpoint import Checkpoint, CheckpointError
from hpo_torchrl.training.evaluation import CostEstimate, Evaluation
from hpo_torchrl.training.run_folder import RunFolder, RunFolderError, RunLogger
from hpo_torchrl.training.seed_run import SeedRun, Selection
from hpo_torchrl.training.trainer import Trainer

__all__ = [
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "CostEstimate",
    "Evaluation",
    "ProgressBar",
    "RunFolder",
    "RunFolderError",
    "RunLogger",
    "SeedRun",
    "Selection",
    "StopTraining",
    "Trainer",
]
