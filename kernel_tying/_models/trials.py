"""Trials: the loss and metrics of a model while a single kernel is tied. The model is left as it was to the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kernel_tying import _keras
from kernel_tying.algebra import project
from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns.pattern import TyingPattern

Metrics = dict[str, float]


def evaluate_tied(
    model: keras.Layer, data: Any, trials: Sequence[tuple[str, keras.Variable, TyingPattern]]
) -> tuple[Metrics, list[Metrics]]:
    """Returns the loss and metrics of the model as it is, and in each trial with that kernel alone tied.

    Args:
        model: a compiled model.
        data: a tuple `(x, y)` or `(x, y, sample_weight)`, or a dataset that `evaluate` takes.
        trials: for each trial the name to show, the kernel, and its pattern.

    Raises:
        TyingError: the model is not compiled, or `data` can be read only once.
    """
    arguments = _arguments(model, data)
    state = _State(model)
    with state.restored():
        baseline = _evaluate(model, arguments)
    known: dict[tuple[int, TyingPattern], Metrics] = {}  # families coincide for small kernels
    with _progress() as progress:
        task = progress.add_task("", total=len(trials))
        for name, variable, pattern in trials:
            progress.update(task, description=name)
            if (id(variable), pattern) not in known:
                with state.restored():
                    variable.assign(project(variable, pattern))
                    known[id(variable), pattern] = _evaluate(model, arguments)
            progress.advance(task)
    return baseline, [known[id(variable), pattern] for _, variable, pattern in trials]


def _arguments(model: Any, data: Any) -> tuple[Any, ...]:
    """Returns the positional arguments of `evaluate`, after checks."""
    if not getattr(model, "compiled", False):
        raise TyingError(
            "Loss and metrics are those of a compiled model. "
            f"Received data for {model.name!r}, which is not compiled. Call `compile` first, or leave `data` out."
        )
    if isinstance(data, Iterator):
        raise TyingError(
            "The data is read once for each kernel and pattern. "
            f"Received {abbreviate(data)}, which can be read once. Pass arrays `(x, y)`, or a dataset."
        )
    return data if isinstance(data, tuple) else (data,)


def _evaluate(model: Any, arguments: tuple[Any, ...]) -> Metrics:
    x, y, sample_weight = (*arguments, None, None)[:3]
    found = model.evaluate(x, y, sample_weight=sample_weight, verbose=0, return_dict=True)
    return {name: float(value) for name, value in found.items()}


def _progress() -> Progress:
    """Returns a progress bar that is shown in terminals and notebooks, and vanishes at the end."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_shown = console.is_terminal or console.is_jupyter
    return Progress(*columns, console=console, transient=True, disable=not is_shown)


class _State:
    """A copy on the host of the variables that `evaluate` may change: weights, states, seeds and metrics."""

    def __init__(self, model: Any):
        self._model = model
        variables = [*model.variables, *model.metrics_variables]
        self._values = [(variable, np.array(ops.convert_to_numpy(variable.value))) for variable in variables]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Restores the values at the end, after an exception too."""
        try:
            yield
        finally:
            _keras.drop_pending_state(self._model)
            self._model.reset_metrics()  # those that `evaluate` has built
            for variable, value in self._values:
                variable.assign(value)
