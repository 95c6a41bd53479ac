"""Hooks into a training run, and the progress bar, which is one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from tqdm import tqdm

from hpo_torchrl.core.categorical import ACTION_MASK
from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.training.evaluation import CostEstimate

if TYPE_CHECKING:
    from hpo_torchrl.training.trainer import Trainer

_GAPS = {
    "gap": "gap to optimum",
    "gap_to_lower_bound": "above lower bound",
    "gap_to_upper_bound": "against upper bound",
}
_SELDOM = 1e-3  # share of steps below which an action counts as not used
_SHOWN = ("cost", "test_cost", "test_cost_se", *_GAPS)


class StopTraining(Exception):  # noqa: N818
    """Raised by a callback to end training after the present update.

    That update is logged and saved, the policy is tested, and ``summary.json`` gets the message as
    ``"stopped"``.
    """


class Callback:
    """Hooks around a training run; override what you need.

    A hook that gets one value per run (a row, a cost, a path, a summary) gets a list of them, one
    per seed, where the algorithm trains several seeds (``algorithm.num_seeds``).

    Any hook but :meth:`on_exception` may raise :class:`StopTraining`.

    Examples:
        >>> from hpo_torchrl.training import Callback, StopTraining
        >>> class GoodEnough(Callback):
        ...     def on_update_end(self, trainer, row):
        ...         if row.get("test_cost", 99.0) < 40.0:
        ...             raise StopTraining("the test cost is below 40")
    """

    def on_train_start(self, trainer: Trainer) -> None:
        """Run before the first update, or the first one after a resume."""

    def on_evaluation(self, trainer: Trainer, cost: CostEstimate | list[CostEstimate]) -> None:
        """Run after the policy was tested during training."""

    def on_update_end(self, trainer: Trainer, row: Any) -> None:
        """Run after an update, before it is logged; what is added to the row is logged too.

        Args:
            trainer: the trainer.
            row: the update's entries of ``metrics.csv``.
        """

    def on_checkpoint(self, trainer: Trainer, path: Path | list[Path]) -> None:
        """Run after a checkpoint was written."""

    def on_train_end(self, trainer: Trainer, summary: Any) -> None:
        """Run after the final tests, before ``summary.json`` is written; entries may be added."""

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Run when training fails or is interrupted."""


class ProgressBar(Callback):
    """A bar with the training cost, the test cost and the known gaps; means over several seeds."""

    _bar: tqdm | None = None
    _compiled: float | None = None  # what was told of it: updates before the run proper have it too

    def on_train_start(self, trainer: Trainer) -> None:
        """Show the bar of the updates to come."""
        self._shown: dict[str, str] = {}
        self._bar = tqdm(
            total=trainer.num_updates + trainer.extra_updates,
            initial=trainer.update,
            unit="update",
            dynamic_ncols=True,
            # In a log file, where lines cannot be overwritten, few of them.
            mininterval=0.1 if sys.stderr.isatty() else 15.0,
        )
        tested = [[row for row in run.logger.rows if "test_cost" in row] for run in trainer.runs]
        if all(tested):
            self._show(trainer, self._bar, [rows[-1] for rows in tested])

    def on_update_end(self, trainer: Trainer, row: Any) -> None:
        """Move the bar on."""
        rows = row if isinstance(row, list) else [row]
        assert self._bar is not None
        seconds = rows[0].get("compile_seconds")
        if seconds not in (None, self._compiled):
            self._bar.write(f"{'compiled in':<17}{seconds:.1f} s", file=sys.stderr)
            self._compiled = seconds
        self._bar.update()
        self._show(trainer, self._bar, rows)

    def on_train_end(self, trainer: Trainer, summary: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Close the bar."""
        self.on_train_end(trainer, None)

    def _show(self, trainer: Trainer, bar: tqdm, rows: Sequence[Mapping[str, Any]]) -> None:
        mean = {key: fmean(row[key] for row in rows) for key in _SHOWN if key in rows[0]}
        self._shown["cost"] = f"{mean['cost']:.2f}"
        if "test_cost" in mean:
            self._shown["test"] = f"{mean['test_cost']:.3f}"
        for name, label in _GAPS.items():
            if name in mean:
                self._shown[label] = f"{mean[name]:+.2%}"
                if len(rows) == 1 and not trainer.validation_reference.paired and mean["test_cost"]:
                    # Without its error a gap below zero looks like a triumph.
                    error = mean["test_cost_se"] * (1.0 + mean[name]) / mean["test_cost"]
                    self._shown[label] += f" +-{error:.2%}"
        bar.set_postfix(self._shown, refresh=False)


class ActionWarnings(Callback):
    """Say at the end, as ``"warnings"`` of the summary, which actions are hardly used."""

    def on_train_end(self, trainer: Trainer, summary: Any) -> None:
        """Look at the actions of the last batch."""
        algorithm: Any = trainer.algorithm
        actions = getattr(algorithm, "last_batch", None)
        if actions is not None:
            many = isinstance(summary, list)
            pairs = zip(summary, actions, strict=True) if many else [(summary, actions)]
            for own, taken in pairs:
                if found := unused_actions(taken, plain(algorithm.env)):
                    own["warnings"] = found


def unused_actions(actions: TensorDictBase, env: Any) -> list[str]:
    """Say in words which discrete actions are never taken, and what stays at a bound.

    Args:
        actions: ``"action"`` of many steps and, if there are masks, ``"action_mask"``.
        env: the environment, with its ``continuous_bounds`` and ``action_scale`` if it has them.
            Ends that differ by discrete action (``branch_bounds``) are not looked at.
    """
    found, taken = [], actions["action", "discrete"]
    mask = actions.get(ACTION_MASK, None)
    for discrete in range(env.full_action_spec["action", "discrete"].space.n):
        chosen = taken == discrete
        share = float((chosen if mask is None else chosen[mask[..., discrete]]).double().mean())
        if share < _SELDOM:  # NaN where it was never allowed
            found.append(
                f"Discrete action {discrete} was taken in {share:.2%} of the last batch. If it "
                "should be of use, try a larger algorithm.entropy_coeff or algorithm.entropy_until "
                "and look at its reward."
            )
    values = actions["action", "continuous"].flatten(0, -2)
    low, high = getattr(env, "continuous_bounds", (None, None))
    if getattr(env, "branch_bounds", None) is not None:
        return found
    low, high = (
        torch.as_tensor(none if end is None else end).to(values).expand(values.shape[-1])
        for end, none in ((low, -torch.inf), (high, torch.inf))
    )
    scale = torch.as_tensor(getattr(env, "action_scale", 1.0)).to(values)
    unit = torch.where((high - low).isfinite(), high - low, scale)
    for name, end in (("lower", low), ("upper", high)):
        shares = ((values - end).abs() <= 1e-3 * unit).double().mean(0)
        for at in (shares > 1 - _SELDOM).nonzero().flatten().tolist():
            found.append(
                f"Continuous action {at} was at its {name} bound, {float(end[at]):g}, in "
                f"{float(shares[at]):.2%} of the last batch. If it should move, look at "
                "continuous_bounds and at the units of the action."
            )
    return found
