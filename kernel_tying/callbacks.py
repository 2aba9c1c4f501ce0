"""Callbacks: one keeps kernels in constraint mode tied, one ties them in the course of training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras

from kernel_tying import _keras
from kernel_tying._layers.regularizer import checked_strength
from kernel_tying._models.attaching import attach_penalties, strip_in_place, strip_penalty
from kernel_tying._models.loading import project_constrained
from kernel_tying._models.plan import Plan, make_plan
from kernel_tying._models.refusals import Patterns
from kernel_tying.algebra import project, relative_distance
from kernel_tying.errors import TyingError, abbreviate, check_choice
from kernel_tying.models import MODES, Mode, apply_tying


class KeepTied(keras.callbacks.Callback):
    """Keeps kernels in constraint mode tied where Keras writes to them without applying the constraint.

    With `use_ema=True`, Keras averages weights before it constrains them. It writes the averages back when `fit` ends or
    `SwapEMAWeights` swaps. Projection is linear, so projecting the averages is exact. This callback projects the kernels and
    their moving averages at the end of each epoch and of training, before and after testing, and before predicting. Place
    it before a `ModelCheckpoint`. Its order relative to `SwapEMAWeights` does not matter.

    Example:

    >>> import kernel_tying as kt
    >>> callbacks = [kt.KeepTied()]  # model.fit(..., callbacks=callbacks)
    """

    def _project(self) -> None:
        if hasattr(self.model, "jax_state_sync"):  # on JAX, the training loop keeps the weights outside the variables
            self.model.jax_state_sync()
        patterns = project_constrained(self.model)
        for variable, moving_average in _keras.moving_averages(self.model.optimizer):
            if id(variable) in patterns:
                moving_average.assign(project(moving_average, patterns[id(variable)]))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._project()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._project()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._project()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._project()

    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._project()


class TieGradually(KeepTied):
    """Ties a model in the course of training: raises a penalty from epoch to epoch, then ties for good.

    In epoch `e` the kernels have a `TyingPenalty` of strength `strength * (e + 1) / epochs`. At the end of the last of these
    epochs they are tied to the bit, in constraint mode, and the penalty is removed. Further epochs of the same `fit` train the
    tied model. Training that ends earlier ties them when it ends. The callback also does what `KeepTied` does.

    Each epoch logs `tying_error`, the largest `||k - P k|| / ||k||` over all kernels. `History` receives it, and so do the
    callbacks after this one in the list, such as `CSVLogger` and `TensorBoard`. The strength depends on the number of the
    epoch alone, so training that `BackupAndRestore` resumes ends with the same weights. After another interruption,
    `strip_tying` removes the penalty.

    Args:
        patterns: what to tie, as for `apply_tying`.
        epochs: number of epochs before the kernels are tied; by default those of `fit`.
        strength: strength of the penalty in the last of these epochs; or a function that takes the number of an epoch,
            from 0, and returns its strength.
        mode: "constraint", or "parameterization": when training ends, a parameterized model is made from the tied one.

    Attributes:
        tied_model: the tied model once training has ended. In constraint mode it is the model that was trained. In
            parameterization mode it is what `apply_tying` returns, and the model that was trained has tied kernels without a
            constraint.

    Raises:
        TyingError: an argument is invalid; when training begins, as by `apply_tying`.

    Example:

    >>> import keras, numpy as np, kernel_tying as kt
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3, name="conv")])
    >>> model.compile("sgd", "mse")
    >>> images = np.random.default_rng(0).normal(size=(8, 8, 8, 1))
    >>> history = model.fit(images, images[:, 1:-1, 1:-1], epochs=4, verbose=0, callbacks=[kt.TieGradually("mirror", epochs=3)])
    >>> history.history["tying_error"][-2:], kt.tying_error(model)
    ([0.0, 0.0], 0.0)
    """

    def __init__(
        self,
        patterns: Patterns,
        epochs: int | None = None,
        strength: float | Callable[[int], float] = 1.0,
        mode: Mode = "constraint",
    ):
        super().__init__()
        check_choice("mode", mode, MODES)
        if epochs is not None and (not isinstance(epochs, int) or epochs < 1):
            raise TyingError(
                f"`epochs` is a positive integer. Received epochs={abbreviate(epochs)}. Leave it out for all epochs."
            )
        self.patterns, self.epochs, self.mode = patterns, epochs, mode
        self.strength = strength if callable(strength) else checked_strength(strength)
        self.tied_model: keras.Layer | None = None
        self._plan = Plan([], [])  # made when training begins
        self._constrained: keras.Layer | None = None  # the model, once its kernels are in constraint mode

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._is_tied():
            return
        self._plan = make_plan(self.model, self.patterns)
        self._strength = keras.Variable(0.0, dtype="float32", trainable=False, autocast=False, name="tying_strength")
        _keras.track_state(self.model, self._strength)
        attach_penalties(self.model, self._plan, self._strength)
        self.model.make_train_function()  # `fit` has made the one that attaching dropped

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._is_tied():
            return
        if epoch >= self._num_epochs():  # a resumed training
            self._tie()
        else:
            self._strength.assign(self._scheduled(epoch))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if epoch + 1 >= self._num_epochs():
            self._tie()
        super().on_epoch_end(epoch, logs)
        if logs is not None:
            logs["tying_error"] = self._error()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._tie()
        super().on_train_end(logs)
        self.tied_model = self.model if self.mode == "constraint" else self._parameterized()

    def _is_tied(self) -> bool:
        return self._constrained is self.model

    def _num_epochs(self) -> int:
        """Returns the number of epochs before the kernels are tied."""
        return self.epochs or self.params["epochs"]

    def _scheduled(self, epoch: int) -> float:
        """Returns the strength of the penalty in an epoch."""
        if callable(self.strength):
            return checked_strength(self.strength(epoch))
        return self.strength * (epoch + 1) / self._num_epochs()

    def _tie(self) -> None:
        """Ties the kernels in constraint mode, instead of the penalty, unless they are tied."""
        if self._is_tied():
            return
        for site, patterns in self._plan.ties:
            for name in patterns:
                strip_penalty(site.layer, name)
        _keras.untrack_states(self.model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The optimizer averages weights")  # this callback keeps them tied
            apply_tying(self.model, self.patterns, init="project")
        self._constrained = self.model
        self._project()
        self.model.make_train_function()

    def _error(self) -> float:
        """Returns the largest tying error of the planned kernels."""
        errors = []
        for site, patterns in self._plan.ties:
            kernels = {name: getattr(site.layer, name) for name in patterns}
            errors += [relative_distance(kernels[name], project(kernels[name], patterns[name])) for name in patterns]
        return max(errors)

    def _parameterized(self) -> keras.Layer:
        """Returns the model in parameterization mode, and removes the constraints of the given one."""
        for site, _ in self._plan.ties:
            strip_in_place(site.layer)
        self._constrained = None
        return apply_tying(self.model, self.patterns, mode="parameterization", init="project")
