"""The table of layers: which classes of `keras.layers` change the type of a value, keep it, or break equivariance, and why."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import keras

from kernel_tying._equivariance import convolutions, layers, operations
from kernel_tying._equivariance.draft import Call
from kernel_tying._equivariance.fields import Feature

Rule = Callable[[Call], Feature]


def _by_rank(names: str, rule: Rule) -> dict[str, Rule]:
    by_rank = (names.replace("Nd", f"{rank}D").split() for rank in (1, 2, 3))
    return dict.fromkeys(itertools.chain.from_iterable(by_rank), rule)


CHANGES: dict[str, Rule] = {
    **_by_rank("ConvNd", convolutions.convolve),
    **_by_rank("ConvNdTranspose", convolutions.convolve_transposed),
    **_by_rank("DepthwiseConvNd", convolutions.convolve_depthwise),
    **_by_rank("SeparableConvNd", convolutions.convolve_separable),
    "Dense": convolutions.dense,
}
# Their random masks and images do not turn with the input. At inference they are the identity.
_IN_TRAINING_ALONE = (
    "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout GaussianDropout GaussianNoise AugMix CutMix "
    "MixUp RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomElasticTransform "
    "RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective "
    "RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom "
)
KEEPS: dict[str, Rule] = {
    **dict.fromkeys(("Identity", "ActivityRegularization", *_IN_TRAINING_ALONE.split()), layers.keep),
    **_by_rank("AveragePoolingNd", layers.pool),
    **_by_rank("MaxPoolingNd", layers.maxima(layers.pool)),
    **_by_rank("GlobalAveragePoolingNd AdaptiveAveragePoolingNd", layers.pool_all),
    **_by_rank("GlobalMaxPoolingNd AdaptiveMaxPoolingNd", layers.maxima(layers.pool_all)),
    **_by_rank("UpSamplingNd", layers.upsample),
    **_by_rank("ZeroPaddingNd CroppingNd", layers.pad),
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"), operations.combine),
    **dict.fromkeys(("ReLU", "LeakyReLU", "ELU"), operations.act_on_each),
    "Activation": layers.activate,
    "Softmax": operations.softmax,
    "PReLU": layers.prelu,
    "BatchNormalization": layers.normalize_batch,
    "GroupNormalization": layers.normalize_groups,
    "LayerNormalization": layers.normalize,
    "UnitNormalization": layers.unit_normalize,
    "Normalization": layers.normalize_inputs,
    "Rescaling": layers.rescale,
    "Concatenate": operations.concatenate,
    "Flatten": layers.flatten,
    "Reshape": layers.reshape,
}
_POSITIONS = "it treats positions differently"
_CHANNELS = "it treats channels differently"
_WHOLE = "it depends on the order of positions"
_TEXT = "its values are no images or sequences of numbers"
_CODE = "what its code computes is not known"
BREAKS: dict[str, str] = {
    **dict.fromkeys(("Permute", "EinsumDense", "RandomCrop", "CenterCrop", "Resizing", "Masking"), _POSITIONS),
    **dict.fromkeys(("RMSNormalization", "Solarization", "Equalization", "AutoContrast"), _CHANNELS),
    **dict.fromkeys(
        ("ContrastLimitedAdaptiveHistogramEqualization", "STFTSpectrogram", "MelSpectrogram", "RepeatVector"), _POSITIONS
    ),
    **dict.fromkeys(("RNN", "SimpleRNN", "GRU", "LSTM", "Bidirectional", "StackedRNNCells", "SimpleRNNCell"), _WHOLE),
    **dict.fromkeys(("GRUCell", "LSTMCell", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "Dot"), _WHOLE),
    **dict.fromkeys(("Attention", "AdditiveAttention", "MultiHeadAttention", "GroupQueryAttention"), _CHANNELS),
    **dict.fromkeys(
        ("Embedding", "ReversibleEmbedding", "CategoryEncoding", "Discretization", "Hashing", "HashedCrossing"), _TEXT
    ),
    **dict.fromkeys(("IntegerLookup", "StringLookup", "TextVectorization", "MaxNumBoundingBoxes"), _TEXT),
}
UNKNOWN = {
    "Layer", "Lambda", "Wrapper", "TimeDistributed", "SpectralNormalization", "Pipeline", "FlaxLayer", "JaxLayer", "TFSMLayer",
    "TorchModuleWrapper", "InputLayer", "InputSpec",
}  # fmt: skip


_RULES = {**CHANGES, **KEEPS}


def name_of(layer: keras.Layer) -> str:
    """Returns the name of the stock class whose code the layer runs, or the name of its own class."""
    for cls in type(layer).__mro__:
        if getattr(keras.layers, cls.__name__, None) is cls and _runs_code_of(cls, layer):
            return cls.__name__
    return type(layer).__name__


def _runs_code_of(cls: type[keras.Layer], layer: keras.Layer) -> bool:
    """Returns whether a layer computes as `cls` does: its class overrides no method that takes part in a call."""
    methods = [name for name in ("call", "convolution_op") if hasattr(cls, name)]
    return all(getattr(type(layer), name) is getattr(cls, name) for name in methods)


def rule_of(layer: object) -> Rule | None:
    """Returns the rule of a layer or operation, or None."""
    if isinstance(layer, keras.Layer):
        return _RULES.get(name_of(layer))
    return operations.rule_of(layer)


def takes_several(rule: Rule) -> bool:
    """Returns whether a rule takes any number of values."""
    return rule in (operations.combine, operations.concatenate)


def reason_against(layer: object) -> str:
    """Returns why a layer or operation has no rule."""
    name = name_of(layer) if isinstance(layer, keras.Layer) else type(layer).__name__
    return BREAKS.get(name, _CODE)
