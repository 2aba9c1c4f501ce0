"""What copies of a model compute: the function of the given one, with layers and variables of their own."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support.backends import array
from support.copies import DATA, PATTERN, apply, autoencoder, decode, dense, in_both_directions
from support.errors import raises_tying_error
from support.models import MODES

import kernel_tying as kt


def decoder_comes_first():
    """The kernel is an argument before its layer is called, so before Keras would build the copy of the layer."""
    inputs, encoder = keras.Input((6,)), dense()
    encoder.build((None, 6))
    return keras.Model(inputs, encoder(decode(encoder, inputs)))


def nested_decoder():
    inputs, hidden, encoder = keras.Input((6,)), keras.Input((6,)), dense()
    encoder.build((None, 6))
    decoder = keras.Model(hidden, decode(encoder, ops.tanh(hidden)), name="decoder")
    return keras.Model(inputs, decoder(encoder(inputs)))


def shared_encoder():
    inputs, encoder = keras.Input((6,)), dense()
    return keras.Model(inputs, decode(encoder, encoder(encoder(inputs))))


class Shift(keras.Operation):
    """An operation with a variable as attribute, and without a config."""

    def __init__(self, offset):
        super().__init__()
        self.offset = offset

    def call(self, inputs):
        return ops.add(inputs, self.offset)


def normalized():
    """The variables of untied layers are an argument by keyword, and an attribute of an operation."""
    inputs, norm, last = keras.Input((6,)), layers.BatchNormalization(name="norm"), layers.Dense(6, name="last")
    hidden = last(norm(dense()(inputs)))
    return keras.Model(inputs, ops.multiply(x1=Shift(last.bias)(hidden), x2=norm.gamma))


HOLDERS = [autoencoder, decoder_comes_first, nested_decoder, shared_encoder, normalized]


def operations(model):
    """Returns all operations of a model and of models inside, layers too."""
    return [inner for one in getattr(model, "operations", ()) for inner in (one, *operations(one))]


def held_variables(model):
    """Returns the variables that operations of a model hold as arguments or attributes."""
    held = []
    for one in operations(model):
        held += [
            leaf for node in one._inbound_nodes for leaf in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
        ]
        held += [] if isinstance(one, keras.Layer) else list(vars(one).values())
    return [leaf for leaf in held if isinstance(leaf, keras.Variable)]


@in_both_directions
@pytest.mark.parametrize("builder", HOLDERS)
def test_variables_that_operations_hold_are_those_of_the_copy(builder, copier):
    model = builder()
    before = {id(variable) for variable in model.variables}

    copy = copier(model)

    kernel = copy.get_layer("encoder").kernel
    own = {id(variable) for variable in (*copy.variables, kernel)}
    assert held_variables(copy)
    assert all(id(variable) in own - before for variable in held_variables(copy))
    assert len(copy.variables) == len(model.variables)


@in_both_directions
@pytest.mark.parametrize("builder", HOLDERS)
def test_a_copy_computes_the_same_function_before_and_after_training(builder, copier):
    keras.utils.set_random_seed(1)
    model = builder()
    kernel = model.get_layer("encoder").kernel
    kernel.assign(kt.project(kernel, PATTERN["encoder"]))
    before = model.get_weights()
    copy = copier(model)
    start = array(model(DATA))
    np.testing.assert_allclose(array(copy(DATA)), start, rtol=1e-5, atol=1e-5)

    copy.compile(keras.optimizers.SGD(0.01), "mse", run_eagerly=True)
    copy.fit(DATA, DATA, epochs=2, verbose=0, shuffle=False)

    np.testing.assert_equal(model.get_weights(), before)
    trained = array(copy(DATA))
    assert np.abs(trained - start).max() > 1e-4
    kernel.assign(copy.get_layer("encoder").kernel)
    others = [variable for variable in copy.variables if variable.name != "kernel" or "encoder" not in variable.path]
    for variable in others:
        next(one for one in model.variables if one.path == variable.path).assign(variable)
    np.testing.assert_allclose(array(model(DATA)), trained, rtol=1e-5, atol=1e-5)


def test_a_tied_autoencoder_trains_like_its_constrained_twin():
    keras.utils.set_random_seed(1)
    model = autoencoder()
    twin = kt.apply_tying(autoencoder(), PATTERN, init="project")
    twin.set_weights([kt.project(model.get_layer("encoder").kernel, PATTERN["encoder"])])
    tied = apply(model, scaling="orthonormal", init="project")

    for one in (tied, twin):
        one.compile(keras.optimizers.SGD(0.05), "mse", run_eagerly=True)
        one.fit(DATA, DATA, epochs=3, verbose=0, shuffle=False)

    kernels = [array(one.get_layer("encoder").kernel) for one in (tied, twin)]
    np.testing.assert_allclose(*kernels, rtol=1e-4, atol=1e-5)


IMAGE_LAYERS = [
    layers.DepthwiseConv2D(3), layers.SeparableConv2D(2, 3), layers.Conv2DTranspose(2, 3), layers.PReLU(), layers.Lambda(abs),
    layers.BatchNormalization(), layers.LayerNormalization(), layers.GroupNormalization(2), layers.UnitNormalization(),
    layers.Normalization(), layers.Rescaling(2.0), layers.Resizing(4, 4), layers.RandomFlip(), layers.RandomRotation(0.1),
    layers.RandomZoom(0.1), layers.RandomCrop(4, 4), layers.GaussianNoise(0.1), layers.SpatialDropout2D(0.1), layers.ReLU(),
    layers.Softmax(), layers.Flatten(), layers.Reshape((-1,)), layers.UpSampling2D(), layers.MaxPooling2D(2),
    layers.EinsumDense("abcd,de->abce", (6, 6, 2)), layers.TimeDistributed(layers.Dense(2)), layers.ActivityRegularization(0.1),
    layers.SpectralNormalization(layers.Conv2D(2, 3)), layers.Conv2D(2, 3, activation=layers.LeakyReLU()),
    layers.ConvLSTM1D(2, 3), layers.Activation("gelu"), layers.RandomContrast(0.1), layers.Cropping2D(),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_stock_layers_that_were_trained_are_copied_without_a_warning():
    inputs, steps, numbers = keras.Input((6, 6, 2)), keras.Input((5, 4)), keras.Input((5,), dtype="int32")
    outputs = [layer(inputs) for layer in IMAGE_LAYERS]
    recurrent = [layers.LSTM(3), layers.GRU(3, dropout=0.1), layers.RNN([layers.LSTMCell(2), layers.GRUCell(3)])]
    outputs += [layer(steps) for layer in (*recurrent, layers.Bidirectional(layers.SimpleRNN(2)), layers.Masking())]
    outputs += [layers.MultiHeadAttention(2, 2)(steps, steps), layers.Embedding(7, 3)(numbers)]
    outputs += [layers.CategoryEncoding(7, output_mode="count")(numbers), dense()(layers.Dense(6)(layers.Flatten()(inputs)))]
    model = keras.Model([inputs, steps, numbers], [ops.mean(ops.cast(output, "float32")) for output in outputs])
    data = [np.ones((2, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
    model(data, training=True)

    stripped = kt.strip_tying(apply(model))  # warnings are errors

    assert len(stripped.variables) == len(model.variables)


in_both_modes = pytest.mark.parametrize("mode", MODES)


def test_a_layer_with_an_unregistered_function_is_refused():
    def double(value):
        return 2 * value

    model = keras.Sequential([keras.Input((9, 9, 2)), layers.Conv2D(2, 3), layers.Activation(double, name="doubled")])

    with raises_tying_error("'doubled'"):
        kt.apply_tying(model, "mirror", mode="parameterization")


def siamese(order):
    """Returns a model that calls a layer and a nested model several times, in an order that their depth does not show."""
    first, second, inner = keras.Input((9, 9, 2)), keras.Input((9, 9, 2)), keras.Input((9, 9, 2))
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    trunk = keras.Model(inner, layers.Conv2D(2, 3, padding="same", name="inside")(inner), name="trunk")
    outputs = [shared(first), layers.ReLU()(shared(second)), trunk(first), trunk(trunk(second))]
    return keras.Model([first, second], [outputs[index] for index in order])


@in_both_modes
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_the_order_of_calls_survives_tying_and_stripping(order, mode):
    model = siamese(order)
    config = model.get_config()

    assert kt.strip_tying(kt.apply_tying(model, "mirror", mode=mode)).get_config() == config
