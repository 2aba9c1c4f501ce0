"""torch's own way of computing tied convolutions: group sums side by side in a buffer, multiplied by oneDNN's convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.nn.grad import conv2d_weight

from kernel_tying.algebra import Tensor
from kernel_tying.convolution import form
from kernel_tying.convolution.geometry import Geometry, Padding, samples_per_chunk, tile_size
from kernel_tying.convolution.sums import Offset, Read, Schedule, schedule
from kernel_tying.keras_private import is_exporting

# channels -> times fewer products from which on the tied convolution was the faster one, forward and with gradients
_PAYS = {1: {32: 2.5, 128: 1.7, 256: 1.5}, 2: {32: 4.5, 64: 2.5, 256: 1.5}}

_CHUNK_BYTES = 3 * 2**20  # of all group sums of a chunk, for each thread


def forward(inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
    """Returns the output of the tied convolution."""
    if not _is_dense(inputs, geometry) or geometry.lattice:
        return form.forward(inputs, free, geometry, _scan, _chunk_bytes(free))
    count, channels, filters = free.shape
    size = geometry.output_size(inputs.shape[1:-1])
    tile = tile_size(geometry, size, channels, _chunk_bytes(free))
    samples, padding = form.tiles(inputs, geometry.padding, tile[0], size[0], geometry.reach[0])
    plan = schedule(geometry.sums, geometry.dilation, geometry.strides, tile)
    outputs = inputs.new_empty((len(samples), *tile, filters))
    kernel = free.reshape(count * channels, filters).T.contiguous()[..., None, None]
    for chunk, sums in _summed_chunks(samples, plan, padding, tile, _chunk_bytes(free)):
        outputs[chunk] = _product(sums, kernel).view(-1, *tile, filters)
    return form.untiled(outputs, size)


def backward(inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Returns the gradients in inputs and free weights."""
    if not _is_dense(inputs, geometry):
        return form.backward(inputs, free, upstream, geometry, _scan, _chunk_bytes(free))
    count, channels, filters = free.shape
    size = tuple(inputs.shape[1:-1])
    tile = tile_size(geometry, size, filters, _chunk_bytes(free))
    samples = form.tiles(inputs, ((0, 0),) * len(size), tile[0], size[0], 0)[0].contiguous()
    upstream = form.spread(upstream, geometry.strides)
    gradients, padding = form.tiles(upstream, geometry.adjoint_padding(size), tile[0], size[0], geometry.reach[0])
    plan = schedule(geometry.adjoint_sums, geometry.dilation, (1,) * len(size), tile)
    input_gradient = torch.empty_like(samples)
    adjoint = free.transpose(0, 1).reshape(channels, count * filters, 1, 1)
    gradient = inputs.new_zeros((count * filters, channels, 1, 1))
    for chunk, sums in _summed_chunks(gradients, plan, padding, tile, _chunk_bytes(free)):
        input_gradient[chunk] = _product(sums, adjoint).view(-1, *tile, channels)
        gradient += conv2d_weight(_pixels(samples[chunk]), gradient.shape, _pixels(sums))
    free_gradient = gradient.view(count, filters, channels).transpose(1, 2)
    return form.untiled(input_gradient, size), free_gradient.contiguous()


def _is_dense(inputs: Tensor, geometry: Geometry) -> bool:
    """Returns whether buffers serve: one product for all channels, in the dtype of the inputs."""
    is_wide = inputs.dtype in (torch.float32, torch.float64)
    return geometry.groups == 1 and is_wide


def _product(sums: Tensor, kernel: Tensor) -> Tensor:
    """Returns rows of `sums` times a kernel `(out, in, 1, 1)`, as a convolution.

    On AMD oneDNN's convolutions are twice as fast as matrix products of MKL.
    """
    return torch.conv2d(_pixels(sums), kernel).movedim(1, -1)


