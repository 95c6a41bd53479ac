"""Several seeds of Hybrid Policy Optimization as one computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs.utils import set_exploration_type
from torchrl.objectives.value.functional import vec_generalized_advantage_estimate

from hpo_torchrl._entropy import divergence_of
from hpo_torchrl.algorithms.hpo import HPO
from hpo_torchrl.algorithms.stacked import StackedNetworks, beside
from hpo_torchrl.collectors.rollout import check_functional, entries_of, noise_of
from hpo_torchrl.collectors.streams import Stream, Streams
from hpo_torchrl.collectors.worlds import own_worlds
from hpo_torchrl.objectives.stacked import StackedHPOLoss


class HPOPopulation:
    """S independent :class:`HPO` runs of one configuration, trained side by side.

    Each member is whole: its networks, optimizer, environment, running systems and random numbers
    are its own, and after any update they are, up to rounding, what it would have come to alone.
    Only the arithmetic is shared: one rollout of all worlds, one loss whose terms are each
    member's own means, one backward pass. A member that stops its passes early waits for the
    others.

    Args:
        members: the runs, each built right after its seed was set.
        streams: for each the global random-number generators as its building left them.
        seeds: what the members are called in errors; 0, 1, ... by default.

    Raises:
        TypeError: the environment and policy cannot be unrolled on plain tensors.
        ValueError: the members are not of one configuration, or use ``cross_term="adaptive"``.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.algorithms import HPO, HPOPopulation
        >>> from hpo_torchrl.collectors.streams import Stream
        >>> from hpo_torchrl.envs import InventoryEnv
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
        _check_members(self.members)
        first = self.members[0]
        self.worlds = own_worlds([member.env for member in self.members])
        self.networks = StackedNetworks(self.members, self.seeds)
        self.policy, self.critic = self.networks.policy, self.networks.critic
        self.loss, self.detached_loss = (
            StackedHPOLoss(
                self.policy,
                self.critic,
                pathwise=loss.pathwise,
                cross_term=loss.cross_term,
                clip_epsilon=loss.clip_epsilon,
                entropy_coeff=loss.entropy_coeff,
                critic_coeff=loss.critic_coeff,
            )
            for loss in first.losses()
        )
        self.loss.make_value_estimator(gamma=first.discount, lmbda=first.gae_lambda)

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
        batch, before, mean = self._collect()
        metrics = self._rescale(batch)
        terms = self.loss(batch)
        norms = self.networks.step(everyone, terms)
        names = list(terms.keys())
        values = torch.stack([terms.get(name).detach() for name in names]).T.tolist()
        passes = self._minibatches(batch.detach(), before, mean)
        for at, member in enumerate(self.members):
            row = metrics[at]
            row |= {f"grad_norm/{name}": norm[at] for name, norm in norms.items()}
            row |= dict(zip(names, values[at], strict=True)) | passes[at]
            member.follow("discrete", (row["kl"] / member.target_kl) ** 0.5)
            member.follow("continuous", row["move"] / member.target_move)
        return metrics

    # -- the batch -----------------------------------------------------------------------------

    def _collect(self) -> tuple[TensorDict, Tensor, Tensor]:
        """Collect ``(S, *B, T)``; the choices' log-probabilities, and means of actions, there."""
        first, names = self.members[0], self.worlds.names
        starts, noise = [], []
        for member, stream in zip(self.members, self.streams, strict=True):
            with stream.in_place():
                start = member.collector.start(member.collector.carried)
            starts.append(start)
            noise.append(noise_of(member.env, start, member.window, None))
        source, logits, means = Streams(self.streams), [], []

        def act(carried: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
            draw = self.policy.draw(carried["observation"], self.policy.mask_of(carried), source)
            logits.append(draw.logits)
            mean = draw.continuous.detach()
            if draw.noise is not None and draw.scale is not None:
                mean = mean - draw.scale * draw.noise
            means.append(mean)
            return entries_of(draw, self.policy)

        with set_exploration_type(first.collector.exploration_type):
            batch = self.worlds.rollout(
                act,
                {name: torch.stack([start.get(name) for start in starts]) for name in names},
                torch.stack(noise),
                first.collector.discount,
            )
        running = self.worlds.carry(batch)
        for at, member in enumerate(self.members):
            member.collector.carry(_running(member, {n: running[n][at] for n in names}))
        time = batch.ndim - 1
        return batch, torch.stack(logits, time), torch.stack(means, time)

    @torch.no_grad()
    def _values(self, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The critics' values of every step's state and of the state after it, ``(S, *B, T, 1)``.

        What follows a step is where the next one begins, but for the last and for resets.
        """
        keys = self.critic.in_keys
        value = self.critic(batch.detach().select(*keys)).get("state_value")
        next_value = torch.cat([value[..., 1:, :], value[..., :1, :]], -2)
        after = batch.get("next").detach()
        apart = after.get("done").flatten(0, -3).squeeze(-1).any(0)
        apart[-1] = True
        steps = apart.nonzero().squeeze(-1)
        found = self.critic(after.select(*keys)[..., steps]).get("state_value")
        return value, next_value.index_copy(-2, steps, found)

    def _rescale(self, batch: TensorDictBase) -> list[dict[str, float]]:
        """Bring rewards to each member's scale and add its advantages, as :class:`HPO` does."""
        first, estimator = self.members[0], self.loss.value_estimator
        reward = batch.get(("next", "reward"))
        self.networks.check(
            {"the reward ('next', 'reward')": reward.detach()}, range(len(self.members))
        )
        for member, own in zip(self.members, reward.detach().unbind(0), strict=True):
            member.scaler.observe(own)
        scale = torch.stack([member.scaler.scale for member in self.members]).to(reward.dtype)
        cost = -_means(reward.detach()) / getattr(first.env, "cost_units", 1.0)
        scaled = reward / beside(scale, reward)
        value, after = self._values(batch)
        if first.continuing and first.discount != 1.0:
            shift = _means(scaled.detach()) + first.discount * _means(after) - _means(value)
            scaled = scaled - beside(shift, reward)
        batch.set(("next", "reward"), scaled)
        advantage, target = vec_generalized_advantage_estimate(
            estimator.gamma,
            estimator.lmbda,
            value,
            after,
            scaled.detach(),
            batch.get(("next", "done")),
            batch.get(("next", "terminated")),
            time_dim=-2,
        )
        batch.set("advantage", advantage).set("value_target", target)
        return [
            {"cost": own} | member.learning_rates()
            for member, own in zip(self.members, cost.tolist(), strict=True)
        ]

    # -- the steps -----------------------------------------------------------------------------

    def _minibatches(
        self, held: TensorDictBase, before: Tensor, mean: Tensor
    ) -> list[dict[str, float]]:
        """The passes over detached data; a member that has moved far enough makes no more."""
        first, keys = self.members[0], self.detached_loss.tensor_keys
        number = len(self.members)
        needed: list[Any] = [*self.policy.in_keys, keys.discrete_action, keys.sample_log_prob]
        data = held.select(*needed, keys.advantage, keys.value_target).reshape(number, -1)
        metrics: list[dict[str, float]] = [{"kl": 0.0, "epochs": 0} for _ in self.members]
        active = list(range(number))
        for passes in range(first.epochs):
            logits = self._logits(_rows(held, active))
            for at, kl in zip(
                active, _divergence(_rows(before, active), logits, held.ndim), strict=True
            ):
                metrics[at]["kl"] = kl
            going = [at for at in active if metrics[at]["kl"] <= first.target_kl]
            if going != active:
                self.networks.load(going or range(number))
            active = going
            if not active:
                break
            clipped = self._one_pass(_rows(data, active), active)
            for at, share in zip(active, clipped, strict=True):
                metrics[at] |= {"epochs": passes + 1} | share
        if len(active) < number:
            self.networks.load(range(number))
        return self._after(held, before, mean, active, metrics)

    def _one_pass(self, data: TensorDictBase, active: Sequence[int]) -> list[dict[str, float]]:
        """Descend once on each minibatch; return of the last one what was clipped."""
        own = torch.arange(len(active), device=data.device).unsqueeze(-1)
        orders = [
            torch.randperm(data.shape[1], generator=self.streams[at].generator, device=data.device)
            for at in active
        ]
        for rows in torch.stack(orders).chunk(self.members[0].num_minibatches, 1):
            terms = self.detached_loss(data[own, rows])
            self.networks.step(active, terms)
        clipped = terms.get("clip_fraction", None)
        if clipped is None:
            return [{} for _ in active]
        return [{"clip_fraction": share} for share in clipped.tolist()]

    @torch.no_grad()
    def _logits(self, held: TensorDictBase) -> Tensor:
        return self.policy.discrete_logits(held)

    @torch.no_grad()
    def _after(
        self,
        held: TensorDictBase,
        before: Tensor,
        mean: Tensor,
        active: Sequence[int],
        metrics: list[dict[str, float]],
    ) -> list[dict[str, float]]:
        """Add how far an update has moved the policies; a member that stopped knows its choice."""
        dist = self.policy.get_dist(held.select(*self.policy.in_keys))
        if active:
            divergence = _divergence(_rows(before, active), _rows(dist.logits, active), held.ndim)
            for at, kl in zip(active, divergence, strict=True):
                metrics[at]["kl"] = kl
        moved = dist.branch(held.get(("action", "discrete")))[0] - mean
        moves = _means((moved / self.members[0].action_scale).square()).sqrt().tolist()
        return [row | {"move": move} for row, move in zip(metrics, moves, strict=True)]


def _means(value: Tensor) -> Tensor:
    """The mean of each member, ``(S,)``."""
    return value.flatten(1).mean(1)


def _divergence(before: Tensor, after: Tensor, ndim: int) -> list[float]:
    """Each member's mean KL divergence of its choices ``(S, *B, T, [H,] M)`` from those before."""
    # A masked option has logit -inf; clamped, it adds 0 to a divergence instead of NaN.
    before, after = (logits.clamp_min(torch.finfo(logits.dtype).min) for logits in (before, after))
    divergence = divergence_of(before, after, ndim)
    return [max(0.0, mean) for mean in _means(divergence).tolist()]


def _rows(value: Any, active: Sequence[int]) -> Any:
    return value if len(active) == len(value) else value[list(active)]


def _running(member: HPO, entries: dict[str, Tensor]) -> TensorDict:
    """The systems of a member between two batches, as its own collector would hold them."""
    never = torch.zeros((*member.env.batch_size, 1), dtype=torch.bool, device=member.env.device)
    ends = {name: never.clone() for name in ("done", "terminated", "truncated")}
    return TensorDict(
        {**entries, **ends}, batch_size=member.env.batch_size, device=member.env.device
    )


def _check_members(members: Sequence[HPO]) -> None:
    if not members:
        raise ValueError("A population needs at least one member, got none.")
    first = members[0]
    check_functional("num_seeds above 1", first.env, first.policy, "use --multirun seed=0,1,...")
    if first.loss.cross_term == "adaptive":
        raise ValueError(
            "num_seeds above 1 has no algorithm.cross_term='adaptive', which weighs each seed's "
            "gradient by passes of its own; use true or false, or --multirun seed=0,1,..."
        )
