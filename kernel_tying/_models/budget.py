"""The patterns that save most within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kernel_tying.patterns.channels import per_filter
from kernel_tying.patterns.matrices import free
from kernel_tying.patterns.pattern import TyingPattern


@dataclass(frozen=True, eq=False)
class Option:
    """A pattern that a kernel could have.

    Attributes:
        pattern: the pattern.
        saved: number of free weights that it saves.
        lost: share of the kernel's norm that it takes away.
        filters: the share of each filter, `(filters,)`.
    """

    pattern: TyingPattern
    saved: int
    lost: float
    filters: np.ndarray


def cheapest(options: Sequence[Option]) -> Option | None:
    """Returns the option that saves most, of equal ones the one that loses least; None if there are no options."""
    return max(options, key=lambda option: (option.saved, -option.lost), default=None)


def within(options: Sequence[Option], budget: float) -> list[Option]:
    """Returns the options that lose at most `budget` of the norm."""
    return [option for option in options if option.lost <= budget]


def mixture(options: Sequence[Option], budget: float) -> Option | None:
    """Returns the option that ties each filter by the pattern that is cheapest for it, each within the budget.

    Args:
        options: patterns for one kernel, of the spatial shape. There is no mixture of others.
        budget: the largest share of its norm that a filter may lose.

    Returns:
        The mixture, or None if all filters would have the same pattern.
    """
    if not options:
        return None
    chosen = [_of_filter(options, index, budget) for index in range(len(options[0].filters))]
    patterns = [option.pattern if option else free(options[0].pattern.shape) for option in chosen]
    if len(set(patterns)) == 1:
        return None
    saved = sum(option.saved for option in chosen if option)
    return Option(per_filter(patterns), saved, max(option.lost for option in chosen if option), np.empty(0))


def _of_filter(options: Sequence[Option], index: int, budget: float) -> Option | None:
    """Returns the cheapest option for one filter."""
    count = len(options[0].filters)
    alone = [replace(option, saved=option.saved // count, lost=option.filters[index]) for option in options]
    return cheapest(within(alone, budget))
