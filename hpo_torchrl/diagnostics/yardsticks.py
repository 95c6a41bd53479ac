"""Yardsticks for any problem: the best constant action, the best threshold, the rules it brings."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpo_torchrl.core.categorical import ACTION_MASK
from hpo_torchrl.core.reference import Test
from hpo_torchrl.diagnostics.joint_actions import ends_of, joint_actions
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import RulePolicy

# Steps of the world that rules are searched in, of which the first third may be skipped, and rules
# times instances simulated at once.
_STEPS, _SIDE_BY_SIDE = 240, 2**14
# The search: rules drawn at first, those kept, and, round by round, children and instances.
_DRAWN, _KEPT = 384, 8
_ROUNDS = [(12, 24)] * 7 + [(8, 64)] * 2
_MOST_CHOICES = 64
# What an environment that takes no such batch, or a rule that has no answer, may raise.
TROUBLE = (RuntimeError, ValueError, TypeError, IndexError, KeyError, NotImplementedError)
_TRIED = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]  # shares of the range, tried at first


class Rules(NamedTuple):
    """K rules: below one threshold on an entry of the observation, between two, and above both.

    What is done below is done only while a second entry, the guard, is below a limit of its own,
    and what is done above only while the guard is above another limit: not into a full store, nor
    out of an empty one. A constant action has three equal parts.

    Attributes:
        entry: which entry decides, and which guards, ``(K, 2)``.
        threshold: the two thresholds, ascending, ``(K, 2)``.
        limit: the limits of the guard, infinite where it does nothing, ``(K, 2)``.
        choice: which joint discrete action each of the three parts takes, ``(K, 3)``.
        share: where between the ends of the continuous action, ``(K, 3, n)``.
    """

    entry: Tensor
    threshold: Tensor
    limit: Tensor
    choice: Tensor
    share: Tensor

    def at(self, index: Tensor | slice) -> Rules:
        """Return some of the rules."""
        return Rules(*(part[index] for part in self))


class ThresholdPolicy(RulePolicy):
    """The only rule of a :class:`Rules` as a policy; its ``repr`` says what it does.

    Args:
        actions: the actions of the problem.
        rule: the rule, K = 1.
    """

    def __init__(self, actions: Actions, rule: Rules) -> None:
        super().__init__()
        self.actions, self.rule, self.parts = actions, rule, actions.parts(rule)
        self.in_keys = ["observation", *([ACTION_MASK] if actions.masked else [])]

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actions of the part in which the entry of the observation lies."""
        observation, mask = state[0], state[1] if len(state) > 1 else None
        found = self.actions.of(self.rule, self.parts, observation.unsqueeze(0), mask)
        return found[0].squeeze(0), found[1].squeeze(0)

    def __repr__(self) -> str:
        rows = zip(self.parts[0][0].tolist(), self.parts[1][0].tolist(), strict=True)
        low, middle, high = (f"{d} with {', '.join(f'{x:.3g}' for x in u)}" for d, u in rows)
        if low == middle == high:
            return f"always {middle}"
        (entry, guard), (below, above) = self.rule.entry[0].tolist(), self.rule.limit[0].tolist()
        while_ = f" while observation[{guard}] is"
        until = f"{while_} below {below:.3g}" if below < torch.inf else ""
        beyond = f"{while_} above {above:.3g}" if above > -torch.inf else ""
        ends = self.rule.threshold[0].tolist()
        return (
            f"observation[{entry}] below {ends[0]:.3g}{until}: {low}, above {ends[1]:.3g}{beyond}: "
            f"{high}, else {middle}"
        )


