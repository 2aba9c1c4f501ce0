"""Calls whose types mypy and pyright check in `tox run -e lint`: an error that is not found is an unused `ignore`."""

from __future__ import annotations

from functools import partial
from typing import assert_type

import keras

import kernel_tying as kt


class Network(keras.Model):
    """A model class of a user."""


def check(network: Network, layer: keras.layers.Conv2D) -> None:
    assert_type(kt.apply_tying(network, "mirror"), Network)
    assert_type(kt.strip_tying(network), Network)
    assert_type(kt.penalize(network, "mirror", 0.1), Network)
    kt.apply_tying(
        network, kt.patterns.mirror, mode="parameterization", init="project", scaling="orthonormal", convolution="tune"
    )
    kt.apply_tying(network, {"conv*": partial(kt.patterns.mirror, axis=0), "head": None, "first": {"kernel": "point"}})
    kt.apply_tying(network, lambda layer: "mirror" if layer.name == "first" else None)
    kt.Tied(layer, "mirror", scaling="orthonormal", convolution="group_sums")

    kt.apply_tying(network, "mirror", mode="constrain")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    kt.apply_tying(network, "mirror", init="redrawn")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    kt.apply_tying(network, "mirror", scaling="orthogonal")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    kt.apply_tying(network, "mirror", convolution="sums")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    kt.TieGradually("mirror", mode="soft")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    kt.apply_tying(network, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    kt.Tied(layer, "mirror", "value")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    kt.Tied(layer, "mirror", convolution="kernels")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
