"""What the members of a population must have in common, and what each must have of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from torchrl.objectives.value import GAE

from hpo_torchrl.algorithms.hpo import HPO
from hpo_torchrl.collectors.rollout import check_functional
from hpo_torchrl.collectors.streams import Stream
from hpo_torchrl.objectives import HPOLoss
from hpo_torchrl.objectives.stacked import StackedHPOLoss

_PLAIN = (int, float, str, type(None))
_LOSSES = ("loss", "detached_loss")
# What a member's loss and that of all are told alike.
_OPTIONS = ("pathwise", "cross_term", "loss_critic_type", "entropy_in_advantage_units")
_COEFFICIENTS = ("clip_epsilon", "critic_coeff")
_ALONE = "or train the seeds one after another by --multirun seed=0,1,..."


def check_members(members: Sequence[HPO], streams: Sequence[Stream], seeds: Sequence[int]) -> None:
    """Raise if members cannot be one population.

    Raises:
        TypeError: a member is of another class, or cannot be unrolled on plain tensors.
        ValueError: two differ in a setting or share what is one's own, or a setting has no form
            for several.
    """
    if not members:
        raise ValueError("A population needs at least one member, got none.")
    for name, given in (("streams", streams), ("seeds", seeds)):
        if len(given) != len(members):
            raise ValueError(
                f"{name} must have one entry for each of the {len(members)} members, got "
                f"{len(given)}."
            )
    first = members[0]
    for member in members:
        if type(member) is not HPO:
            raise TypeError(
                "A population is of HPO itself, whose update it makes for all, got "
                f"{type(member).__name__}."
            )
    _check_apart(members, streams)
    expected = _settings(first)
    for member in members:
        found = _settings(member)
        for name in dict.fromkeys((*expected, *found)):
            value, other = (settings.get(name) for settings in (expected, found))
            if value != other:
                raise ValueError(
                    f"Members of a population have one configuration, but {name} of one is "
                    f"{value!r}, of another {other!r}."
                )
    check_functional("num_seeds above 1", first.env, first.policy, "use --multirun seed=0,1,...")
    _check_ways(first)


def stacked_losses(members: Sequence[HPO], policy: Any, critic: Any) -> list[StackedHPOLoss]:
    """Return the losses of members as they are now, of all as one.

    Args:
        members: the members, checked.
        policy: their policies as one.
        critic: their critics, likewise.

    Returns:
        That of the differentiable step, with its advantage estimator, and that of the detached
        passes.
    """
    first, losses = members[0], []
    for loss in first.losses():
        names = (*_OPTIONS, *_COEFFICIENTS, "entropy_coeff")
        options = {name: getattr(loss, name) for name in names}
        losses.append(StackedHPOLoss(policy, critic, **options))
        losses[-1].set_keys(**asdict(loss.tensor_keys))
    estimator = first.loss.value_estimator
    losses[0].make_value_estimator(gamma=estimator.gamma, lmbda=estimator.lmbda)
    expected, found = _estimator(losses[0]), _estimator(first.loss)
    for name, value in expected.items():
        if found[name] != value:
            raise ValueError(
                "Advantages of several seeds are made by GAE with gamma and lmbda alone, but "
                f"{name} of loss.value_estimator is {found[name]!r} instead of {value!r}. Leave it "
                f"out of make_value_estimator, {_ALONE}."
            )
    return losses


def _check_apart(members: Sequence[HPO], streams: Sequence[Stream]) -> None:
    """Raise if two members share what each must have of its own."""
    owners: dict[int, int] = {}
    for at, (member, stream) in enumerate(zip(members, streams, strict=True)):
        for name, thing in _own_things(member, stream):
            owner = owners.setdefault(id(thing), at)
            if owner != at:
                raise ValueError(
                    f"Members of a population are independent, but members {owner} and {at} share "
                    f"one {name}; build each from its own environment, networks and stream."
                )


def _own_things(member: HPO, stream: Stream) -> Iterator[tuple[str, Any]]:
    yield "learner", member
    yield "environment", member.env
    yield "random-number generator", member.env.rng
    yield "optimizer", member.optimizer
    yield "stream", stream
    for name in ("policy", "critic"):
        for parameter in getattr(member, name).parameters():
            yield f"parameter of the {name}", parameter


def _check_ways(first: HPO) -> None:
    """Raise if members do something in a way that has no form for several."""
    if any(loss.cross_term == "adaptive" for loss in first.losses()):
        raise ValueError(
            "num_seeds above 1 has no algorithm.cross_term='adaptive', which weighs each seed's "
            "gradient by passes of its own; use true or false, or --multirun seed=0,1,..."
        )
    for loss in first.losses():
        if loss.reduction != "mean":
            raise ValueError(
                "num_seeds above 1 takes the mean of each seed's data, got a loss of "
                f"reduction={loss.reduction!r}; use 'mean', {_ALONE}."
            )
    if type(first.loss.value_estimator) is not GAE:
        raise ValueError(
            "num_seeds above 1 makes advantages by GAE, got a loss whose make_value_estimator "
            f"chose {type(first.loss.value_estimator).__name__}; choose GAE, {_ALONE}."
        )
    ways = {
        "checkpoint_steps": first.collector.checkpoint_steps,
        "compile": first.collector.compiled is not None or None,
    }
    for name, value in ways.items():
        if value is not None:
            raise ValueError(
                f"num_seeds above 1 has a way of its own to roll out: leave algorithm.{name}="
                f"{value} out, or use --multirun seed=0,1,..."
            )


def _settings(member: HPO) -> dict[str, Any]:
    """What members must have in common: numbers and words, those of the losses too."""
    plain = {name: value for name, value in vars(member).items() if isinstance(value, _PLAIN)}
    settings = {**plain, **member.collecting}
    for of, loss in zip(_LOSSES, member.losses(), strict=True):
        own = {name: getattr(loss, name) for name in (*_OPTIONS, "reduction")}
        for name in _COEFFICIENTS:
            value = getattr(loss, name)
            own[name] = None if value is None else float(value)
        own |= {f"tensor_keys.{name}": key for name, key in asdict(loss.tensor_keys).items()}
        # The first loss goes by the names of the configuration.
        settings |= {name if of == "loss" else f"{of}.{name}": own[name] for name in own}
    return settings | {f"value_estimator.{n}": v for n, v in _estimator(member.loss).items()}


def _estimator(loss: HPOLoss) -> dict[str, Any]:
    """What an advantage estimator is told."""
    estimator = loss.value_estimator
    told = {
        name: value
        for name, value in vars(estimator).items()
        # No graph is kept of advantages, whatever the estimator is told.
        if isinstance(value, _PLAIN) and not name.startswith("_") and name != "differentiable"
    }
    numbers = {name: float(value) for name, value in estimator.named_buffers()}
    return {"type": type(estimator).__name__, **told, **numbers}
