"""Operations of torch in NumPy: those that are more than an expression.

A policy that is exported carries the source of those that it uses, so each stands by itself and
needs ``np`` alone. Names and arguments are those of torch's operations.
"""

from __future__ import annotations

import numpy as np


def addmm(self, mat1, mat2, beta=1, alpha=1):
    return beta * self + alpha * (mat1 @ mat2)


def linear(input, weight, bias=None):
    product = input @ weight.T
    return product if bias is None else product + bias


def softplus(self, beta=1.0, threshold=20.0):
    steep = self * beta
    return np.where(steep > threshold, self, np.log1p(np.exp(np.minimum(steep, threshold))) / beta)


def sigmoid(self):
    small = np.exp(-np.abs(self))
    return np.where(self >= 0, 1 / (1 + small), small / (1 + small))


def elu(self, alpha=1.0, scale=1.0, input_scale=1.0):
    return scale * np.where(self > 0, self, alpha * np.expm1(np.minimum(self, 0) * input_scale))


def log_softmax(self, dim):
    shifted = self - self.max(dim, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(dim, keepdims=True))


def softmax(self, dim):
    weights = np.exp(self - self.max(dim, keepdims=True))
    return weights / weights.sum(dim, keepdims=True)


def expand(self, size):
    added = len(size) - self.ndim
    own = (1,) * added + self.shape
    return np.broadcast_to(self, [own[i] if new == -1 else new for i, new in enumerate(size)])


def gather(self, dim, index):
    return np.take_along_axis(self, index, dim)


def slice_(self, dim, start, end, step):
    place = [slice(None)] * self.ndim
    place[dim] = slice(start, end, step)
    return self[tuple(place)]


def split_with_sizes(self, sizes, dim):
    return np.split(self, np.cumsum(sizes)[:-1], dim)


def squeeze(self, dims):
    dims = [dims] if isinstance(dims, int) else dims
    return np.squeeze(self, tuple(dim for dim in dims if self.shape[dim] == 1))


def clamp(self, low=None, high=None):
    return np.clip(self, -np.inf if low is None else low, np.inf if high is None else high)


def reduced(function, self, dim, keepdim):
    axes = None if dim is None or dim == [] else tuple(dim) if isinstance(dim, list) else dim
    return function(self, axis=axes, keepdims=keepdim)
