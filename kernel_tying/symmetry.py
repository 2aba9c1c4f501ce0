"""What tying would cost a model: the part of each kernel that patterns would take away, and the metrics without that part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import keras
from rich.console import Group

from kernel_tying import _keras
from kernel_tying._layers.fitting import LayerTying, is_matrix_layer
from kernel_tying._layers.identifiers import Identifier, PatternLike, serialize_pattern, validate
from kernel_tying._layers.table import default_kernel
from kernel_tying._models.budget import Option, cheapest, mixture, within
from kernel_tying._models.measures import SymmetryRow, measure, option_of, reason_against
from kernel_tying._models.sites import find_sites
from kernel_tying._models.trials import evaluate_tied
from kernel_tying._report.tables import html_heading, html_lines, html_paragraph, html_table, plain, text_table, write
from kernel_tying.errors import TyingError, abbreviate, real_number
from kernel_tying.patterns.pattern import TyingPattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class SymmetryReport:
    """What tying would cost, kernel by kernel and pattern by pattern: a table in a terminal, HTML in a notebook.

    The table has the patterns that are closest to each kernel, those of least `lost / expected`. `rows` has all patterns.

    Attributes:
        name: name of the model or layer.
        rows: one `SymmetryRow` for each kernel and pattern, in the order of the model.
        skipped: paths of layers with kernels that are not measured, with the reasons.
        baseline: loss and metrics of the model as it is; None without data.
        per_filter: whether `to_dict` lists the share of each filter.
        directions: for each metric, as far as Keras knows, whether higher values are better.
    """

    name: str
    rows: list[SymmetryRow]
    skipped: dict[str, str]
    baseline: dict[str, float] | None = None
    per_filter: bool = False
    directions: dict[str, bool] = field(default_factory=dict)

    def plan(
        self, budget: float = 0.1, *, metric_drop: float | None = None, metric: str | None = None
    ) -> dict[str, LayerTying]:
        """Returns the patterns that save most within a budget, a dict for `apply_tying`.

        Each kernel gets the pattern that saves most free weights among those that lose at most `budget` of its norm. If
        filters differ, that may be a mixture, `patterns.per_filter`, in which each filter loses at most that share of its own
        norm. A layer where nothing fits is not in the dict. If the dict is empty, `apply_tying` refuses it.

        Args:
            budget: the largest share of a kernel's norm to lose, from 0 to 1.
            metric_drop: the largest worsening of a metric. It replaces the budget, and needs `data`. Metrics are known with a
                single kernel tied: with all of them tied, the model may lose more. Mixtures are left out.
            metric: name of that metric. It may be left out if there is a single one besides the loss, or the loss alone.

        Raises:
            TyingError: `budget` or `metric_drop` is not a number from 0; there is no such metric, or Keras does not know
                whether higher values of it are better.

        Example:

        >>> import keras, kernel_tying as kt
        >>> model = keras.Sequential([keras.Input((9, 9, 1)), keras.layers.Conv2D(2, 3, name="conv")])
        >>> kernel = model.get_layer("conv").kernel
        >>> _ = kernel.assign(keras.ops.reshape(keras.ops.arange(18.0), (3, 3, 1, 2)) - 8.5)
        >>> kt.symmetry_report(model, ["point", kt.patterns.point((3, 3), antisymmetric=True)]).plan(budget=0.1)
        {'conv': TyingPattern.parse('ABC/D.-D/-C-B-A')}
        """
        choose = _within_budget(budget) if metric_drop is None else self._within_drop(metric_drop, metric)
        plan: dict[str, dict[str, TyingPattern]] = {}
        for rows in self._by_kernel():
            found = choose(rows)
            if found is not None:
                plan.setdefault(rows[0].key, {})[rows[0].kernel] = found.pattern
        return {key: self._unnamed(key, patterns) for key, patterns in plan.items()}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws a heat map of kernels and patterns, see `kernel_tying.plotting.plot_symmetry`.

        Raises:
            TyingError: Matplotlib is not installed.
        """
        from kernel_tying.plotting import plot_symmetry

        return plot_symmetry(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON-serializable values, patterns as their configs."""
        return {
            "name": self.name,
            "baseline": self.baseline,
            "rows": [_row_dict(row, self.per_filter) for row in self.rows],
            "skipped": self.skipped,
        }

    def __rich__(self) -> Group:
        table = text_table(self._columns(), self._cells())
        return Group(plain(self._title()), table, *map(plain, self._lines()))

    def __repr__(self) -> str:
        return write(self.__rich__())

    def _repr_html_(self) -> str:
        table = html_table(self._columns(), [tuple(map(html_lines, cells)) for cells in self._cells()])
        lines = "".join(map(html_paragraph, self._lines()))
        return f"<div>{html_heading(self._title(), '')}{table}{lines}</div>"

    def _by_kernel(self) -> list[list[SymmetryRow]]:
        """Returns the rows of each kernel."""
        found: dict[tuple[str, str], list[SymmetryRow]] = {}
        for row in self.rows:
            found.setdefault((row.key, row.kernel), []).append(row)
        return list(found.values())

    def _unnamed(self, key: str, patterns: dict[str, TyingPattern]) -> LayerTying:
        """Returns the pattern itself if only the default kernel of a layer is tied."""
        defaults = {row.kernel for row in self.rows if row.key == key and row.is_default}
        return patterns[defaults.pop()] if set(patterns) == defaults else patterns

    def _within_drop(self, metric_drop: float, metric: str | None) -> Callable[[list[SymmetryRow]], Option | None]:
        """Returns the function that chooses the pattern of a kernel by a metric."""
        limit, baseline = _checked_limit("metric_drop", metric_drop), self.baseline or {}
        others = [name for name in baseline if name != "loss" and not name.endswith("_loss")] or ["loss"]
        name = metric or (others[0] if len(others) == 1 else "")
        higher_is_better = self.directions.get(name)
        if higher_is_better is None:
            raise TyingError(
                "`metric_drop` needs a report with data, and a metric for which Keras knows whether higher values are better. "
                f"Received metric={metric!r}, and a report with the metrics {list(baseline)}. "
                "Call `symmetry_report(model, data=(x, y))`, and name such a metric."
            )
        sign = 1 if higher_is_better else -1

        def drop(row: SymmetryRow) -> float:
            return sign * (baseline[name] - (row.metrics or {})[name])

        return lambda rows: cheapest([option_of(row) for row in rows if drop(row) <= limit])

    def _title(self) -> str:
        return f"What tying would cost {self.name}"

    def _columns(self) -> tuple[str, ...]:
        return (*COLUMNS, *(self.baseline or ()))

    def _cells(self) -> list[tuple[str, ...]]:
        closest = [sorted(rows, key=_closeness)[:_MAX_SHOWN] for rows in self._by_kernel()]
        return [_row_cells(row) for row in chain.from_iterable(closest)]

    def _lines(self) -> list[str]:
        more = len(self.rows) - len(self._cells())
        shown = [f"{more} more rows, of patterns that are further from the kernels, are in `rows`"] if more else []
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in (self.baseline or {}).items())
        baseline = [f"untied: {metrics}"] if metrics else []
        return [*baseline, *shown, *(f"not measured: {layer} ({reason})" for layer, reason in self.skipped.items())]


COLUMNS = ("kernel", "pattern", "lost", "expected", "lost of mean", "saved")
_MAX_SHOWN = 6  # patterns of a kernel in the table
_MAX_WRITTEN = 25  # positions of a pattern whose notation is its label


def symmetry_report(
    model: keras.Layer,
    patterns: PatternLike | Iterable[PatternLike] | Mapping[str, PatternLike] | None = None,
    *,
    data: Any = None,
    per_filter: bool = False,
) -> SymmetryReport:
    """Returns a report of what tying would take from each kernel, next to what it would take from a random one.

    A kernel that loses less than `expected` is closer to the pattern than a random kernel. Kernels with spatial axes are
    measured, as a bare pattern would tie them; a layer that is passed alone may be of any class. The model is left as it was.

    Args:
        model: a built Keras model of any kind, or a layer.
        patterns: a pattern, a family (its name or its function), a list of these, or a dict from labels to these. By default,
            all families that fit the kernel's size: mirrors along each axis, rotations and so on, in their antisymmetric forms
            too ("anti-mirror"), and those that `patterns.register` added.
        data: a tuple `(x, y)` or `(x, y, sample_weight)`, or a dataset that `evaluate` takes. The model is evaluated once for
            each kernel and pattern, with that kernel alone tied. Interrupting is safe.
        per_filter: `to_dict` lists the share of each filter, too.

    Raises:
        TyingError: no kernel is built and has a pattern that fits; `data` for a model that is not compiled, or that can be read
            only once.

    Example:

    >>> import keras, kernel_tying as kt
    >>> model = keras.Sequential([keras.Input((9, 9, 1)), keras.layers.Conv2D(1, 3, name="conv")])
    >>> sobel = keras.ops.array([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    >>> _ = model.get_layer("conv").kernel.assign(sobel[..., None, None])
    >>> {row.pattern: row.lost for row in kt.symmetry_report(model, ["mirror", "point"]).rows}
    {'mirror': 1.0, 'point': 1.0}
    >>> [row.pattern for row in kt.symmetry_report(model).rows if row.lost == 0 and "anti" in row.pattern]
    ['anti-mirror', 'anti-point']
    """
    labelled = None if patterns is None else _labelled(patterns)
    rows: list[SymmetryRow] = []
    kernels: list[Any] = []
    skipped: dict[str, str] = {}
    for site in find_sites(model):
        reason = reason_against(site)
        found = [] if reason else measure(site, labelled, is_alone=site.outer is model)
        rows += [row for row, _ in found]
        kernels += [kernel for _, kernel in found]
        if not found and default_kernel(site.layer):
            is_matrix = is_matrix_layer(site.layer) and site.outer is not model
            skipped[site.path] = reason or ("no spatial axes" if is_matrix else "no pattern fits")
    if not rows:
        raise TyingError(
            "A symmetry report needs a built kernel that some pattern fits. "
            f"Received {model.name!r} and patterns={abbreviate(patterns)} ({skipped}). "
            "Make patterns for the kernel sizes of the model's layers."
        )
    report = SymmetryReport(model.name, rows, skipped, per_filter=per_filter)
    return report if data is None else _with_metrics(report, model, kernels, data)


def _with_metrics(report: SymmetryReport, model: keras.Layer, kernels: list[keras.Variable], data: Any) -> SymmetryReport:
    """Returns the report with the loss and metrics of the model, and of the model with each kernel alone tied."""
    trials = [
        (f"{row.layer}.{row.kernel}, {row.pattern}", kernel, row.tying)
        for row, kernel in zip(report.rows, kernels, strict=True)
    ]
    baseline, metrics = evaluate_tied(model, data, trials)
    rows = [replace(row, metrics=found) for row, found in zip(report.rows, metrics, strict=True)]
    known = {name: _keras.is_better_if_higher(model, name) for name in baseline}
    directions = {name: direction for name, direction in known.items() if direction is not None}
    return replace(report, rows=rows, baseline=baseline, directions=directions)


def _labelled(patterns: Any) -> dict[str, Identifier]:
    """Returns patterns by label. The label of a name is the name, that of a pattern its notation."""
    if isinstance(patterns, Mapping):
        return {str(label): validate(pattern) for label, pattern in patterns.items()}
    given = [patterns] if isinstance(patterns, (str, TyingPattern)) or not isinstance(patterns, Iterable) else patterns
    return {pattern if isinstance(pattern, str) else _notation(pattern): pattern for pattern in map(validate, given)}


def _notation(pattern: TyingPattern) -> str:
    return str(pattern) if pattern.labels.size <= _MAX_WRITTEN else repr(pattern)


def _checked_limit(name: str, value: Any) -> float:
    """Returns `value`, and raises a `TyingError` unless it is a number from 0."""
    number = real_number(value)
    if not number >= 0:
        raise TyingError(f"`{name}` is a number from 0. Received {name}={abbreviate(value)}. Example: {name}=0.05.")
    return number


def _within_budget(budget: float) -> Callable[[list[SymmetryRow]], Option | None]:
    """Returns the function that chooses the pattern of a kernel by the share of its norm that is lost."""
    limit = _checked_limit("budget", budget)

    def choose(rows: list[SymmetryRow]) -> Option | None:
        options = [option_of(row) for row in rows]
        mixed = mixture([option_of(row) for row in rows if row.is_mixable], limit)
        return cheapest([*within(options, limit), *([mixed] if mixed else [])])

    return choose


def _row_dict(row: SymmetryRow, with_filters: bool) -> dict[str, Any]:
    values = {**asdict(row), "tying": serialize_pattern(row.tying), "filters": list(row.filters)}
    left_out = {"key", "is_default", "is_mixable"}
    left_out |= {name for name, is_known in (("filters", with_filters), ("metrics", row.metrics)) if not is_known}
    return {name: value for name, value in values.items() if name not in left_out}


def _closeness(row: SymmetryRow) -> float:
    return row.lost / row.expected


def _row_cells(row: SymmetryRow) -> tuple[str, ...]:
    mean_lost = "" if row.mean_lost is None else f"{row.mean_lost:.0%}"
    metrics = (f"{value:.4g}" for value in (row.metrics or {}).values())
    shares = (f"{row.lost:.0%}", f"{row.expected:.0%}", mean_lost)
    return (f"{row.layer}.{row.kernel}", row.pattern, *shares, f"{row.saved:,}", *metrics)
