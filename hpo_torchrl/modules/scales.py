"""Scales found by simulating an environment: the unit of its actions, that of its observations."""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hpo_torchrl.core.categorical import ACTION_MASK, insert_like
from hpo_torchrl.core.data import Key
from hpo_torchrl.modules.action_range import ActionRange
from hpo_torchrl.modules.sampling import chosen_branch, flat

# Steps simulated, and the multiples of the declared unit that are tried, powers of 2.
_STEPS, _POWERS = 30, 16
# Continuous actions of a step beyond which that would take too long, and nothing is looked for.
_MOST = 20_000_000
# A unit is taken as declared unless another is this many times as large or small. What a simulation
# of random actions finds is right within a factor of about 2.
_TRUSTED = 3.0
# Observations are taken as they are if all medians are at most this far from 0, in numbers and in
# spreads, and all spreads are between these ends: standardised by random actions, an unstable
# system is learned worse.
_FAR, _FAR_OFF, _NARROW, _WIDE = 30.0, 4.0, 0.1, 30.0
# The least spread, in units that random actions have shown, of what a policy of some updates sees.
_NARROW_NOW = 0.4
# Spreads of observations, in those at the start, beyond which instances count as running away.
_RUNAWAY = 30.0
_ROWS = 4096  # observations that medians and spreads are taken of


class ObservationScale(nn.Module):
    """Bring observations to the size that networks learn well: ``(x - shift) / scale``.

    Shift and scale are buffers, 0 and 1 until they are set; they never change while a policy is
    trained, so that what it learned of an observation stays true.

    Attributes:
        key: the entry that is scaled, if its scale may be found; ``None`` leaves it as it is.

    Args:
        size: length of the observation.
        reads: number of leading entries that are returned; ``None`` is all.
        place: device and dtype.
    """

    shift: Tensor
    scale: Tensor
    seed_buffers = ("shift", "scale")
    key: Key | None = None

    def __init__(self, size: int, reads: int | None = None, **place: Any) -> None:
        super().__init__()
        self.reads = reads
        self.register_buffer("shift", torch.zeros(size, **place))
        self.register_buffer("scale", torch.ones(size, **place))

    def forward(self, observation: Tensor) -> Tensor:
        """Return the scaled observation, of which the networks read the leading entries."""
        return self._scaled(observation)[..., : self.reads]

    def _scaled(self, observation: Tensor) -> Tensor:
        # The difference comes first, which rounds least.
        shift, scale = (insert_like(unit, observation) for unit in (self.shift, self.scale))
        return (observation - shift) / scale

    def use(self, found: Scales | None, key: Key) -> None:
        """Take over what was found of an entry of the observation, if anything was."""
        self.key = key
        if found is not None and key in found.observations:
            for buffer, value in zip(
                (self.shift, self.scale), found.observations[key], strict=True
            ):
                buffer.copy_(value)

    def measure(self, seen: Tensor) -> None:
        """Scale anew what is many spreads from 0, or hardly varies, in the present units.

        A wide entry stays as it is: it rather shows a policy that has not learned anything yet.

        Args:
            seen: observations ``(*B, T, k)``, with seeds ``(S, *B, T, k)``.
        """
        now, unit = self._scaled(seen), bool((self.scale == 1.0).all())
        narrow = _NARROW if unit else _NARROW_NOW
        each = [now] if self.shift.ndim == 1 else now.unbind(0)
        found = [size_of(own.movedim(-2, 0), narrow, math.inf, math.inf) for own in each]
        shift, scale = (
            torch.stack(values).reshape(self.shift.shape) for values in zip(*found, strict=True)
        )
        self.shift.add_(self.scale * shift)
        self.scale.mul_(scale)


class Scales(NamedTuple):
    """What a simulation says of an environment.

    Attributes:
        action: unit of each continuous action, ``(n,)``.
        observations: shift and scale of each real entry of the observation, by name.
    """

    action: Tensor
    observations: dict[str, tuple[Tensor, Tensor]]


_KNOWN: WeakKeyDictionary[Any, tuple[list[float], Scales | None]] = WeakKeyDictionary()


