"""Keeps oneDNN away from the emotion model.

In the gradient of its strided pointwise kernels, oneDNN in TensorFlow 2.21 and in torch 2.13 writes past its memory, for the
stock model too. XLA goes another way on TensorFlow; torch can be told.
"""

import keras

if keras.backend.backend() == "torch":
    import torch

    torch.backends.mkldnn.enabled = False
