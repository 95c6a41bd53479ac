"""From a configuration to the objects of a run, with errors that name the key."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpo_torchrl.algorithms import DDPG, HPO, PPO, Algorithm, GumbelSoftmax, Pathwise, Rule
from hpo_torchrl.core.checks import check_choice, check_int, did_you_mean, first_line
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.modules.network import HybridNetwork
from hpo_torchrl.problems import (
    ContinuousInventoryEnv,
    InventoryEnv,
    RecordedInventoryEnv,
    SwitchedLQREnv,
)
from hpo_torchrl.training import Evaluation

ENVS: dict[str, Callable[..., DifferentiableEnv]] = {
    "inventory": InventoryEnv,
    "inventory_variant": ContinuousInventoryEnv.hybrid,
    "inventory_heterogeneous": InventoryEnv.heterogeneous,
    "inventory_from_file": RecordedInventoryEnv.from_file,
    "switched_lqr": SwitchedLQREnv.from_recipe,
    "switched_lqr_matrices": SwitchedLQREnv,
}
ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "hpo": HPO,
    "ppo": PPO,
    "gumbel_softmax": GumbelSoftmax,
    "pathwise": Pathwise,
    "ddpg": DDPG,
    **{name: partial(Rule, rule=name) for name in ("s_S", "R_S", "order_up_to", "fixed_mode")},
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def build_env(config: Mapping[str, Any], **changes: Any) -> DifferentiableEnv:
    """Build the environment of a configuration.

    Args:
        config: the ``env`` section: ``name`` and the constructor's arguments.
        changes: arguments that replace the section's.

    Raises:
        ValueError: a key is unknown or a value is refused; the message names it.
        TypeError: a value has the wrong type.
    """
    arguments = {**config, **changes}
    arguments.pop("evaluation", None)
    factory = _choose("env", arguments, ENVS)
    if isinstance(arguments.get("dtype"), str):
        arguments["dtype"] = DTYPES[check_choice("dtype", arguments["dtype"], DTYPES)]
    if isinstance(arguments.get("demand_traces"), (str, Path)):
        arguments["demand_traces"] = _load_tensor("env.demand_traces", arguments["demand_traces"])
    if arguments.get("device") is not None:
        _check_device(str(arguments["device"]))
    return call_with("env", factory, arguments)


def build_algorithm(config: Mapping[str, Any]) -> Algorithm:
    """Build environment, policy, critic and algorithm; the seed decides all initial weights.

    Args:
        config: the whole configuration.
    """
    torch.manual_seed(check_int("seed", config["seed"], minimum=0))
    env = build_env(config["env"])
    _check_keys("policy", config["policy"], accepted(HybridNetwork))
    policy = HybridPolicy.for_env(env, **config["policy"])
    critic = call_with("critic", make_value_network, {"env": env, **config["critic"]})
    arguments = dict(config["algorithm"])
    factory = _choose("algorithm", arguments, ALGORITHMS)
    return call_with(
        "algorithm", factory, {"env": env, "policy": policy, "critic": critic, **arguments}
    )


def build_tests(config: Mapping[str, Any]) -> tuple[dict[str, Evaluation], str, Evaluation]:
    """Build the evaluations of a configuration.

    Args:
        config: the ``env`` section.

    Returns:
        The tests by name, the name of the headline test, and the quick test for use in training.
    """
    settings = config["evaluation"]
    names = settings["tests"]
    check_choice("env.evaluation.headline", settings["headline"], names)
    if config.get("demand_traces") is not None:
        # Given traces are the test: all of them, from the start, without a long run beyond them.
        env = build_env(config, initial_state="empty", horizon=None, batch_size=None)
        steps = env.horizon or 1
        test = Evaluation(env, num_steps=steps, skip=min(16, steps - 1), seed=settings["seed"])
        return {"protocol": test}, "protocol", test

    def test_of(name: str, **changes: Any) -> Evaluation:
        arguments = {**settings["tests"][name], **changes}
        steps = {key: arguments.pop(key) for key in ("num_steps", "skip")}
        env = build_env(config, seed=settings["seed"], **arguments)
        if steps["num_steps"] is None and isinstance(env, RecordedInventoryEnv):
            steps["num_steps"] = env.num_periods
        return Evaluation(env, **steps, seed=settings["seed"])

    quick = dict(settings["quick"])
    like = check_choice("env.evaluation.quick.like", quick.pop("like"), names)
    return {name: test_of(name) for name in names}, settings["headline"], test_of(like, **quick)


def call_with(section: str, function: Callable, arguments: Mapping[str, Any]) -> Any:
    """Call ``function`` with a section's keys, refusing the ones it does not take.

    Raises:
        ValueError: a key is unknown; the message names it, its value and the known ones.
    """
    _check_keys(section, arguments, accepted(function))
    return function(**arguments)


def accepted(function: Callable) -> dict[str, inspect.Parameter]:
    """Return the arguments that a function, class or class method takes, by name.

    One that ends in ``**others`` hands these on: a class to the next class that it derives from, a
    class method to its class.
    """
    if isinstance(function, partial):
        known = accepted(function.func)
        return {name: p for name, p in known.items() if name not in function.keywords}
    if inspect.isclass(function):
        # The constructor's own signature: TorchRL's metaclass hides it behind (*args, **kwargs).
        chain = [cls.__dict__["__init__"] for cls in function.__mro__ if "__init__" in vars(cls)]
    else:
        chain = [function]
        if isinstance(owner := getattr(function, "__self__", None), type):
            chain += [cls.__dict__["__init__"] for cls in owner.__mro__ if "__init__" in vars(cls)]
    found: dict[str, inspect.Parameter] = {}
    for target in chain:
        parameters = inspect.signature(target).parameters.values()
        given = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
        named = {p.name: p for p in parameters if p.name != "self" and p.kind in given}
        found = named | found
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


def _check_keys(section: str, arguments: Mapping[str, Any], known: Collection[str]) -> None:
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(
                f"Unknown key {section}.{key}={value!r}.{did_you_mean(key, known)} "
                f"Known keys of {section}: {', '.join(known)}."
            )


def _choose(section: str, arguments: dict[str, Any], known: Mapping[str, Callable]) -> Callable:
    return known[check_choice(f"{section}.name", arguments.pop("name", None), known)]


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here ({first_line(error)}); use device=cpu."
        ) from error


def _load_tensor(key: str, path: str | Path) -> torch.Tensor:
    path = Path(path)
    if path.suffix not in (".npy", ".pt"):
        raise ValueError(f"{key} must name a .npy or .pt file, got {str(path)!r}.")
    if not path.is_file():
        raise ValueError(f"{key}={str(path)!r} is not a file.")
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise ValueError(
            f"{key}={str(path)!r} cannot be read as numbers: {first_line(error)}"
        ) from error
    if not isinstance(content, torch.Tensor):
        raise ValueError(
            f"{key}={str(path)!r} must hold one tensor, got a {type(content).__name__}."
        )
    return content
