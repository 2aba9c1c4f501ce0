"""Reports: the tying error of a model, and a table of its tied kernels and untied layers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from rich.console import Group

from kernel_tying._layers.attachment import UNTIED, attachment
from kernel_tying._layers.identifiers import serialize_pattern
from kernel_tying._models.sites import find_sites, some_tied_kernels
from kernel_tying._report import page, pictures, tables, text
from kernel_tying._report.rows import ReportRow, error_of, rows_of
from kernel_tying.errors import TyingError
from kernel_tying.patterns.pattern import TyingPattern

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tying_error(model_or_layer: keras.Layer) -> float:
    """Returns the largest `||k - P k|| / ||k||` over all tied kernels `k`: 0.0 if and only if all are tied to the bit.

    A kernel in constraint mode counts as tied while Keras applies its `TiedConstraint`. An assignment to `kernel.constraint`
    ends that. NaN and infinities in a kernel give NaN.

    Raises:
        TyingError: nothing is tied, or a tied layer is not built.
    """
    kernels = some_tied_kernels(model_or_layer)
    unbuilt = [kernel.site.path for kernel in kernels if kernel.variable is None]
    if unbuilt:
        raise TyingError(
            f"A kernel has a tying error once its layer is built. Received unbuilt layers {unbuilt}. Build the model first."
        )
    return float(np.max([error_of(kernel) for kernel in kernels]))


def tying_report(model_or_layer: keras.Layer) -> TyingReport:
    """Returns a report of all tied kernels: a table in a terminal, HTML in a notebook, `to_dict()` for programs.

    Equal rows are printed once, with their number. Untied layers with weights are listed with the reason. In constraint mode
    a kernel is tied if Keras applies a `TiedConstraint` to it. In a built layer that is the variable's constraint, not the
    layer's `kernel_constraint`.

    Raises:
        TyingError: the argument is not a model or layer.
    """
    sites = find_sites(model_or_layer)
    is_compiled = getattr(model_or_layer, "jit_compile", None)
    reason = UNTIED if attachment(model_or_layer).tied_copy is None else "not tied; use the model that `apply_tying` returned"
    rows: list[ReportRow] = []
    for site in sites:
        rows += [replace(row, reason=reason) if row.reason == UNTIED else row for row in rows_of(site, is_compiled)]
    return TyingReport(model_or_layer.name, rows)


@dataclass(frozen=True, repr=False)
class TyingReport:
    """The tied kernels and untied layers of a model, row by row.

    Attributes:
        name: name of the model or layer.
        rows: one `ReportRow` for each tied kernel and each untied layer with weights, in the order of the model.
    """

    name: str
    rows: list[ReportRow]

    @property
    def plan(self) -> dict[str, dict[str, TyingPattern]]:
        """The `patterns` argument that ties an equal model in the same way. Pass mode and scaling to `apply_tying` again.

        Keys are paths of layers, or positions like "#3" inside subclassed models, where automatic names differ between
        instances.
        """
        plan: dict[str, dict[str, TyingPattern]] = {}
        for row in self.rows:
            if row.pattern is not None:
                plan.setdefault(row.key, {})[row.kernel] = row.pattern
        return plan

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON-serializable values, patterns as their configs."""
        return {
            "name": self.name,
            "rows": [{**asdict(row), "pattern": row.pattern and serialize_pattern(row.pattern)} for row in self.rows],
        }

    def plot(self) -> Figure:
        """Draws the different patterns of the model, each with the number of its kernels.

        Returns:
            A new Matplotlib figure.

        Raises:
            TyingError: Matplotlib is not installed, or no pattern of the model has two tied axes or fewer.
        """
        from kernel_tying.plotting import plot_pattern

        return pictures.draw(self.name, self.rows, plot_pattern)

    def __rich__(self) -> Group:
        return text.render(self.name, self.rows)

    def __repr__(self) -> str:
        return tables.write(self.__rich__())

    def _repr_html_(self) -> str:
        return page.render(self.name, self.rows)
