"""Tied convolutions on torch. Group sums are written side by side to a buffer, and oneDNN's 1x1 convolutions multiply it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from keras import ops
from torch.nn.grad import conv2d_weight

from kernel_tying import _keras
from kernel_tying._convolution import generic
from kernel_tying._convolution.geometry import Geometry, Padding, samples_per_chunk, tile_size
from kernel_tying._convolution.lines import Offset
from kernel_tying._convolution.sums import Read, Schedule, schedule
from kernel_tying.algebra import Tensor

# kind -> threads -> minimum channel count -> break-even reduction k^2/K, benchmarked forward and with gradients
_BREAK_EVEN = {"dense": {1: {32: 2.5}, 2: {32: 4.5, 64: 3.0}}, "strided": {1: {32: 4.0, 64: 2.5}}}
_BREAK_EVEN_COMPILED = {"dense": {1: {64: 2.5}}}

_CHUNK_BYTES = 3 * 2**20  # of all group sums of a chunk together, per thread


def forward(inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
    """Returns the output of the tied convolution."""
    if not _is_buffered(inputs, geometry) or geometry.grid:
        return generic.forward(inputs, free, geometry, _scan, _sum_bytes(free))
    count, channels, filters = free.shape
    size = geometry.output_size(inputs.shape[1:-1])
    tile = tile_size(geometry, size, channels, _sum_bytes(free))
    samples, padding = generic.tiles(inputs, geometry.padding, tile[0], size[0], geometry.reach[0])
    additions = schedule(geometry.sums, geometry.dilation, geometry.strides, tile)
    outputs = inputs.new_empty((len(samples), *tile, filters))
    kernel = free.reshape(count * channels, filters).T.contiguous()[..., None, None]
    for chunk, sums in _summed_chunks(samples, additions, padding, tile, _sum_bytes(free)):
        outputs[chunk] = _multiply(sums, kernel).reshape(-1, *tile, filters)
    return generic.untiled(outputs, size)


def backward(inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Returns the gradients with respect to inputs and free weights."""
    if not _is_buffered(inputs, geometry):
        return generic.backward(inputs, free, upstream, geometry, _scan, _sum_bytes(free))
    if max(geometry.strides) > 1:
        return _strided_backward(inputs, free, upstream, geometry)
    count, channels, filters = free.shape
    size = tuple(inputs.shape[1:-1])
    tile = tile_size(geometry, size, filters, _sum_bytes(free))
    samples = generic.tiles(inputs, ((0, 0),) * len(size), tile[0], size[0], 0)[0].contiguous()
    gradients, padding = generic.tiles(upstream, geometry.adjoint_padding(size), tile[0], size[0], geometry.reach[0])
    additions = schedule(geometry.adjoint_sums, geometry.dilation, (1,) * len(size), tile)
    input_gradient = torch.empty_like(samples)
    adjoint = free.transpose(0, 1).reshape(channels, count * filters, 1, 1)
    kernel_gradient = inputs.new_zeros((count * filters, channels, 1, 1))
    for chunk, sums in _summed_chunks(gradients, additions, padding, tile, _sum_bytes(free)):
        input_gradient[chunk] = _multiply(sums, adjoint).reshape(-1, *tile, channels)
        # The weight gradient of a 1x1 convolution: `x^T z_g` for all tied groups at once.
        kernel_gradient += conv2d_weight(_as_batch(samples[chunk]), kernel_gradient.shape, _as_batch(sums))
    free_gradient = kernel_gradient.view(count, filters, channels).transpose(1, 2)
    return generic.untiled(input_gradient, size), free_gradient.contiguous()