def scales_of(env: Any) -> Scales | None:
    r"""Find the scales of an environment by simulating it with random actions.

    **Actions.** With random discrete actions and :math:`u = g_c(z),\ z \sim N(0, 1)`, g_c being the
    map of :class:`ActionRange` with the unit c, the same random numbers earn more or less by c. The
    natural unit is twice the c that earns most, rather too much than too little; where none earns
    a standard deviation of the return more than no action does, it is twice the largest c that
    costs no more than that. Where it is within a factor of 3 of the declared unit, or cannot be
    told (every c earns the same), the declared one stays. All coordinates have one factor: their
    proportions are as declared. Between two bounds, where c is only the unit in which a change is
    measured, it is kept to an eighth to a half of the width.

    **Observations.** Those met at half that unit, by :func:`size_of`.

    The answer depends on the environment alone, on none of its random numbers nor torch's.

    Args:
        env: the environment.

    Returns:
        The scales; ``None`` of an environment without functional equations, or whose equations
        fail (training says how), or one too large to be simulated at so many units.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules.scales import scales_of
        >>> env = InventoryEnv(batch_size=64, initial_state="random")
        >>> env.action_scale, scales_of(env).action
        (tensor([40.]), tensor([40.]))
        >>> env.action_scale *= 100
        >>> scales_of(env).action
        tensor([44.1942])
    """
    if not hasattr(type(env), "dynamics"):  # of an environment within, transforms know nothing
        return None
    if env.batch_size.numel() * env.continuous_dim * (2 * _POWERS + 1) > _MOST:
        return None
    declared = env.action_scale.tolist()
    known, found = _KNOWN.get(env, (None, None))
    if known != declared:
        found = None
        with suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = _found(copy.deepcopy(env))
        _KNOWN[env] = declared, found
    return found


def _found(env: Any) -> Scales:
    env.set_seed(0)
    torch.default_generator.manual_seed(0)  # of an environment that draws from it
    earned = _best_factor(env)
    factor = 2.0 * earned
    if math.isnan(factor) or 1 / _TRUSTED < factor < _TRUSTED:
        factor = 1.0
    # At what earns most the states are nearest to those of a trained policy.
    usual = factor if math.isnan(earned) else earned
    _, seen = _simulate(env, torch.full_like(env.action_scale[:1], usual))
    observations = {key: size_of(values) for key, values in seen.items()}
    return Scales(_within(factor * env.action_scale, env), observations)


def _best_factor(env: Any) -> float:
    """Return the factor on the unit that earns most, in wide steps, then in narrow ones, or NaN."""
    at, nothing = 0.0, None
    for reach, step in ((_POWERS, 2.0), (2.0, 0.5)):
        powers = at + torch.arange(-reach, reach + step, step).to(env.action_scale)
        returns, _ = _simulate(env, 2.0**powers)
        mean, spread = returns.mean(1), returns.std(1)
        mean = mean.masked_fill(~(mean.isfinite() & spread.isfinite()), -torch.inf)
        best = int(mean.argmax())
        nothing = mean[0] if nothing is None else nothing
        if not mean[best] > nothing + spread[best]:
            best = int((mean >= mean[best] - spread[best]).nonzero().max())
        at = float(powers[best])
        if abs(at) >= _POWERS:
            return math.nan
    return 2.0**at


