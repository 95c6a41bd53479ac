"""The policy of a run, in a small folder of its own: weights, and how to build it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn
from torchrl.envs import EnvBase

from hpo_torchrl.core.checks import first_line
from hpo_torchrl.training.run_folder import RunFolderError, replace


class PolicyFolder:
    """The folder ``policy/`` of a run, which can be copied away from it.

    ``policy.json`` holds the resolved configuration of the run, from which the policy is built, the
    shapes and types of what it reads and writes, and the digest of ``weights.safetensors``.
    Neither file can carry code.

    Args:
        path: the folder.

    Examples:
        >>> import tempfile, torch
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.training.policy_folder import PolicyFolder
        >>> env = InventoryEnv(num_items=2, batch_size=4)
        >>> policy, other = HybridPolicy.for_env(env), HybridPolicy.for_env(env)
        >>> folder = PolicyFolder(tempfile.mkdtemp())
        >>> folder.write(policy, env, {"seed": 0}, update=400)
        >>> folder.load(other)
        >>> observation = env.reset()["observation"]
        >>> bool((policy.network(observation)[1] == other.network(observation)[1]).all())
        True
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.description = self.path / "policy.json"
        self.weights = self.path / "weights.safetensors"

    @property
    def found(self) -> bool:
        """Whether this is such a folder, complete."""
        return self.description.is_file()

    def write(
        self, policy: nn.Module, env: EnvBase, config: Mapping[str, Any], update: int
    ) -> None:
        """Write the policy; the description comes last, so that an incomplete folder has none.

        Args:
            policy: the policy.
            env: an environment of the problem, for its specs.
            config: the resolved configuration.
            update: the update that the weights are of.
        """
        self.forget()
        kept = {name: value.detach().cpu().clone() for name, value in policy.state_dict().items()}
        content = safetensors.torch.save(kept)
        batch, specs = len(env.batch_size), {"action": env.full_action_spec["action"]}
        read = [key for key in getattr(policy, "in_keys", ()) if key in env.observation_spec]
        specs |= {str(key): env.observation_spec[key] for key in read}
        entries = {
            "/".join((name, *map(str, [key] if key else []))): {
                "shape": list(leaf.shape[batch:]),
                "dtype": str(leaf.dtype).removeprefix("torch."),
            }
            for name, spec in specs.items()
            for key, leaf in (spec.items(True, True) if hasattr(spec, "items") else [("", spec)])
        }
        description = {
            "update": update,
            "entries": entries,
            "weights": {"file": self.weights.name, "sha256": hashlib.sha256(content).hexdigest()},
            "config": dict(config),
        }
        replace(self.weights, content)
        replace(self.description, json.dumps(description, indent=2) + "\n")

    def forget(self) -> None:
        """Remove the description, if there is one: the policy is not the run's any longer."""
        self.description.unlink(missing_ok=True)

    def read_config(self) -> dict[str, Any]:
        """Return the configuration of the run.

        Raises:
            RunFolderError: the description is damaged.
        """
        return self._read()["config"]

    def load(self, policy: nn.Module) -> None:
        """Give a policy the weights.

        Raises:
            RunFolderError: a file is missing or damaged, or the policy is built differently.
        """
        known = self._read()["weights"]["sha256"]
        try:
            content = self.weights.read_bytes()
            if hashlib.sha256(content).hexdigest() != known:
                raise ValueError("its digest is not the one in the description")
            policy.load_state_dict(safetensors.torch.load(content))
        except (OSError, ValueError, RuntimeError) as error:
            raise RunFolderError(
                f"{self.weights} cannot be used ({first_line(error)}). Copy the whole folder anew "
                "from its run, or load the run itself."
            ) from error

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.description.read_text(encoding="utf-8"))
            if not isinstance(content["config"], dict) or "sha256" not in content["weights"]:
                raise ValueError("it holds no configuration")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{self.description} is missing or damaged ({first_line(error)})."
            ) from error
        return content