def _strided_backward(inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Returns the gradients by `dtheta_g = (S_g x)^T dy` and `dx = sum_g S_g^T (dy theta_g^T)`, without zero-upsampling."""
    count, channels, filters = free.shape
    size = tuple(upstream.shape[1:-1])
    additions = schedule(geometry.sums, geometry.dilation, geometry.strides, size)
    upstream, input_gradient = upstream.contiguous(), torch.empty_like(inputs, memory_format=torch.contiguous_format)
    adjoint = free.reshape(count * channels, filters, 1, 1)
    kernel_gradient = inputs.new_zeros((filters, count * channels, 1, 1))
    for chunk, sums in _summed_chunks(inputs, additions, geometry.padding, size, _sum_bytes(free)):
        rows = upstream[chunk]
        kernel_gradient += conv2d_weight(_as_batch(sums), kernel_gradient.shape, _as_batch(rows))
        parts = _multiply(rows, adjoint).reshape(-1, *size, count * channels)
        input_gradient[chunk] = _transposed_sums(parts, additions, inputs.shape[1:-1], geometry.padding)
    return input_gradient, kernel_gradient.view(filters, count, channels).permute(1, 2, 0).contiguous()


def _transposed_sums(parts: Tensor, additions: Schedule, size: Sequence[int], padding: Padding) -> Tensor:
    """Returns `sum_g S_g^T parts_g`, images of spatial `size`, for parts side by side."""
    channels = parts.shape[-1] // len(additions.groups)
    padded = [width + sum(pad) for width, pad in zip(size, padding, strict=True)]
    images = [parts.new_zeros((len(parts), *shape, channels)) for shape in (padded, *additions.sizes)]
    sources = [*parts.split(channels, dim=-1), *images[:0:-1]]
    for source, reads in zip(sources, additions.groups + additions.steps[::-1], strict=True):
        for window, sign in _windows(images, reads):
            window.add_(source, alpha=sign)
    inside = (slice(low, low + width) for width, (low, _) in zip(size, padding, strict=True))
    return images[0][(slice(None), *inside)]


def _is_buffered(inputs: Tensor, geometry: Geometry) -> bool:
    """Returns whether buffers serve: for one channel group, and inputs that are summed in their own dtype."""
    return geometry.channel_groups == 1 and inputs.dtype in (torch.float32, torch.float64)


def _multiply(sums: Tensor, kernel: Tensor) -> Tensor:
    """Returns the rows of `sums` times a kernel `(out, in, 1, 1)`."""
    # A 1x1 convolution, because on AMD CPUs oneDNN's convolutions are twice as fast as MKL's matrix products.
    return torch.conv2d(_as_batch(sums), kernel).movedim(1, -1)


def _as_batch(tensor: Tensor) -> Tensor:
    """Returns a tensor `(..., channels)` as a batch `(batch, channels, pixels, 1)` for a 1x1 convolution."""
    channels = tensor.shape[-1]
    return tensor.view(_batch_size(tensor.numel() // channels), -1, 1, channels).movedim(-1, 1)


@lru_cache(maxsize=1024)
def _batch_size(rows: int) -> int:
    """Returns the smallest divisor of `rows` that is at least 16, or `rows` if there is none."""
    # torch uses oneDNN only for batches of 16 or more.
    return next((count for count in range(16, rows) if rows % count == 0), rows)


def _summed_chunks(
    inputs: Tensor, additions: Schedule, padding: Padding, size: Offset, sum_bytes: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yields slices of samples, and their group sums side by side, `(samples, *size, K * channels)`.

    All chunks share one buffer: each overwrites the sums of the one before.
    """
    *_, channels = inputs.shape
    # The last chunk may be shorter, so the length need not divide the batch size.
    most = samples_per_chunk(None, inputs.element_size() * math.prod(size) * channels, sum_bytes)
    length = max(1, min(len(inputs), most))
    padded = [width + sum(pad) for width, pad in zip(inputs.shape[1:-1], padding, strict=True)]
    images = [inputs.new_zeros((length, *padded, channels))]
    images += [inputs.new_empty((length, *shape, channels)) for shape in additions.sizes]
    inside = (slice(low, low + width) for width, (low, _) in zip(inputs.shape[1:-1], padding, strict=True))
    unpadded = images[0][(slice(None), *inside)]
    sums = inputs.new_empty((length, *size, len(additions.groups) * channels))
    # All views are made before the loop over chunks, which then only copies and adds.
    targets = [*images[1:], *sums.split(channels, dim=-1)]
    windows = [_windows(images, reads) for reads in additions.steps + additions.groups]
    for start in range(0, len(inputs), length):
        chunk = inputs[start : start + length]
        unpadded[: len(chunk)] = chunk
        for target, summands in zip(targets, windows, strict=True):
            _sum_into(target, summands)
        yield slice(start, start + length), sums[: len(chunk)]


def _windows(images: list[Tensor], reads: Sequence[Read]) -> list[tuple[Tensor, int]]:
    """Returns the windows that `reads` select, as views, each with its sign."""
    return [(images[read.image][(slice(None), *read.window)], read.sign) for read in reads]


def _sum_into(target: Tensor, windows: Sequence[tuple[Tensor, int]]) -> None:
    """Writes the signed sum of `windows` to `target`."""
    (first, first_sign), *rest = windows
    if first_sign < 0:
        torch.neg(first, out=target)
    elif not rest:
        target.copy_(first)
    else:
        (second, sign), *rest = rest
        torch.add(first, second, alpha=sign, out=target)
    for tensor, sign in rest:
        target.add_(tensor, alpha=sign)


def _scan(step: Any, carry: Any, xs: Any, shape: tuple[int, ...]) -> Any:
    outputs = []
    for x in zip(*xs, strict=True):
        carry, output = step(carry, x)
        outputs.append(output)
    return carry, torch.stack(outputs)


class _Function(torch.autograd.Function):
    """A function of tensors and a geometry that supports the transforms of torch.func."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.geometry = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)


class _Convolution(_Function):
    @staticmethod
    def forward(inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
        return forward(inputs, free, geometry)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return *_Gradients.apply(*ctx.saved_tensors, upstream, ctx.geometry), None

    @staticmethod
    def jvp(ctx: Any, inputs_tangent: Tensor, free_tangent: Tensor, _: None) -> Tensor:
        inputs, free = ctx.saved_tensors
        return convolve(inputs_tangent, free, ctx.geometry) + convolve(inputs, free_tangent, ctx.geometry)

    @staticmethod
    def vmap(info: Any, axes: Any, *args: Any) -> Any:
        return _one_by_one(_Convolution, info.batch_size, axes, args), 0


class _Gradients(_Function):
    """The gradients of the convolution. `autodiff` has the formula of their own gradients, for cotangents u and v."""

    @staticmethod
    def forward(inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        return backward(inputs, free, upstream, geometry)

    @staticmethod
    def backward(ctx: Any, u: Tensor, v: Tensor) -> Any:
        inputs, free, upstream = ctx.saved_tensors
        upstream_gradient = convolve(u, free, ctx.geometry) + convolve(inputs, v, ctx.geometry)
        return *_Gradients.apply(u, v, upstream, ctx.geometry), upstream_gradient, None

    @staticmethod
    def jvp(ctx: Any, inputs_tangent: Tensor, free_tangent: Tensor, upstream_tangent: Tensor, _: None) -> Any:
        inputs, free, upstream = ctx.saved_tensors
        parts = (
            _Gradients.apply(inputs_tangent, free_tangent, upstream, ctx.geometry),
            _Gradients.apply(inputs, free, upstream_tangent, ctx.geometry),
        )
        return tuple(map(torch.add, *parts))

    @staticmethod
    def vmap(info: Any, axes: Any, *args: Any) -> Any:
        return _one_by_one(_Gradients, info.batch_size, axes, args), (0, 0)


def _one_by_one(function: Any, count: int, axes: Any, args: Any) -> Any:
    """Returns the stacked results of `function` for each index along the axes that `torch.vmap` maps over."""

    def entry(index: int) -> list[Any]:
        return [arg if axis is None else arg.select(axis, index) for arg, axis in zip(args, axes, strict=True)]

    results = [function.apply(*entry(index)) for index in range(count)]
    if isinstance(results[0], torch.Tensor):
        return torch.stack(results)
    return tuple(map(torch.stack, zip(*results, strict=True)))


def convolve(inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
    """Returns the tied convolution, differentiable any number of times."""
    return _Convolution.apply(inputs, free, geometry)


def traced_convolutions() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Returns the stock convolution and the depthwise one, for a graph that is being traced."""
    return ops.conv, ops.depthwise_conv


def is_compiling() -> bool:
    """Returns whether torch.compile is tracing. It would trace the loops of group sums for minutes."""
    return torch.compiler.is_compiling()


def is_exporting() -> bool:
    """Returns whether a model is being exported. OpenVINO also calls models outside its trace."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    jit: Any = torch.jit  # `is_tracing` is missing from torch's type stubs
    return jit.is_tracing() or bool(_keras.export_format())


@torch.compiler.assume_constant_result
def hardware_without_benchmarks() -> str:
    """Returns the name of hardware without benchmark data, or ""."""
    return _accelerators()


@lru_cache(maxsize=1)
def _accelerators() -> str:
    return "accelerators" if torch.accelerator.is_available() else ""


def _sum_bytes(free: Tensor) -> int:
    """Returns the size in bytes of one group sum of a chunk."""
    # oneDNN reorders the kernel at each call. The cost is small if a chunk has twice as many pixels as filters.
    chunk_bytes = max(threads() * _CHUNK_BYTES, 2 * free.nbytes)
    return chunk_bytes // len(free)


@torch.compiler.assume_constant_result
def threads() -> int:
    """Returns the number of compute threads."""
    return torch.get_num_threads()


def break_even_reductions(kind: str, is_compiled: bool) -> Mapping[int, float] | None:
    """Returns the break-even reduction k^2/K by minimum channel count, or None without benchmark data.

    Args:
        kind: that of the convolution.
        is_compiled: whether torch.compile compiles the model, which then convolves by factors.
    """
    by_kind = _BREAK_EVEN_COMPILED if is_compiled else _BREAK_EVEN
    return by_kind[kind].get(threads()) if kind in by_kind else {}


def is_compiled(given: bool | None) -> bool:
    """Returns `given`, or if that is None, whether torch.compile traces the model."""
    return torch.compiler.is_compiling() if given is None else given


def inference_step(function: Callable[..., Tensor], tensors: Sequence[Tensor], is_compiled: bool) -> Callable[[], Any]:
    """Returns a function that computes outputs, and waits until they are ready."""

    def step() -> Any:
        with torch.no_grad():
            return _ready(function(*tensors))

    return step


def training_step(function: Callable[..., Tensor], tensors: Sequence[Tensor], is_compiled: bool) -> Callable[[], Any]:
    """Returns a function that computes outputs and gradients with respect to `tensors`, and waits until they are ready."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]

    def step() -> Any:
        outputs = function(*tensors)
        return _ready(torch.autograd.grad(outputs, tensors, outputs))

    return step


def _ready(results: Any) -> Any:
    """Waits for accelerators, which still compute when a call returns."""
    if _accelerators():
        torch.accelerator.synchronize()
    return results
