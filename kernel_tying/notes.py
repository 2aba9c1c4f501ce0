"""What `apply_tying` found out about a layer and reports later, noted on the layer itself: it lasts as long as the object."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import keras

from kernel_tying.sites import Site

_NOTE = "_kernel_tying_note"


def write_lost(layer: keras.Layer, kernel_name: str, lost: float) -> None:
    """Notes the relative norm that a kernel lost when it was tied."""
    _note(layer).setdefault("lost", {})[kernel_name] = lost


def write_reason(layer: keras.Layer, reason: str) -> None:
    """Notes why a layer is untied."""
    _note(layer)["reason"] = reason


def carry_over(sources: list[Site], targets: list[Site]) -> None:
    """Repeats the notes on the layers of a model on the layers of its copy, by path."""
    noted = {site.path: vars(site.layer)[_NOTE] for site in sources if _NOTE in vars(site.layer)}
    for site in targets:
        if site.path in noted:
            vars(site.layer)[_NOTE] = deepcopy(noted[site.path])


def clear(layer: keras.Layer) -> None:
    """Removes what is noted on a layer."""
    vars(layer).pop(_NOTE, None)


def lost(layer: keras.Layer, kernel_name: str) -> float | None:
    """Returns the relative norm that a kernel lost when it was tied, or None if that is not known."""
    return vars(layer).get(_NOTE, {}).get("lost", {}).get(kernel_name)


def reason(layer: keras.Layer) -> str:
    """Returns why a layer is untied, as far as that is known."""
    return vars(layer).get(_NOTE, {}).get("reason") or "not tied"


def _note(layer: keras.Layer) -> dict[str, Any]:
    # By-passing `setattr`: Keras would wrap the dict, and backends track it.
    return vars(layer).setdefault(_NOTE, {})
