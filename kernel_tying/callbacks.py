"""The callback for the cases in which Keras itself unties kernels in constraint mode."""

from __future__ import annotations

from typing import Any

import keras

from kernel_tying import keras_private
from kernel_tying.algebra import project
from kernel_tying.sites import constrained_kernels


class KeepTied(keras.callbacks.Callback):
    """Keeps kernels in constraint mode tied where Keras writes to them behind the constraint.

    Keras averages weights (`use_ema=True`) before it constrains them, and writes the averages back when `fit` ends or
    `SwapEMAWeights` swaps. Projection is linear, so projecting the averages is exact. This callback projects the kernels and
    their moving averages at the end of each epoch and of training, around testing, and before predicting. Place it
    before a `ModelCheckpoint`; before or after `SwapEMAWeights` makes no difference.

    Example:

    >>> import kernel_tying as kt
    >>> callbacks = [kt.KeepTied()]  # model.fit(..., callbacks=callbacks)
    """

    def _project(self) -> None:
        if hasattr(self.model, "jax_state_sync"):  # on JAX, the training loop holds the weights outside of the variables
            self.model.jax_state_sync()
        patterns = {}
        for kernel in constrained_kernels(self.model):
            kernel.variable.assign(project(kernel.variable, kernel.pattern))
            patterns[id(kernel.variable)] = kernel.pattern
        for variable, average in keras_private.moving_averages(self.model.optimizer):
            if id(variable) in patterns:
                average.assign(project(average, patterns[id(variable)]))

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