def _pixels(tensor: Tensor) -> Tensor:
    """Returns rows as pixels of images, channels first: of 16 images at least, or torch would not take oneDNN."""
    channels = tensor.shape[-1]
    return tensor.view(_image_count(tensor.numel() // channels), -1, 1, channels).movedim(-1, 1)


@lru_cache(maxsize=1024)
def _image_count(rows: int) -> int:
    """Returns the least divisor of a number of rows from 16 on."""
    return next((count for count in range(16, rows) if rows % count == 0), rows)


def _summed_chunks(
    inputs: Tensor, plan: Schedule, padding: Padding, size: Offset, chunk_bytes: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yields samples and their group sums side by side, `(samples, *size, K * channels)`: the next ones overwrite the last."""
    *_, channels = inputs.shape
    most = samples_per_chunk(None, inputs.element_size() * math.prod(size) * channels, chunk_bytes)
    length = max(1, min(len(inputs), most))
    padded = [one + before + after for one, (before, after) in zip(inputs.shape[1:-1], padding, strict=True)]
    images = [inputs.new_zeros((length, *padded, channels))]
    images += [inputs.new_empty((length, *one, channels)) for one in plan.sizes]
    inside = (slice(low, low + one) for one, (low, _) in zip(inputs.shape[1:-1], padding, strict=True))
    unpadded = images[0][(slice(None), *inside)]
    sums = inputs.new_empty((length, *size, len(plan.groups) * channels))
    targets = [*images[1:], *sums.split(channels, dim=-1)]
    windows = [_windows(images, reads) for reads in plan.steps + plan.groups]
    for start in range(0, len(inputs), length):
        chunk = inputs[start : start + length]
        unpadded[: len(chunk)] = chunk
        for target, terms in zip(targets, windows, strict=True):
            _sum_into(target, terms)
        yield slice(start, start + length), sums[: len(chunk)]


def _windows(images: list[Tensor], reads: Sequence[Read]) -> list[tuple[Tensor, int]]:
    """Returns views of what is read, each with its sign."""
    return [(images[read.image][(slice(None), *read.window)], read.sign) for read in reads]


def _sum_into(target: Tensor, windows: Sequence[tuple[Tensor, int]]) -> None:
    """Writes the signed sum of windows to `target`."""
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
    """A function of tensors and a geometry that torch.func can transform too."""

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
    def jvp(ctx: Any, to_inputs: Tensor, to_free: Tensor, _: None) -> Tensor:
        inputs, free = ctx.saved_tensors
        return convolve(to_inputs, free, ctx.geometry) + convolve(inputs, to_free, ctx.geometry)

    @staticmethod
    def vmap(info: Any, axes: Any, *args: Any) -> Any:
        return _one_by_one(_Convolution, info.batch_size, axes, args), 0


class _Gradients(_Function):
    @staticmethod
    def forward(inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        return backward(inputs, free, upstream, geometry)

    @staticmethod
    def backward(ctx: Any, to_inputs: Tensor, to_free: Tensor) -> Any:
        inputs, free, upstream = ctx.saved_tensors
        to_upstream = convolve(to_inputs, free, ctx.geometry) + convolve(inputs, to_free, ctx.geometry)
        return *_Gradients.apply(to_inputs, to_free, upstream, ctx.geometry), to_upstream, None

    @staticmethod
    def jvp(ctx: Any, to_inputs: Tensor, to_free: Tensor, to_upstream: Tensor, _: None) -> Any:
        inputs, free, upstream = ctx.saved_tensors
        parts = (
            _Gradients.apply(to_inputs, to_free, upstream, ctx.geometry),
            _Gradients.apply(inputs, free, to_upstream, ctx.geometry),
        )
        return tuple(map(torch.add, *parts))

    @staticmethod
    def vmap(info: Any, axes: Any, *args: Any) -> Any:
        return _one_by_one(_Gradients, info.batch_size, axes, args), (0, 0)


def _one_by_one(function: Any, count: int, axes: Any, args: Any) -> Any:
    """Returns the stacked results of a function for each entry along the axes over which `torch.vmap` maps."""
    entries = [
        [one if axis is None else one.select(axis, index) for one, axis in zip(args, axes, strict=True)]
        for index in range(count)
    ]
    results = [function.apply(*one) for one in entries]
    if isinstance(results[0], torch.Tensor):
        return torch.stack(results)
    return tuple(map(torch.stack, zip(*results, strict=True)))


def convolve(inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
    """Returns the tied convolution, differentiable any number of times."""
    return _Convolution.apply(inputs, free, geometry)


def obstacle() -> str:
    """Returns what keeps layers to the stock convolution just now, or ""."""
    jit: Any = torch.jit  # `is_tracing` is not in the types
    # `torch.compile` cannot trace the look at the callers, so it comes last. OpenVINO calls models outside of its trace too.
    is_traced = torch.compiler.is_compiling() or jit.is_tracing() or is_exporting()
    return "compiled and exported models keep to the stock convolution" if is_traced else ""


def unmeasured() -> str:
    """Returns what there is here that speed was not measured on, or ""."""
    return "accelerators" if torch.accelerator.is_available() else ""


def _chunk_bytes(free: Tensor) -> int:
    """Returns the size of one group sum in a chunk."""
    # oneDNN rearranges a kernel each time: that is little if there are twice as many pixels as filters.
    return max(threads() * _CHUNK_BYTES, 2 * free.nbytes) // len(free)


def threads() -> int:
    """Returns the number of threads that compute."""
    return torch.get_num_threads()


def savings_that_pay(is_depthwise: bool, is_compiled: bool) -> Mapping[int, float] | None:
    """Returns from how many times fewer products on the tied convolution pays, by channels; None if that is not measured."""
    return {} if is_depthwise else _PAYS.get(threads())


def compiles(given: bool | None) -> bool:
    """Returns whether XLA compiles stock convolutions."""
    return False


def training(function: Callable[..., Tensor], tensors: Sequence[Tensor], is_compiled: bool) -> Callable[[], Any]:
    """Returns a function that computes outputs and gradients in tensors."""
    tensors = [one.detach().requires_grad_() for one in tensors]

    def step() -> Any:
        outputs = function(*tensors)
        return torch.autograd.grad(outputs, tensors, outputs)

    return step
