"""Trackers of experiments: TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import abc
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hpo_torchrl.core.checks import check_choice, first_line, shown


class Tracked(NamedTuple):
    """What a tracker is told of a run.

    Attributes:
        folder: folder of the run.
        name: its name.
        group: name of the group of runs that it belongs to.
        config: the resolved configuration.
        options: further arguments of the client.
    """

    folder: Path
    name: str
    group: str
    config: Mapping[str, Any]
    options: Mapping[str, Any]


class Tracker(abc.ABC):
    """A run in a tracker of experiments; opening one starts the run there.

    Args:
        run: the run.
        first: the first update that will be logged.
    """

    @abc.abstractmethod
    def __init__(self, run: Tracked, first: int) -> None: ...

    @abc.abstractmethod
    def log(self, row: Mapping[str, float]) -> None:
        """Log the figures of an update, of which ``"update"`` is the step."""

    @abc.abstractmethod
    def end(self, summary: Mapping[str, Any] | None) -> None:
        """End the run with its summary; ``None`` where it failed."""


class TensorBoard(Tracker):
    """Event files in the folder of the run; its hyper-parameters are there once it has ended."""

    packages = ("tensorboard", "torch.utils.tensorboard")

    def __init__(self, run: Tracked, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        own = {"log_dir": str(run.folder / "tensorboard"), **run.options}
        # What an interrupted run has logged from there on is logged anew.
        self.writer, self.run = SummaryWriter(purge_step=first, **own), run
        text = yaml.safe_dump({"name": run.name, "group": run.group, **run.config}, sort_keys=False)
        self.writer.add_text("configuration", f"```\n{text}```")

    def log(self, row: Mapping[str, float]) -> None:
        """Write each figure as a scalar."""
        for name, value in _figures(row).items():
            self.writer.add_scalar(name, value, row["update"])
        self.writer.flush()

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Write hyper-parameters and final figures for the page HPARAMS."""
        known = {"name": self.run.name, "group": self.run.group, **flattened(self.run.config)}
        simple = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in known.items()}
        self.writer.add_hparams(simple, final_figures(summary), run_name=".")
        self.writer.close()


class WandB(Tracker):
    """A run of Weights & Biases, with the configuration as it is nested."""

    packages = ("wandb",)

    def __init__(self, run: Tracked, first: int) -> None:
        own = {"project": "hpo_torchrl", "name": run.name, "group": run.group}
        # Several runs of one process, as seeds are, are runs of their own.
        own |= {"dir": str(run.folder), "reinit": "create_new"}
        client = import_module("wandb")
        self.run = client.init(config=dict(run.config), **{**own, **run.options})

    def log(self, row: Mapping[str, float]) -> None:
        """Log the row at its update."""
        self.run.log(_figures(row), step=int(row["update"]))

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Write the final figures to the run's summary, and finish it."""
        self.run.summary.update(final_figures(summary))
        self.run.finish(exit_code=int(summary is None))


class MLflow(Tracker):
    """A run of MLflow, in the experiment named by its group."""

    packages = ("mlflow", "mlflow.tracking")
    _MOST = 100  # parameters of one call
    _LONGEST = 500  # characters of a parameter that every store takes

    def __init__(self, run: Tracked, first: int) -> None:
        entities, options = import_module("mlflow.entities"), {**run.options}
        self._metric = entities.Metric
        self.client = import_module("mlflow.tracking").MlflowClient(
            options.pop("tracking_uri", None)
        )
        name = options.pop("experiment", run.group)
        found = self.client.get_experiment_by_name(name)
        place = self.client.create_experiment(name) if found is None else found.experiment_id
        tags = {"mlflow.runName": run.name, "group": run.group, **options}
        self.id = self.client.create_run(place, tags=tags).info.run_id
        parameters = [
            entities.Param(key, str(value)[: self._LONGEST])
            for key, value in flattened(run.config).items()
        ]
        for at in range(0, len(parameters), self._MOST):
            self.client.log_batch(self.id, params=parameters[at : at + self._MOST])

    def log(self, row: Mapping[str, float]) -> None:
        """Log the figures as metrics at the update."""
        self._log(_figures(row), int(row["update"]))

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Log the final figures, and say whether the run finished or failed."""
        if summary is not None:
            self._log(final_figures(summary), int(summary["updates"]))
        self.client.set_terminated(self.id, "FAILED" if summary is None else "FINISHED")

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(key, float(value), now, step) for key, value in figures.items()]
        self.client.log_batch(self.id, metrics=metrics)


TRACKERS: dict[str, type[Any]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def tracker_of(backend: str) -> type[Any]:
    """Return the class of a tracker, once its package can be imported.

    Raises:
        ValueError: the name is unknown, or the package is missing.
    """
    kind = TRACKERS[check_choice("logger.backend", backend, TRACKERS)]
    try:
        for package in kind.packages:
            import_module(package)
    except ImportError as error:
        raise ValueError(
            f"logger.backend={backend!r} needs its package ({first_line(error)}); install it with "
            f"pip install 'hpo-torchrl[{backend}]', or use logger=csv."
        ) from error
    return kind


def tracked(
    folder: str | Path,
    config: Mapping[str, Any],
    *,
    name: str | None = None,
    group: str | None = None,
    options: Mapping[str, Any] | None = None,
    of_seeds: bool = False,
) -> Tracked:
    """Return what a tracker is told of a run.

    Args:
        folder: folder of the run.
        config: the resolved configuration.
        name: its name; by default that of the folder.
        group: name of its group; by default that of the folder above, such as a sweep's.
        options: further arguments of the client.
        of_seeds: whether several runs are given the same name, one of each seed.

    Raises:
        TypeError: the options are no mapping.
    """
    if not isinstance(options, Mapping | None):
        raise TypeError(
            f"logger.options must hold arguments of the client by name, got {shown(options)}."
        )
    place = Path(folder).absolute()
    if name is not None and of_seeds:
        name = f"{name}-{place.name}"
    return Tracked(place, name or place.name, group or place.parent.name, config, options or {})


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a nested configuration by their full names.

    Examples:
        >>> from hpo_torchrl.training.tracking import flattened
        >>> flattened({"seed": 0, "env": {"num_items": 3, "demand": {"name": "poisson"}}})
        {'seed': 0, 'env.num_items': 3, 'env.demand.name': 'poisson'}
    """

    def leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping) and value:
            for key, entry in value.items():
                yield from leaves(f"{place}.{key}" if place else str(key), entry)
        else:
            yield place, value

    return dict(leaves("", config))


def final_figures(summary: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the numbers of a summary, named ``final/...``: some share a name with training's."""
    numbers = flattened(summary or {}).items()
    kinds = (int, float)
    return {f"final/{k}": float(v) for k, v in numbers if type(v) in kinds and k != "seed"}


def _figures(row: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key != "update"}