def _simulate(env: Any, factors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the returns ``(R, rows)`` of R factors on the unit, and what was observed at one."""
    batch, number = tuple(env.batch_size), len(factors)
    place: dict[str, Any] = {"dtype": env.float_dtype, "device": factors.device}
    drawn = {**place, "generator": torch.Generator(factors.device).manual_seed(0)}
    heads = () if env.num_heads is None else (env.num_heads,)
    choices = (*batch, *heads, env.num_discrete)
    bounds = env.continuous_bounds, env.action_scale, env.branch_bounds, env.num_heads
    reach = ActionRange(*bounds, **place)
    width = env.continuous_dim // (env.num_heads or 1)
    reach.unit = factors.view(-1, *(1,) * (len(choices) + 1)) * reach.unit
    start, steps = env.fresh_state(), min(env.horizon or _STEPS, _STEPS)
    noise = env.sample_noise(steps, start).unbind(len(batch))
    state = {key: value.expand(number, *value.shape) for key, value in start.items()}
    total: Any = torch.zeros(number, *batch, **place)
    alive, seen = torch.ones_like(total, dtype=torch.bool), []
    for now in noise:
        shown = env.show(state)
        if number == 1:
            seen.append({**state, **shown})
        score = torch.rand(choices, **drawn).expand(number, *choices)
        if ACTION_MASK in shown:
            score = score.masked_fill(~shown[ACTION_MASK], -1.0)
        discrete = score.argmax(-1)
        raw = torch.randn(*choices, width, **drawn).expand(number, *choices, width)
        continuous = flat(chosen_branch(reach(raw), None, discrete)[0], bool(heads))
        action = {"discrete": discrete, "continuous": continuous}
        state, reward, over = env.advance(state, action, now.expand(number, *now.shape))
        total = total + torch.where(alive, reward.squeeze(-1), 0.0)
        if over is not None:
            alive = alive & ~over.squeeze(-1)
    keys = [key for key, value in (seen[0] if seen else {}).items() if value.is_floating_point()]
    real = {key: torch.stack([step[key].squeeze(0) for step in seen]) for key in keys}
    return total.double().reshape(number, -1), real


def size_of(
    values: Tensor, narrow: float = _NARROW, wide: float = _WIDE, far: float = _FAR
) -> tuple[Tensor, Tensor]:
    """Return shift and scale, of the last axis, of observations ``(T, *B, k)``.

    The median and the spread (the 75 % or the 95 % quantile of the distance from it, in standard
    deviations of a normal, the larger), which few instances that run away cannot spoil; where all
    run away, the geometric mean of that spread and that of the start. Observations stay as they are
    if all medians are at most ``far``, and 4 spreads, and all spreads are ``narrow`` to ``wide``.
    Else each is divided by its size, after the median is taken off if that is more than the spread.
    """
    rows = values.reshape(-1, values.shape[-1]).double()
    rows = rows[:: max(1, len(rows) // _ROWS)]
    center = rows.nanmedian(0).values.nan_to_num()
    away = (rows - center).abs()
    # Of an episode that settles, most observations tell nothing of how it began.
    shares = torch.tensor([0.75, 0.95]).to(away)
    usual, seldom = away.nanquantile(shares, 0).nan_to_num().unbind()
    reach = torch.maximum(usual / 1.15, seldom / 1.96)
    # An entry that hardly ever differs from its median has a reach of 0.
    spread = torch.where(reach > 0, reach, away.square().nanmean(0).sqrt().nan_to_num())
    first = values[0].double().reshape(-1, values.shape[-1]).std(0).nan_to_num()
    away = (first > 0) & (spread > _RUNAWAY * first)
    spread, offset = torch.where(away, (spread * first).sqrt(), spread), center.abs()
    usual = (spread == 0) | ((spread >= narrow) & (spread <= wide) & (offset <= _FAR_OFF * spread))
    if bool(((offset <= far) & usual).all()):  # or else sizes would differ by much
        return torch.zeros_like(center).to(values), torch.ones_like(center).to(values)
    constant = spread <= 1e-6 * offset
    # Near 0 the median stays: 0 may mean something there, as the target of a control does.
    shift = torch.where(offset <= spread, 0.0, center)
    size = torch.where(shift == 0, (offset.square() + spread.square()).sqrt(), spread)
    size = torch.where(constant, torch.where(offset > 0, offset, 1.0), size)
    return shift.to(values), size.to(values)


def _within(unit: Tensor, env: Any) -> Tensor:
    """Return units, between two bounds kept to an eighth to a half of the width."""
    if env.branch_bounds is not None:
        return unit
    low, high = (
        torch.as_tensor(torch.inf if end is None else end).to(unit) for end in env.continuous_bounds
    )
    width = (high - low).abs()
    bounded = width.isfinite() & (width > 0) & low.isfinite() & high.isfinite()
    return torch.where(bounded, unit.clamp(width / 8, width / 2), unit)
