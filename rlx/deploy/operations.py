"""Operations of XLA in numpy, for those that numpy itself does not have. A deployed policy has copies of what it uses.

Everything here needs numpy alone, and nothing of another function but `_windows`, `_starts` and `_at`.
"""

import math

import numpy as np


def _erf_inv(x):
    """The inverse error function in float32: Giles 2010, Approximating the erfinv function, table 5."""
    with np.errstate(divide="ignore"):  # at -1 and 1
        w = -np.log1p(-x * x)
    near = w < 5
    w = np.where(near, w - np.float32(2.5), np.sqrt(np.where(near, 0, np.minimum(w, 1e4))) - np.float32(3))
    small = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087)
    small += (-0.00125372503, -0.00417768164, 0.246640727, 1.50140941)
    large = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773)
    large += (-0.0076224613, 0.00943887047, 1.00167406, 2.83297682)
    p = np.where(near, np.float32(small[0]), np.float32(large[0]))
    for a, b in zip(small[1:], large[1:]):  # noqa: B905 (numpy alone, any Python)
        p = np.where(near, np.float32(a), np.float32(b)) + p * w
    return np.where(np.abs(x) == 1, np.copysign(np.inf, x), p * x).astype(x.dtype)


def _erf(x):
    """The error function."""
    return np.vectorize(math.erf, otypes=[x.dtype])(x)


def _logistic(x):
    """1 / (1 + exp(-x)), without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def _dot(x, y, contracting, batch):
    """Products summed over axes: batch axes first, then those left of `x`, then those left of `y`."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    left, right = list(letters[: x.ndim]), list(letters[x.ndim : x.ndim + y.ndim])
    for i, j in [*zip(*contracting), *zip(*batch)]:  # noqa: B905
        right[j] = left[i]
    out = [left[i] for i in batch[0]]
    out += [a for i, a in enumerate(left) if i not in contracting[0] and i not in batch[0]]
    out += [a for j, a in enumerate(right) if j not in contracting[1] and j not in batch[1]]
    return np.einsum(f"{''.join(left)},{''.join(right)}->{''.join(out)}", x, y)


def _round(x):
    """The nearest whole numbers, halves away from 0."""
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.sign(x), whole).astype(x.dtype)


def _divide(x, y):
    """Quotients of integers, rounded towards 0."""
    return (np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))).astype(x.dtype)


def _starts(x, indices, sizes, axes, batch_axes, clip):
    """Where slices of `sizes` begin, for each index an array of all axes of `x`, and which of them are inside."""
    count = indices.shape[:-1]
    first = [np.zeros(count, np.int64) for _ in range(x.ndim)]
    for column, axis in enumerate(axes):
        first[axis] = indices[..., column].astype(np.int64)
    for axis, own in zip(*batch_axes):  # noqa: B905
        shape = [n if i == own else 1 for i, n in enumerate(count)]
        first[axis] = np.broadcast_to(np.arange(x.shape[axis]).reshape(shape), count)
    last = [x.shape[i] - sizes[i] for i in range(x.ndim)]
    inside = np.ones(count, bool)
    for i in range(x.ndim):
        inside &= (first[i] >= 0) & (first[i] <= last[i])
    return [np.clip(a, 0, m) for a, m in zip(first, last)], inside | clip  # noqa: B905


def _at(first, sizes, dropped):
    """Index arrays of slices: the axes of the indices, then those of the slices but for the dropped ones."""
    kept = [i for i in range(len(sizes)) if i not in dropped]
    found = []
    for i, start in enumerate(first):
        shape = [1] * len(kept)
        if i in kept:
            shape[kept.index(i)] = sizes[i]
        found.append(
            start.reshape((*start.shape, *[1] * len(kept))) + np.arange(sizes[i] if i in kept else 1).reshape(shape)
        )
    return tuple(found)


def _gather(x, indices, sizes, axes, offset, dropped, batch_axes, clip, blank):
    """Slices of `x` at indices; those that reach outside are moved inside, or are `blank`."""
    first, inside = _starts(x, indices, sizes, axes, batch_axes, clip)
    out = x[_at(first, sizes, {*dropped, *batch_axes[0]})]
    if not inside.all():
        out = np.where(inside.reshape((*inside.shape, *[1] * (out.ndim - inside.ndim))), out, blank).astype(x.dtype)
    count = indices.ndim - 1
    return np.moveaxis(out, range(count, out.ndim), offset)


def _scatter(x, indices, updates, axes, window, dropped, batch_axes, clip, add):
    """`x` with slices set, or added to, at indices; those that reach outside are left out."""
    out, count = x.copy(), indices.ndim - 1
    updates = np.moveaxis(updates, window, range(count, updates.ndim))
    gone = {*dropped, *batch_axes[0]}
    own = iter(updates.shape[count:])
    sizes = [1 if i in gone else next(own) for i in range(x.ndim)]
    first, inside = _starts(x, indices, sizes, axes, batch_axes, clip)
    where = [a[inside] for a in np.broadcast_arrays(*_at(first, sizes, gone))]
    if add:
        np.add.at(out, tuple(where), updates[inside])
    else:
        out[tuple(where)] = updates[inside]
    return out


def _slice_at(x, starts, sizes):
    """The slice of these sizes that begins at `starts`, moved inside."""
    first = [int(np.clip(s, 0, n - k)) for s, n, k in zip(starts, x.shape, sizes)]  # noqa: B905
    return x[tuple(slice(s, s + k) for s, k in zip(first, sizes))]  # noqa: B905


def _with_slice(x, update, starts):
    """`x` with a slice set at `starts`, moved inside."""
    out = x.copy()
    first = [int(np.clip(s, 0, n - k)) for s, n, k in zip(starts, x.shape, update.shape)]  # noqa: B905
    out[tuple(slice(s, s + k) for s, k in zip(first, update.shape))] = update  # noqa: B905
    return out


def _windows(x, sizes, strides, padding, dilation, blank):
    """All windows of `x`: its axes with one position a stride, then the axes of the windows."""
    x = np.pad(x, [(max(a, 0), max(b, 0)) for a, b in padding], constant_values=blank)
    reach = [(k - 1) * d + 1 for k, d in zip(sizes, dilation)]  # noqa: B905
    out = np.lib.stride_tricks.sliding_window_view(x, reach)
    steps = [slice(None, None, s) for s in strides] + [slice(None, None, d) for d in dilation]
    return out[tuple(steps)]


def _convolution(x, kernel, strides, padding, dilation):
    """Sums of products over windows: `x` `[B, C, ...]`, `kernel` `[O, C, ...]`, gives `[B, O, ...]`."""
    n, one = kernel.ndim - 2, (1, 1)
    view = _windows(
        x, (1, x.shape[1], *kernel.shape[2:]), (*one, *strides), ((0, 0), (0, 0), *padding), (*one, *dilation), 0
    )
    view = view[:, 0, ...].reshape(x.shape[0], *view.shape[2 : 2 + n], -1)
    out = view @ kernel.reshape(kernel.shape[0], -1).T
    return np.moveaxis(out, -1, 1)
