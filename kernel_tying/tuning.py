"""`tune`: times both convolution algorithms of each tied layer on this machine, and fixes the faster."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras

from kernel_tying._convolution.backend import BACKEND
from kernel_tying._layers.algorithm import Problem, problem_to_time, time_algorithms
from kernel_tying._layers.table import kernel_of
from kernel_tying._layers.tied import Tied
from kernel_tying._layers.view import KernelView
from kernel_tying._models.attaching import drop_traced_functions
from kernel_tying._models.sites import TiedKernel, all_tied_kernels
from kernel_tying._report.tables import html_heading, html_table, text_table, write
from kernel_tying.errors import TyingError, abbreviate


@dataclass(frozen=True)
class TuningRow:
    """What `tune` measured of one layer.

    Attributes:
        layer: path of the layer.
        convolution: the option that the layer has now.
        kernel: seconds with the expanded kernel in the stock convolution, or None if the layer was not timed.
        group_sums: seconds by group sums, or None.
        reason: why the layer was not timed; else empty.
    """

    layer: str
    convolution: str
    kernel: float | None = None
    group_sums: float | None = None
    reason: str = ""

    @property
    def speed_up(self) -> float | None:
        """How many times as fast group sums are as the expanded kernel, or None."""
        return self.kernel / self.group_sums if self.kernel and self.group_sums else None


@dataclass(frozen=True, repr=False)
class TuningReport:
    """What `tune` measured.

    Attributes:
        name: name of the model or layer.
        batch_size: number of samples.
        training: whether gradients were computed too.
        rows: one `TuningRow` per tied convolution, in the order of the model.
    """

    name: str
    batch_size: int
    training: bool
    rows: list[TuningRow]

    def __repr__(self) -> str:
        return f"{self._title}\n{self._summary}\n\n{write(text_table(_TITLES, map(_cells, self.rows)))}"

    def _repr_html_(self) -> str:
        cells = [[html.escape(cell) for cell in _cells(row)] for row in self.rows]
        return html_heading(self._title, self._summary) + html_table(_TITLES, cells)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as a dict of plain values, for JSON."""
        rows = [{**asdict(row), "speed_up": row.speed_up} for row in self.rows]
        return {"name": self.name, "batch_size": self.batch_size, "training": self.training, "rows": rows}

    @property
    def _title(self) -> str:
        return f"Convolutions of {self.name}, timed on this machine"

    @property
    def _summary(self) -> str:
        step = "outputs and gradients" if self.training else "outputs"
        return f"{step} of {self.batch_size} samples, on {BACKEND.threads()} threads"


_TITLES = ("layer", "kernel, ms", "group sums, ms", "speed-up", "convolution")


def _cells(row: TuningRow) -> tuple[str, ...]:
    times = [f"{1e3 * seconds:.2f}" if seconds else "" for seconds in (row.kernel, row.group_sums)]
    choice = f"{row.convolution}: {row.reason}" if row.reason else row.convolution
    return (row.layer, *times, f"{row.speed_up:.2f}" if row.speed_up else "", choice)


def tune(model: keras.Layer, batch_size: int = 8, *, training: bool = True, verbose: int = 1) -> TuningReport:
    """Times each tied convolution both ways on this machine, and fixes the faster as the layer's `convolution`.

    The choice "kernel" or "group_sums" is saved with the model. Training that is resumed from a file then takes the same
    steps to the bit, on any machine. Layers with equal shapes are timed once. Run it on a machine without other load.

    Args:
        model: a model or layer tied in parameterization mode, with inputs of a fixed size. Its weights stay as they are. The
            model is traced again at the next call.
        batch_size: number of samples to time with: that of the training to come, or of the requests to serve.
        training: times outputs and gradients; False times outputs alone.
        verbose: 1 shows a progress bar, 0 does not.

    Returns:
        A `TuningReport`, a table with one row per tied convolution.

    Raises:
        TyingError: no kernel is tied in parameterization mode, or `batch_size` is not a positive integer. The options are
            unchanged then, as they are if timing is interrupted.

    Example:

    >>> import keras
    >>> import kernel_tying as kt
    >>> model = keras.Sequential([keras.Input((16, 16, 64)), keras.layers.Conv2D(64, 5, name="conv")])
    >>> tied = kt.apply_tying(model, "dihedral", mode="parameterization")
    >>> report = kt.tune(tied, batch_size=2, verbose=0)
    >>> [(row.layer, row.convolution in ("kernel", "group_sums")) for row in report.rows]
    [('conv', True)]
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise TyingError(
            f"A batch has at least one sample. Received batch_size={abbreviate(batch_size)}. Give a positive integer."
        )
    kernels = [kernel for kernel in all_tied_kernels(model) if _is_timed(kernel)]
    if not kernels:
        raise TyingError(
            "Only kernels in parameterization mode have a choice of convolutions, because constraint mode trains the full "
            f"kernel. Received {model.name!r} without such a kernel of a convolution. "
            'Tie one by `apply_tying(model, patterns, mode="parameterization")`.'
        )
    make_step = BACKEND.training_step if training else BACKEND.inference_step
    rows = _time_all(kernels, batch_size, make_step, BACKEND.is_compiled(getattr(model, "jit_compile", None)), verbose)
    for kernel, row in zip(kernels, rows, strict=True):
        _set_convolution(kernel, row.convolution)
    drop_traced_functions(model)
    return TuningReport(model.name, batch_size, training, rows)


def _is_timed(kernel: TiedKernel) -> bool:
    is_convolved = hasattr(kernel.site.layer, "kernel_size") and kernel_of(kernel.site.layer, kernel.name).is_default
    return is_convolved and isinstance(kernel.variable, KernelView)


def _time_all(
    kernels: Sequence[TiedKernel], batch_size: int, make_step: Callable[..., Any], is_compiled: bool, verbose: int
) -> list[TuningRow]:
    """Returns a row per kernel. Equal problems are timed once."""
    seconds: dict[Problem, dict[str, float]] = {}
    progress = keras.utils.Progbar(len(kernels), verbose=verbose, unit_name="layer")
    rows = []
    for index, kernel in enumerate(kernels, start=1):
        layer, path = kernel.site.layer, kernel.site.path
        input_shape = layer.get_build_config().get("input_shape") or (None, None)
        problem, reason = problem_to_time(layer, kernel.variable, tuple(input_shape))
        if problem is None:
            rows.append(TuningRow(path, kernel.variable.convolution, reason=reason))
        else:
            if problem not in seconds:
                seconds[problem] = time_algorithms(problem, batch_size, make_step, is_compiled)
            times = seconds[problem]
            rows.append(TuningRow(path, min(times, key=times.__getitem__), times["kernel"], times["group_sums"]))
        progress.update(index)
    return rows


def _set_convolution(kernel: TiedKernel, convolution: str) -> None:
    outer = kernel.site.outer
    target = outer if isinstance(outer, Tied) else kernel.variable  # layers that are tied in place have no `Tied`
    target.convolution = convolution
