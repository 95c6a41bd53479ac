"""Training runs: the trainer, evaluation, references, checkpoints and logs."""

from hpo_torchrl.training.checkpoint import Checkpoint, CheckpointError
from hpo_torchrl.training.evaluation import CostEstimate, Evaluation, evaluate, reference_cost
from hpo_torchrl.training.logging import RunLogger, write_json
from hpo_torchrl.training.run_folder import RunFolder, RunFolderError
from hpo_torchrl.training.selection import Selection
from hpo_torchrl.training.summary import summarise
from hpo_torchrl.training.trainer import Trainer

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CostEstimate",
    "Evaluation",
    "RunFolder",
    "RunFolderError",
    "RunLogger",
    "Selection",
    "Trainer",
    "evaluate",
    "reference_cost",
    "summarise",
    "write_json",
]
