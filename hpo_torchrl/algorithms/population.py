"""Several seeds of Hybrid Policy Optimization as one computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs.utils import set_exploration_type

from hpo_torchrl.algorithms.hpo import HPO, begin_update, mean_action
from hpo_torchrl.algorithms.members import check_members, stacked_losses
from hpo_torchrl.algorithms.stacked import StackedNetworks, beside
from hpo_torchrl.collectors.rollout import noise_of
from hpo_torchrl.collectors.streams import Stream, Streams
from hpo_torchrl.collectors.unrolling import entries_of
from hpo_torchrl.collectors.worlds import own_worlds
from hpo_torchrl.core.categorical import divergence_of, finite


class HPOPopulation:
    """S independent :class:`HPO` runs of one configuration, trained side by side.

    Each member is whole: its networks, optimizer, environment, running systems and random numbers
    are its own, and after any update they are, up to rounding, what it would have come to alone.
    Only the arithmetic is shared: one rollout of all worlds, one loss whose terms are each
    member's own means, one backward pass. A member that stops its passes early waits for the
    others.

    What members were given after they were built is theirs too: each optimizer steps with its own
    settings, and the losses are copied as they are when the population is made.

    Args:
        members: the runs, each built right after its seed was set.
        streams: for each the global random-number generators as its building left them.
        seeds: what the members are called in errors; 0, 1, ... by default.

    Raises:
        TypeError: the environment and policy cannot be unrolled on plain tensors.
        ValueError: the members are not of one configuration, two share what is one's own, a network
            has hooks, or a setting has no form for several, such as ``cross_term="adaptive"``.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.algorithms import HPO, HPOPopulation
        >>> from hpo_torchrl.collectors.streams import Stream
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy, make_value_network
        >>> members, streams = [], []
        >>> for seed in range(3):
        ...     _ = torch.manual_seed(seed)
        ...     env = InventoryEnv(batch_size=8, initial_state="random", seed=seed)
        ...     networks = HybridPolicy.for_env(env), make_value_network(env)
        ...     members.append(HPO(env, *networks, window=10))
        ...     streams.append(Stream())
        >>> population = HPOPopulation(members, streams)
        >>> population.anneal(0.0)
        >>> [sorted(metrics)[:2] for metrics in population.iterate()]
        [['clip_fraction', 'cost'], ['clip_fraction', 'cost'], ['clip_fraction', 'cost']]
    """

    def __init__(
        self, members: Sequence[HPO], streams: Sequence[Stream], seeds: Sequence[int] | None = None
    ) -> None:
        self.members, self.streams = list(members), list(streams)
        self.seeds = list(range(len(self.members))) if seeds is None else list(seeds)
        check_members(self.members, self.streams, self.seeds)
        self.worlds = own_worlds([member.env for member in self.members])
        self.networks = StackedNetworks(self.members, self.seeds)
        self.policy, self.critic = self.networks.policy, self.networks.critic
        losses = stacked_losses(self.members, self.policy, self.critic)
        self.loss, self.detached_loss = losses

    def anneal(self, progress: float) -> None:
        """Set scheduled coefficients for ``progress`` in [0, 1] of the run."""
        for member in self.members:
            member.anneal(progress)
        for loss in (self.loss, self.detached_loss):
            loss.entropy_coeff.fill_(self.members[0].entropy_bonus)

    def iterate(self) -> list[dict[str, float]]:
        """Collect a batch and update, for each member; return each one's metrics.

        Raises:
            NonFiniteError: of a member something is not finite; the message names its seed.
        """
        everyone = range(len(self.members))
        self.networks.load(everyone)
        batch = self._collect()
        metrics, held, mean, terms, before = begin_update(self, batch)
        norms = self.networks.step(everyone, terms)
        names = list(terms.keys())
        values = torch.stack([terms.get(name).detach() for name in names]).T.tolist()
        passes = self._minibatches(held, before)
        moved = (mean_action(self.policy, held) - mean) / self.members[0].action_scale
        moves = _means(moved.square()).sqrt().tolist()
        for at, member in enumerate(self.members):
            row = metrics[at]
            row |= {f"grad_norm/{name}": norm[at] for name, norm in norms.items()}
            row |= dict(zip(names, values[at], strict=True)) | passes[at] | {"move": moves[at]}
            member.follow("discrete", (row["kl"] / member.target_kl) ** 0.5)
            member.follow("continuous", row["move"] / member.target_move)
        return metrics

    # -- the batch -----------------------------------------------------------------------------

    def _collect(self) -> TensorDict:
        """Collect a batch ``(S, *B, T)``, each member's rows from its own random numbers."""
        first, names = self.members[0], self.worlds.names
        starts, noise = [], []
        for member, stream in zip(self.members, self.streams, strict=True):
            with stream.in_place():
                start = member.collector.start(member.collector.carried)
            starts.append(start)
            noise.append(noise_of(member.env, start, member.window, None))
        with set_exploration_type(first.collector.exploration_type):
            sample = self.policy.sampler(Streams(self.streams))

            def act(carried: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
                draw = sample(carried["observation"], self.policy.mask_of(carried))
                return entries_of(draw, self.policy)

            start = {name: torch.stack([own.get(name) for own in starts]) for name in names}
            batch = self.worlds.rollout(act, start, torch.stack(noise), first.collector.discount)
        running = self.worlds.carry(batch)
        for at, member in enumerate(self.members):
            member.collector.carry(_running(member, {n: running[n][at] for n in names}))
        return batch

    def add_values(self, batch: TensorDictBase) -> Tensor:
        """Do what :meth:`Learner.add_values` does, with the critic of each member."""
        keys, after = self.critic.in_keys, batch.get("next")
        value = self.critic(batch.select(*keys).detach()).get("state_value")
        held = value.detach()
        # Evaluated on their own are all systems at the steps where any ends, so that members keep
        # to their rows.
        ends = after.get("done").flatten(0, -3).squeeze(-1).any(0)
        ends[-1] = True
        steps = ends.nonzero().squeeze(-1)
        with torch.no_grad():
            last = self.critic(after.select(*keys)[..., steps].detach()).get("state_value")
        after.set("state_value", held.roll(-1, -2).index_copy(-2, steps, last))
        batch.set("state_value", held)
        return value

    def rescale(self, batch: TensorDictBase) -> list[dict[str, float]]:
        """Do what :meth:`Learner.rescale` does, each member's rewards by its own scale."""
        first, reward = self.members[0], batch.get(("next", "reward"))
        held = reward.detach()
        self.networks.check({"the reward ('next', 'reward')": held}, range(len(self.members)))
        for member, own in zip(self.members, held.unbind(0), strict=True):
            member.scaler.observe(own)
        scale = torch.stack([member.scaler.scale for member in self.members]).to(reward.dtype)
        shift: Tensor = torch.zeros_like(scale)
        if first.continuing and first.discount != 1.0:
            value, after = batch.get("state_value"), batch.get(("next", "state_value"))
            shift = _means(held) / scale + first.discount * _means(after) - _means(value)
        scaled = reward / beside(scale, reward) - beside(shift, reward)
        batch.set(("next", "reward"), scaled)
        costs = (-_means(held) / getattr(first.env, "cost_units", 1.0)).tolist()
        return [
            {"cost": cost} | member.learning_rates()
            for member, cost in zip(self.members, costs, strict=True)
        ]

    # -- the steps -----------------------------------------------------------------------------

    def _minibatches(self, held: TensorDictBase, before: Tensor) -> list[dict[str, float]]:
        """The passes over detached data; a member that has moved far enough makes no more."""
        first, keys = self.members[0], self.detached_loss.tensor_keys
        everyone = list(range(len(self.members)))
        needed: list[Any] = [*self.policy.in_keys, keys.discrete_action, keys.sample_log_prob]
        data = held.select(*needed, keys.advantage, keys.value_target)
        data = data.reshape(len(everyone), -1)
        metrics: list[dict[str, float]] = [{"kl": 0.0, "epochs": 0} for _ in everyone]
        active = everyone
        for passes in range(first.epochs + 1):
            divergence = self._divergence(_rows(held, active), _rows(before, active))
            for at, kl in zip(active, divergence, strict=True):
                metrics[at]["kl"] = kl
            going = [at for at in active if metrics[at]["kl"] <= first.target_kl]
            if passes == first.epochs or not going:
                break
            if going != active:
                self.networks.load(going)
            active = going
            clipped = self._one_pass(_rows(data, active), active)
            for at, share in zip(active, clipped, strict=True):
                metrics[at] |= {"epochs": passes + 1} | share
        if active != everyone:
            self.networks.load(everyone)
        return metrics

    def _one_pass(self, data: TensorDictBase, active: Sequence[int]) -> list[dict[str, float]]:
        """Descend once on each minibatch; return of the last one what was clipped."""
        number, rows = data.shape
        orders = [
            torch.randperm(rows, generator=self.streams[at].generator, device=data.device)
            for at in active
        ]
        # All rows in their order at once: an index into one dimension is the fastest.
        index = torch.stack(orders) + rows * torch.arange(number, device=data.device).unsqueeze(-1)
        mixed = data.reshape(-1).apply(lambda value: value.index_select(0, index.flatten()))
        for part in mixed.reshape(number, rows).chunk(self.members[0].num_minibatches, 1):
            terms = self.detached_loss(part)
            self.networks.step(active, terms)
        clipped = terms.get("clip_fraction", None)
        if clipped is None:
            return [{} for _ in active]
        return [{"clip_fraction": share} for share in clipped.tolist()]

    @torch.no_grad()
    def _divergence(self, held: TensorDictBase, before: Tensor) -> list[float]:
        """Each member's mean KL divergence of today's choice from that before the update."""
        after = self.policy.discrete_logits(held)
        divergence = divergence_of(before, finite(after), held.ndim)
        return [max(0.0, mean) for mean in _means(divergence).tolist()]


def _means(value: Tensor) -> Tensor:
    """The mean of each member, ``(S,)``."""
    return value.flatten(1).mean(1)


def _rows(value: Any, active: Sequence[int]) -> Any:
    return value if len(active) == len(value) else value[list(active)]


def _running(member: HPO, entries: dict[str, Tensor]) -> TensorDict:
    """The systems of a member between two batches, as its own collector would hold them."""
    never = torch.zeros((*member.env.batch_size, 1), dtype=torch.bool, device=member.env.device)
    ends = {name: never.clone() for name in ("done", "terminated", "truncated")}
    return TensorDict(
        {**entries, **ends}, batch_size=member.env.batch_size, device=member.env.device
    )
