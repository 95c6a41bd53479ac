"""A trained policy, to be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type


class TrainedPolicy(TensorDictModuleBase):
    """A policy to be used: on observations, on states, and on tensordicts.

    Called with an observation ``(*B, observation_dim)``, with a mapping that holds it as
    ``"observation"`` (and ``"action_mask"`` where there is one), or with a mapping of all state
    entries (``"step"`` may be left out), it returns the action: ``"discrete"``, int64 ``(*B,)``,
    and ``"continuous"``, ``(*B, n)``. Called with a tensordict it writes ``"action"`` there and
    returns it, so it can be given to ``env.rollout``.

    Args:
        module: the policy, a :class:`~hpo_torchrl.modules.HybridPolicy` or a rule.
        env: an environment of the problem, which turns states into observations.
        deterministic: whether to take the most probable discrete action and the mean of the
            continuous one, if a call does not say.

    Raises:
        ValueError: an entry is unknown or missing, or has another shape.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.experiments.policy import TrainedPolicy
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> env = InventoryEnv(lead_time=2)
        >>> policy = TrainedPolicy(HybridPolicy.for_env(env), env)
        >>> policy({"inventory": torch.tensor([[30.0, 12.0]])})["discrete"]
        tensor(0)
        >>> action, _ = policy.predict([[3.0, 1.2], [0.5, 0.0]])
        >>> action["continuous"].shape
        (2, 1)
    """

    def __init__(
        self, module: TensorDictModuleBase, env: EnvBase, *, deterministic: bool = True
    ) -> None:
        super().__init__()
        self.module, self.deterministic = module, deterministic
        self.in_keys, self.out_keys = list(module.in_keys), list(module.out_keys)
        self._env = (env,)  # an environment is a module too, but no part of this one

    @property
    def env(self) -> EnvBase:
        """The environment."""
        return self._env[0]

    def forward(self, given: Any, *, deterministic: bool | None = None) -> Any:
        """Return the action, or the tensordict that was given, with the action."""
        certain = self.deterministic if deterministic is None else deterministic
        kind = ExplorationType.DETERMINISTIC if certain else ExplorationType.RANDOM
        with torch.no_grad(), set_exploration_type(kind):
            if isinstance(given, TensorDictBase):
                if not set(self.module.in_keys) <= {*given.keys()}:
                    known = self.env.observation_spec.keys()
                    given.update(self._read({k: given.get(k) for k in given.keys() & {*known}}))
                return self.module(given)
            entries = given if isinstance(given, Mapping) else {"observation": given}
            answer = self.module(self._read(entries))
        return {key: answer.get(("action", key)) for key in ("discrete", "continuous")}

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[dict[str, np.ndarray], None]:
        """Act on arrays, in the manner of Stable-Baselines3.

        Args:
            observation: one observation, a batch of them, or a mapping as for a call.
            state: not used; a policy has no memory.
            episode_start: not used.
            deterministic: whether to take the most probable action.

        Returns:
            The action, ``"discrete"`` and ``"continuous"`` as arrays, and ``None`` for the state.
        """
        action = self(observation, deterministic=deterministic)
        return {key: value.cpu().numpy() for key, value in action.items()}, None

    def _read(self, given: Mapping[str, Any]) -> TensorDict:
        """Return what the policy reads, of the entries of a state or an observation."""
        spec, batch = self.env.observation_spec, len(self.env.batch_size)
        entries, shape = {}, torch.Size()
        for name, value in given.items():
            if name not in spec.keys():  # noqa: SIM118
                raise ValueError(
                    f"The policy knows no entry {name!r}; give an observation, or the entries of a "
                    f"state: {', '.join(spec.keys())}. A run on an environment object knows its "
                    "state if it is loaded with env=..."
                )
            entries[name] = torch.as_tensor(value, dtype=spec[name].dtype, device=self.env.device)
            own, found = spec[name].shape[batch:], entries[name].shape
            shape = found[: len(found) - len(own)]
            if found[len(shape) :] != own:
                raise ValueError(
                    f"{name} must have the shape {tuple(own)}, or that after batch dimensions; got "
                    f"{tuple(found)}."
                )
        if not set(self.module.in_keys) <= set(entries):
            state = [name for name in getattr(self.env, "state_names", ()) if name != "step"]
            missing = [name for name in state if name not in entries]
            if missing or not state:
                raise ValueError(
                    f"The policy reads {', '.join(map(str, self.module.in_keys))}, got "
                    f"{', '.join(entries)}; give that, or all entries of the state "
                    f"({', '.join(state) or 'which is not known here'})."
                )
            entries.setdefault("step", torch.zeros((*shape, 1), dtype=torch.int64))
            entries |= self.env.show(entries)
        return TensorDict(entries, batch_size=shape, device=self.env.device)
