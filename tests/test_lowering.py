"""Operations of PyTorch that XLA takes, against PyTorch."""

from __future__ import annotations

import jax
import pytest
import torch
from torch.nn import functional as F

from hpo_torchrl.collectors.lowering import Lowered, UnknownOperationError, trace

LAST = torch.tensor([[2, 0], [1, 1], [0, 2]])

# Functions of a matrix x (3, 4), another one y, a cube z (2, 3, 4) and whole numbers k (3, 2).
FUNCTIONS = {
    "arithmetic": lambda x, y, z, k: 2 * x - y / 3 + (x**2) * (1 - y) + (2 - x) ** 3,
    "of whole numbers": lambda x, y, z, k: (k * 2 + 1, k // 2, k % 2, k / 2, -k, (k - 5) // 3),
    "remainders": lambda x, y, z, k: (x % 0.7, torch.fmod(x, 0.7), x.detach() // 0.7, (k - 1) % 3),
    "division that rounds": lambda x, y, z, k: (
        torch.div(x, y, rounding_mode="floor"),
        torch.div(x, y, rounding_mode="trunc"),
        torch.div(k, 2, rounding_mode="floor"),
    ),
    "weights of sums": lambda x, y, z, k: (torch.add(x, y, alpha=3), torch.sub(x, y, alpha=0.5)),
    "comparisons": lambda x, y, z, k: (x > y, x >= 0, x < y, x <= 0.1, k == 1, k != 1, x == x),
    "logic": lambda x, y, z, k: ((x > 0) & (y > 0), (x > 0) | ~(y > 0), (x > 0) ^ (y > 0)),
    "bits": lambda x, y, z, k: (k & 1, k | 4, k ^ 3, ~k),
    "logic of numbers": lambda x, y, z, k: (
        torch.logical_and(k, x[:, :2] > 0),
        torch.logical_not(k),
    ),
    "unary": lambda x, y, z, k: (
        x.abs(),
        x.ceil(),
        x.cos(),
        x.erf(),
        x.exp(),
        x.expm1(),
        x.floor(),
        x.sign(),
        x.round(),
        x.sin(),
        x.tan(),
        x.tanh(),
        x.trunc(),
        x.sigmoid(),
        x.reciprocal(),
        x.relu(),
        x.neg(),
    ),
    "of positive numbers": lambda x, y, z, k: (
        x.abs().sqrt(),
        x.abs().rsqrt(),
        x.abs().log(),
        x.abs().log1p(),
        torch.special.ndtri(x.sigmoid()),
    ),
    "not a number": lambda x, y, z, k: ((x / 0).isinf(), (0 * (x / 0)).isnan(), x.isfinite()),
    "of two": lambda x, y, z, k: (
        torch.atan2(x, y),
        torch.maximum(x, y),
        torch.minimum(x, y),
        torch.logaddexp(x, y),
        torch.hypot(x, y),
    ),
    "activations": lambda x, y, z, k: (
        F.elu(x),
        F.elu(x, 0.5),
        F.silu(x),
        F.softplus(x),
        F.softplus(x, 3, 2),
        F.gelu(x),
        F.leaky_relu(x, 0.2),
        F.logsigmoid(x),
        F.softmax(x, -1),
        F.log_softmax(x, 0),
        F.relu6(x),
    ),
    "limits": lambda x, y, z, k: (
        x.clamp(-0.5, 0.5),
        x.clamp_min(0.1),
        x.clamp_max(0.1),
        x.clamp(min=y),
        x.clamp(None, y),
        k.clamp(0, 1),
    ),
    "products": lambda x, y, z, k: (
        x @ y.mT,
        z @ y.mT,
        torch.bmm(z, z.mT),
        x @ y[0],
        torch.baddbmm(z @ z.mT, z, z.mT),
        torch.addmm(x @ y.mT, x, y.mT, beta=2, alpha=3),
        torch.einsum("ij,bij->bi", x, z),
    ),
    "linear": lambda x, y, z, k: F.linear(z, y, y[:, 0]),
    "sums": lambda x, y, z, k: (
        z.sum(),
        z.sum(-1),
        z.sum((0, 2), keepdim=True),
        z.mean(1),
        z.mean(),
        z.prod(-1),
        z.var(-1),
        z.var((0, 1), correction=0),
        z.std(),
        k.sum(-1),
        (z > 0).sum(),
    ),
    "norms": lambda x, y, z, k: (
        torch.linalg.vector_norm(z),
        z.norm(dim=-1),
        torch.linalg.vector_norm(z, 1, (0, 1)),
        torch.linalg.vector_norm(z, torch.inf, -1, keepdim=True),
        torch.linalg.vector_norm(z, 3, 0),
    ),
    "extremes": lambda x, y, z, k: (
        z.amax(-1),
        z.amin((0, 1), keepdim=True),
        z.max(),
        z.min(),
        *z.max(1),
        *z.min(-1, True),
        z.argmax(-1),
        z.argmin(0),
        z.argmax(),
        (z > 0).any(-1),
        (z > -9).all(),
        (z > 0).any(),
    ),
    "order": lambda x, y, z, k: (
        *z.sort(-1),
        *z.sort(1, descending=True),
        z.argsort(0),
        *z.topk(2),
        *z.topk(2, 1),
        *torch.sort(k, dim=0, stable=True),
    ),
    "running": lambda x, y, z, k: (z.cumsum(1), z.cumprod(-1), k.cumsum(0), z.logsumexp(-1)),
    "shapes": lambda x, y, z, k: (
        z.reshape(6, 4),
        z.view(2, 12),
        z.flatten(1),
        z.unflatten(-1, (2, 2)),
        z.movedim(0, -1),
        z.permute(2, 0, 1),
        z.mT,
        x.t(),
        x.unsqueeze(1),
        z[:, :1].squeeze(1),
        z.unsqueeze(-1),
        x.expand(2, 3, 4),
        x[:, :1].expand(-1, 5),
        x.repeat(2, 3),
        z.roll(1, -1),
        z.flip(0, 2),
        x.repeat_interleave(2, 0),
        torch.broadcast_to(x, (2, 3, 4)),
        x.clone(),
        x.detach(),
    ),
    "parts": lambda x, y, z, k: (
        z[0],
        z[:, 1],
        z[..., -1],
        z[:, 1:],
        z[..., ::2],
        z[:, -2:],
        z.select(-1, 1),
        x[:, [2, 0]],
        *z.unbind(1),
        *z.split(2, -1),
        *z.split([1, 3], -1),
        *z.chunk(2, -1),
        z[:, None],
        z[1, 0, 2],
    ),
    "joins": lambda x, y, z, k: (
        torch.cat([x, y]),
        torch.cat([x, y[:, :1]], -1),
        torch.stack([x, y], 1),
        F.pad(x, (1, 2)),
        F.pad(x, (1, -1, 0, 2), value=3.0),
        F.pad(x, (-1, 0)),
        torch.cat([k, k[:1]]),
    ),
    "places": lambda x, y, z, k: (
        x.gather(-1, k),
        x.gather(0, k),
        x[k],
        x[k[:, 0], k[:, 1]],
        z[:, k[:, 0]],
        x.index_select(-1, k[:, 0]),
        F.one_hot(k, 3),
        F.embedding(k, x),
        torch.take_along_dim(x, k, 1),
    ),
    "written places": lambda x, y, z, k: (
        x.scatter(-1, k, y[:, :2]),
        x.scatter(0, k, 7.0),
        x.scatter_add(-1, LAST, y[:, :2]),
        x.index_copy(0, torch.tensor([2, 0]), y[:2]),
        x.index_add(0, torch.tensor([1, 1]), y[:2]),
        x.index_put((torch.tensor([0, 2]),), y[:2]),
        x.index_put((torch.tensor([0, 0]),), y[:2], accumulate=True),
        x.masked_fill(x > 0, 5.0),
        x.slice_scatter(y[:1], 0, 1, 2),
        x.select_scatter(y[0], 0, 2),
        x.index_fill(0, torch.tensor([1]), 2.0),
    ),
    "choices": lambda x, y, z, k: (
        torch.where(x > 0, x, y),
        torch.where(x > 0, 1.0, y),
        torch.where(x > 0, x, 0.0),
        torch.where(x > 0, 1.0, 0.0),
        torch.where(k > 0, k, 0),
        torch.lerp(x, y, 0.3),
    ),
    "new": lambda x, y, z, k: (
        torch.zeros_like(x) + x,
        x.new_ones(2, 2),
        x.new_full((2,), 3),
        torch.full_like(k, 4),
        torch.arange(4) + x,
        torch.arange(1, 9, 2) * 1.0,
        torch.eye(3, dtype=x.dtype) @ x,
        torch.linspace(0, 1, 4) + x,
        torch.ones(3),
        torch.full((2,), True),
        x.new_zeros(2),
        torch.tensor(2.0) * x,
        torch.ones_like(k, dtype=x.dtype),
    ),
    "kinds of numbers": lambda x, y, z, k: (
        x.float() * 2,
        x.to(torch.int64),
        k.to(x.dtype) * x[:, :2],
        (x > 0) * y,
        k * 0.5,
        k + True,
        x.float() * torch.tensor(3.0, dtype=torch.float64),
        x.bool(),
        (x > 0).double(),
        k.int() + 1,
    ),
    "written in place": lambda x, y, z, k: _written(x, y),
}


def _written(x, y):
    value = x.clone()
    value[0] = y[0]
    value[:, 1] += y[:, 1]
    value.mul_(2).add_(y).clamp_(-1, 1)
    value[y > 0] = 0.5
    return value


def _numbers():
    torch.manual_seed(0)
    place = {"dtype": torch.float64}
    x, y, z = torch.randn(3, 4, **place), torch.randn(3, 4, **place), torch.randn(2, 3, 4, **place)
    return x, y, z, torch.tensor([[0, 1], [2, 1], [1, 2]])


def _run(function, given):
    """Return what JAX makes of a function, as tensors."""
    traced = trace(function, *given)
    graph = Lowered(traced.graph)
    placed = [node for node in traced.graph.nodes if node.op == "placeholder"]
    with jax.enable_x64(True):
        known = {node: jax.numpy.asarray(v.numpy()) for node, v in zip(placed, given, strict=True)}
        for node in traced.graph.nodes:
            if node.op == "get_attr":
                known[node] = jax.numpy.asarray(getattr(traced, node.target).numpy())
        (output,) = (node for node in traced.graph.nodes if node.op == "output")
        wanted = list(output.args[0])
        values = graph.run(graph.needed(wanted, known), known)
        return [torch.from_numpy(jax.device_get(values[node]).copy()) for node in wanted]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jax_computes_what_torch_computes(name):
    given = _numbers()

    def function(*given):
        found = FUNCTIONS[name](*given)
        return list(found) if isinstance(found, tuple) else [found]

    for one, other in zip(_run(function, given), function(*given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_so_are_the_gradients(name):
    given = _numbers()

    def slopes(*given):
        leaves = [value.detach().requires_grad_(value.is_floating_point()) for value in given]
        found = FUNCTIONS[name](*leaves)
        found = found if isinstance(found, tuple) else (found,)
        total = sum(
            (
                value * torch.linspace(0.5, 2.0, value.numel(), dtype=value.dtype).view_as(value)
            ).sum()
            for value in found
            if value.requires_grad
        )
        if not isinstance(total, torch.Tensor):
            return [leaves[0].detach() * 1]
        asked = [leaf for leaf in leaves if leaf.requires_grad]
        return [s for s in torch.autograd.grad(total, asked, allow_unused=True) if s is not None]

    exact = slopes(*given)
    for one, other in zip(_run(slopes, given), exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_what_is_not_known_is_named():
    given = (torch.rand(3, 3),)
    with pytest.raises(UnknownOperationError, match=r"linalg.* has no counterpart in JAX here"):
        _run(lambda x: [torch.linalg.inv(x)], given)
    with pytest.raises(UnknownOperationError, match="index by a mask"):
        _run(lambda x: [x[x > 2]], given)
    with pytest.raises(RuntimeError, match="tracing tensor"):
        _run(lambda x: [x if x.sum() > 0 else -x], given)