class Actions:
    """The discrete actions of an environment, and its continuous ones by their share of the range.

    Where there is no end, a share is mapped to as far as ten action scales away.
    """

    def __init__(self, env: DifferentiableEnv) -> None:
        self.masked, heads = env.has_action_mask, env.num_heads
        if heads is None or env.num_discrete**heads <= _MOST_CHOICES:
            joint = joint_actions(env)
        else:  # the same action of every head
            every = torch.arange(env.num_discrete, device=env.device)
            joint = every.unsqueeze(-1).expand(-1, heads)
        self.choices = joint if heads else joint[:, 0]
        shared = env.branch_bounds is not None and env.branch_bounds.of_total
        ends = (end.to(env.action_scale) for end in ends_of(env, joint))
        self.low, self.high = (end / env.continuous_dim if shared else end for end in ends)
        self.scale = env.action_scale.expand_as(self.low)

    def at(self, choice: Tensor, share: Tensor) -> Tensor:
        """Return the continuous action of a choice ``(...)`` at shares ``(..., n)`` in [0, 1]."""
        low, high, unit = self.low[choice], self.high[choice], 10.0 * self.scale[choice]
        below, above = low.isfinite(), high.isfinite()
        free = unit * (2 * share - 1) ** 3
        # A square or a cube: most shares are near the end that there is, or near 0.
        one = torch.where(below, low + unit * share**2, high - unit * (1 - share) ** 2)
        both = low + (high - low) * share
        found = torch.where(below & above, both, torch.where(below | above, one, free))
        return torch.minimum(torch.maximum(found, low), high)

    def parts(self, rules: Rules) -> tuple[Tensor, Tensor]:
        """Return the actions of the parts of K rules: ``(K, 3)`` (with heads another H), and u."""
        return self.choices[rules.choice], self.at(rules.choice, rules.share)

    def of(
        self, rules: Rules, parts: tuple[Tensor, Tensor], observation: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the actions of K rules at observations ``(K, *B, O)``, given their parts."""
        batch = observation.shape[1:-1]
        count, flat = (
            len(rules.entry),
            observation.flatten(1, -2) if batch else observation[:, None],
        )
        index = rules.entry.unsqueeze(1).expand(count, flat.shape[1], 2)
        value, guard = flat.expand(count, *flat.shape[1:]).gather(-1, index).unbind(-1)
        low = (value <= rules.threshold[:, :1]) & (guard < rules.limit[:, :1])
        high = (value > rules.threshold[:, 1:]) & (guard > rules.limit[:, 1:])
        part = 1 - low.long() + high.long()  # (K, B)
        rows = torch.arange(count, device=flat.device).unsqueeze(-1)
        discrete, u = (known[rows, part].unflatten(1, batch or (1,)) for known in parts)
        if not batch:
            discrete, u = discrete.squeeze(1), u.squeeze(1)
        if mask is not None:
            allowed = mask.expand(*discrete.shape, -1).gather(-1, discrete.unsqueeze(-1))
            discrete = torch.where(allowed.squeeze(-1), discrete, mask.int().argmax(-1))
        return discrete, u


class World:
    """A fixed world in which many rules are simulated side by side: common random numbers.

    Args:
        test: what is measured; its environment is copied, with another seed.
    """

    def __init__(self, test: Test) -> None:
        self.env = env = copy.deepcopy(test.env)
        self.actions = Actions(env)
        env.set_seed(test.seed + 1)
        self.ndim = len(env.batch_size)
        steps = min(test.num_steps, env.horizon or _STEPS)
        discount = getattr(test, "discount", 1.0)
        self.weights = discount ** torch.arange(steps, dtype=torch.float64)
        self.weights[: min(test.skip, steps // 3)] = 0.0
        self.start, self.noise = env.fresh_state(), env.sample_noise(steps).movedim(self.ndim, 0)
        self.again, self.size = env.fresh_state(), max(env.batch_size.numel(), 1)
        self.spread = torch.zeros(1, env.observation_dim), torch.ones(env.observation_dim)
        # Fewer instances, unless the batch has several dimensions or instances differ in more
        # than their states.
        self.alike = self.ndim == 1
        if self.alike:
            try:
                self.costs(self.draw(1, "guarded"), 1)
            except (RuntimeError, IndexError):
                self.alike = False
        seen: list[Tensor] = []
        self.costs(self.draw(16, "guarded"), _ROUNDS[0][1], seen)
        whole = torch.cat(seen)
        whole = whole[whole.isfinite().all(-1)]
        self.spread = whole, whole.std(0) + 1e-9

    def draw(self, count: int, kind: str) -> Rules:
        """Draw rules of a kind at random, from torch's generator as it is."""
        n, parts = self.actions.low.shape[-1], 1 if kind == "constant" else 3
        seen, place = self.spread[0], self.env.device
        entry = torch.randint(seen.shape[-1], (count, 2))
        pick = torch.randint(len(seen), (2, count, 2))
        threshold = seen[pick[0], entry[:, :1]].sort(-1).values
        limit = seen[pick[1], entry[:, 1:]]
        ends = torch.tensor([torch.inf, -torch.inf]).to(limit)
        unguarded = torch.rand(count, 2) < (0.25 if kind == "guarded" else 1.0)
        limit = torch.where(unguarded, ends, limit)
        choice = torch.randint(len(self.actions.choices), (count, parts)).expand(-1, 3)
        tried = torch.tensor(_TRIED).to(seen)
        share = tried[torch.randint(len(tried), (count, parts, n))].expand(-1, 3, -1)
        return Rules(*(part.to(place) for part in (entry, threshold, limit, choice, share)))

    def children(self, rules: Rules, width: float, kind: str) -> Rules:
        """Return variations of rules, each in some of its parts; ``width`` in deviations."""
        other, count = self.draw(len(rules.entry), kind), len(rules.entry)
        n, parts = rules.share.shape[-1], 1 if kind == "constant" else 3

        def few(chance: float, *shape: int) -> Tensor:
            return torch.rand(count, *shape) < chance

        def moved(ends: Tensor, column: int) -> Tensor:
            unit = self.spread[1][rules.entry[:, column]].unsqueeze(-1)
            return ends + torch.randn(count, 2) * unit * width * few(0.25, 2)

        entry = torch.where(few(0.04, 2), other.entry, rules.entry)
        same = entry == rules.entry
        threshold = torch.where(same[:, :1], moved(rules.threshold, 0), other.threshold)
        limit = torch.where(same[:, 1:] & ~few(0.04, 2), moved(rules.limit, 1), other.limit)
        choice = torch.where(few(0.04, parts), other.choice[:, :parts], rules.choice[:, :parts])
        share = rules.share[:, :parts] + torch.randn(count, parts, n) * width * few(0.25, parts, 1)
        share = torch.where(few(0.04, parts, 1), other.share[:, :parts], share.clamp(0, 1))
        threshold = threshold.sort(-1).values
        return Rules(entry, threshold, limit, choice.expand(-1, 3), share.expand(-1, 3, -1))

    def costs(self, rules: Rules, instances: int, seen: list[Tensor] | None = None) -> Tensor:
        """Return what K rules cost in so many instances, ``(K,)``; infinite if not finite."""
        env, count = self.env, len(rules.entry)
        few = slice(None, instances if self.alike else None)
        most = max(1, _SIDE_BY_SIDE // (min(instances, self.size) if self.alike else self.size))
        if count > most:
            parts = [rules.at(slice(at, at + most)) for at in range(0, count, most)]
            return torch.cat([self.costs(part, instances, seen) for part in parts])
        start, again = (
            {name: (value[few] if self.ndim else value) for name, value in state.items()}
            for state in (self.start, self.again)
        )
        state = {name: value.expand(count, *value.shape) for name, value in start.items()}
        actions = self.actions.parts(rules)
        total = torch.zeros(state["step"].shape[:-1], dtype=torch.float64)
        for weight, noise in zip(self.weights, self.noise, strict=True):
            observation = env.observe(state)
            if seen is not None:
                seen.append(observation.flatten(0, -2))
            discrete, u = self.actions.of(rules, actions, observation, env.allowed(state))
            noise = noise[few] if self.ndim else noise
            action = {"discrete": discrete, "continuous": u}
            state, reward, over = env.advance(state, action, noise.expand(count, *noise.shape))
            total -= weight * reward.squeeze(-1)
            if over is not None and not env.counts_steps:
                for name, value in state.items():
                    end = over.reshape(*over.shape[:-1], *(1,) * (value.ndim - over.ndim + 1))
                    state[name] = torch.where(end, again[name], value)
        return (total / self.weights.sum()).flatten(1).mean(1).nan_to_num(nan=torch.inf)

    def search(self, *kinds: str) -> ThresholdPolicy:
        """Return the best rule of an evolutionary search under common random numbers.

        Args:
            kinds: what is searched, one kind after another, each from the best of the last.
        """
        best = self.draw(0, kinds[0])
        for kind in kinds:
            fresh = self.draw(_DRAWN, kind)
            # The best so far under other guards, besides fresh rules.
            many = torch.arange(len(best.entry)).repeat(len(best.entry))
            varied = best.at(many)
            limit = self.draw(len(many), kind)
            entry = torch.stack([varied.entry[:, 0], limit.entry[:, 1]], -1)
            varied = varied._replace(entry=entry, limit=limit.limit)
            rules = _joined(best, varied, fresh)
            costs, width = self.costs(rules, _ROUNDS[0][1] // 2), 0.4
            for children, instances in _ROUNDS:
                best = rules.at(costs.argsort()[:_KEPT])
                young = self.children(best.at(torch.arange(_KEPT).repeat(children)), width, kind)
                rules = _joined(best, young)
                costs, width = self.costs(rules, instances), width * 0.7
            best = rules.at(costs.argsort()[:_KEPT])
        return ThresholdPolicy(self.actions, best.at(slice(0, 1)))


def _joined(*rules: Rules) -> Rules:
    return Rules(*(torch.cat(parts) for parts in zip(*rules, strict=True)))


@torch.no_grad()
def yardsticks(test: Test) -> dict[str, tuple[float, Any]]:
    """Return simple policies by name, with what each costs on a test.

    They are the best constant action, the best threshold rule (see :class:`Rules`), both searched
    in a world of their own, and the rules that the environment brings. What cannot be computed for
    an environment is left out: nothing here ends a run.

    Args:
        test: the test, an :class:`~hpo_torchrl.training.Evaluation`.

    Returns:
        By name the cost per unit and period, and the policy.

    Examples:
        >>> from hpo_torchrl.diagnostics import yardsticks
        >>> from hpo_torchrl.problems import SwitchedLQREnv
        >>> from hpo_torchrl.training import Evaluation
        >>> env = SwitchedLQREnv.from_recipe(dim=2, num_modes=2, horizon=8, batch_size=16)
        >>> sorted(yardsticks(Evaluation(env, num_steps=8, seed=0)))
        ['best constant action', 'best threshold rule', 'fixed_mode rule']
    """
    makers: dict[str, Callable[[], Any]] = {}
    env = test.env
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if isinstance(env, DifferentiableEnv):
            with contextlib.suppress(*TROUBLE):
                world = World(test)
                makers["best constant action"] = lambda: world.search("constant")
                makers["best threshold rule"] = lambda: world.search("plain", "guarded")
            makers |= {f"{name} rule": make for name, make in env.rules().items()}
        found = {}
        for name, make in makers.items():
            with contextlib.suppress(*TROUBLE):
                policy = make()
                found[name] = (test.run(policy).mean, policy)
    return found
