"""Training runs: the trainer, its callbacks, evaluation, checkpoints, and the folder of a run."""

from hpo_torchrl.training.callbacks import Callback, ProgressBar, StopTraining
from hpo_torchrl.training.checkpoint import Checkpoint, CheckpointError
from hpo_torchrl.training.evaluation import CostEstimate, Evaluation, evaluate, reference_cost
from hpo_torchrl.training.logging import RunLogger
from hpo_torchrl.training.run_folder import RunFolder, RunFolderError
from hpo_torchrl.training.selection import Selection
from hpo_torchrl.training.summary import summarise
from hpo_torchrl.training.trainer import SeedRun, Trainer

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
    "evaluate",
    "reference_cost",
    "summarise",
]
