"""What is TensorFlow's alone: sparse gradients, traced functions, SavedModel and checkpoints that follow attributes."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from support.backends import array, gradient, raw_gradients, train_step
from support.errors import raises_tying_error
from support.keepers import INPUTS, autoencoder, theta_of, tied_dense
from support.models import MODES, conv, images, make, shared_twice, skip, subclassed, targets, tie, values
from support.oracles import dense_adjoint

import kernel_tying as kt
from kernel_tying._convolution import tensorflow as on_tensorflow
from kernel_tying.testing import assert_tied

PATTERNS = {
    "rank 1": kt.TyingPattern.parse("AB-A."),
    "rank 2": kt.patterns.dihedral((3, 3)),
    "a free axis in the middle": kt.patterns.constant((3, 1, 2)),
    "a free axis first": kt.patterns.constant((1, 2)),
}
VARIANTS = {
    "constraint": {"mode": "constraint"},
    "values": {"mode": "parameterization", "scaling": "values"},
    "orthonormal": {"mode": "parameterization", "scaling": "orthonormal"},
}
in_all_variants = pytest.mark.parametrize("variant", VARIANTS)


def test_gradient_of_a_bare_take_is_sparse():
    found = gradient(lambda rows: ops.take(rows, [0, 0, 1], axis=0), np.ones((2, 3), "float32"))

    assert isinstance(found, tf.IndexedSlices), "`expand` need not reshape to two axes any more"


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("channels", [(), (2,), (2, 3)])
def test_gradient_of_expand_is_dense(pattern, channels):
    pattern = PATTERNS[pattern]
    sizes = (3 if size == 1 else size for size in pattern.shape)
    free = array(kt.average(np.ones((*sizes, *channels), "float32"), pattern))

    assert isinstance(gradient(lambda theta: kt.expand(theta, pattern), free), tf.Tensor)


@in_all_variants
def test_gradients_of_a_tied_model_are_dense(variant):
    tied = tie(make(skip), **VARIANTS[variant])

    found = raw_gradients(lambda: ops.sum(tied(images(tied))), tied.trainable_variables)

    assert all(isinstance(one, tf.Tensor) for one in found)


def steps_by_hand(mode, wrap):
    """Returns the weights after each of three steps of a loop by hand, whose step is `wrap`ped."""
    model, optimizer = tie(make(skip), mode), keras.optimizers.Adam(0.05)
    optimizer.build(model.trainable_variables)
    weights = []

    def step():
        train_step(
            lambda: keras.losses.mean_squared_error(targets(model), model(images(model))), model.trainable_variables, optimizer
        )

    wrapped = wrap(step)
    for _ in range(3):
        wrapped()
        assert_tied(model)
        weights += values(model.trainable_variables)
    return weights


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_step_by_hand_inside_a_function_is_the_step_outside(mode, jit_compile):
    expected = steps_by_hand(mode, lambda step: step)

    steps = steps_by_hand(mode, lambda step: tf.function(step, jit_compile=jit_compile))

    for one, other in zip(steps, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def outputs_and_gradients(layer, inputs):
    """Returns what a layer computes, and the gradients of a curved loss in inputs and kernel."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs)
        loss = ops.sum(ops.sin(outputs))
    return outputs, *tape.gradient(loss, [inputs, layer.trainable_variables[0].value])


ANY_BATCH = [tf.TensorSpec((None, 6, 5, 2))]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    ("signature", "shapes", "traces"),
    [(None, [(3, 6, 5), (2, 7, 4)], 2), (ANY_BATCH, [(3, 6, 5), (2, 6, 5)], 1)],
    ids=["traced for each shape", "traced once for any batch"],
)
def test_a_function_around_group_sums_computes_the_stock_layer_for_each_shape(signature, shapes, traces, jit_compile):
    pattern = kt.patterns.dihedral((3, 3))
    by_sums = conv(strides=2)  # so that the padding depends on the size
    by_sums.build((None, None, None, 2))
    by_sums = kt.apply_tying(by_sums, pattern, mode="parameterization", convolution="group_sums")
    stock = kt.strip_tying(by_sums)
    function = tf.function(lambda inputs: outputs_and_gradients(by_sums, inputs), signature, jit_compile=jit_compile)

    for shape in shapes:
        inputs = tf.constant(np.random.default_rng(0).normal(size=(*shape, 2)).astype("float32"))
        found = [array(one) for one in function(inputs)]
        outputs, in_inputs, in_kernel = outputs_and_gradients(stock, inputs)
        for one, other in zip(found, [outputs, in_inputs, dense_adjoint(in_kernel, pattern)], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert function.experimental_get_tracing_count() == traces


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_function_for_any_batch_takes_one_without_samples(jit_compile):
    by_sums = conv(strides=2)
    by_sums.build((None, 6, 5, 2))
    by_sums = kt.apply_tying(by_sums, "mirror", mode="parameterization", convolution="group_sums")
    function = tf.function(lambda inputs: outputs_and_gradients(by_sums, inputs), ANY_BATCH, jit_compile=jit_compile)

    outputs, in_inputs, in_kernel = function(tf.zeros((0, 6, 5, 2)))

    assert (outputs.shape, in_inputs.shape) == ((0, 3, 3, 2), (0, 6, 5, 2))
    np.testing.assert_array_equal(array(in_kernel), 0)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_images_that_are_cut_into_tiles_keep_their_size_while_traced(monkeypatch, jit_compile):
    monkeypatch.setattr(on_tensorflow, "_SUM_BYTES", 16)
    shape = (11, 9, 2)  # that no other test traces
    by_sums = conv()
    by_sums.build((None, *shape))
    by_sums = kt.apply_tying(by_sums, "mirror", mode="parameterization", convolution="group_sums")
    inputs = tf.constant(np.random.default_rng(0).normal(size=(3, *shape)).astype("float32"))
    sizes = []

    @tf.function(input_signature=[tf.TensorSpec((None, *shape))], jit_compile=jit_compile)
    def traced(inputs):
        outputs, _, in_free = outputs_and_gradients(by_sums, inputs)
        sizes.append(outputs.shape[1:])
        return in_free

    found = array(traced(inputs))

    _, _, in_kernel = outputs_and_gradients(kt.strip_tying(by_sums), inputs)
    assert sizes == [shape]
    np.testing.assert_allclose(found, dense_adjoint(in_kernel, kt.patterns.mirror((3, 3))), rtol=1e-4, atol=1e-4)


def fitted(convolution, jit_compile):
    """Returns the weights of a model after four steps, two of them on a smaller batch."""
    model = tie(make(shared_twice), "parameterization", kt.patterns.dihedral((3, 3)), convolution=convolution)
    model.compile("sgd", "mse", jit_compile=jit_compile)
    model.fit(images(model, 5), targets(model, 5), batch_size=3, epochs=2, verbose=0, shuffle=False)
    return values(model.variables)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_on_group_sums_takes_the_steps_of_the_stock_convolution(jit_compile):
    weights = fitted("group_sums", jit_compile)

    for one, other in zip(weights, fitted("kernel", jit_compile=False), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@in_all_variants
@pytest.mark.parametrize("builder", [skip, subclassed])
def test_an_exported_model_computes_the_same(builder, variant, tmp_path):
    tied = tie(make(builder), **VARIANTS[variant])
    tied.export(tmp_path / "exported", verbose=False)

    exported = tf.saved_model.load(tmp_path / "exported")

    np.testing.assert_allclose(exported.serve(images(tied)), array(tied(images(tied))), rtol=1e-5, atol=1e-6)


def operations(exported):
    """Returns how often each operation occurs in a SavedModel."""
    (function,) = exported.serve.concrete_functions
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
    return collections.Counter(node.op for node in nodes)


def test_an_exported_model_keeps_to_the_stock_convolution_unless_group_sums_are_asked_for(tmp_path):
    models = {way: tie(make(skip), "parameterization", convolution=way) for way in ("auto", "group_sums", "kernel")}
    for way, model in models.items():
        model.export(tmp_path / way, verbose=False)

    loaded = {way: tf.saved_model.load(tmp_path / way) for way in models}

    x = images(models["group_sums"])
    for way, model in models.items():
        np.testing.assert_allclose(loaded[way].serve(x), array(model(x)), rtol=1e-5, atol=1e-6)
    assert operations(loaded["auto"]) == operations(loaded["kernel"]) != operations(loaded["group_sums"])


@in_all_variants
def test_a_checkpoint_finds_the_weights_by_attribute(variant, tmp_path):
    tied = tie(make(skip), **VARIANTS[variant])
    weights = tied.get_weights()
    checkpoint = tf.train.Checkpoint(tied)
    file = checkpoint.save(tmp_path / "checkpoint")
    tied.set_weights([np.zeros_like(weight) for weight in weights])

    checkpoint.restore(file)

    np.testing.assert_equal(tied.get_weights(), weights)


def test_a_checkpoint_can_untie_a_constrained_model_which_is_seen_and_mended(tmp_path):
    stock, tied = make(skip), tie(make(skip, seed=8), "constraint")
    path = tf.train.Checkpoint(stock).write(str(tmp_path / "stock"))

    tf.train.Checkpoint(tied).read(path)

    assert kt.tying_error(tied) > 0.0
    kt.project_kernels(tied)
    assert_tied(tied)


@pytest.mark.parametrize("sources", [lambda kernel: kernel, lambda kernel: {"kernels": [kernel]}], ids=["one", "nested"])
def test_a_tape_refuses_a_tied_kernel_as_a_source(sources):
    kernel = tied_dense().kernel
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(kernel.value)

    with raises_tying_error("'encoder/kernel' in a `GradientTape`"):
        tape.gradient(loss, sources(kernel))


def test_a_tape_watches_a_tied_kernel_no_more_than_a_stock_kernel():
    for variable in (keras.Variable(1.0), tied_dense().kernel):
        with tf.GradientTape() as tape, pytest.raises(ValueError, match="Passed in object"):
            tape.watch(variable)


@pytest.mark.parametrize("place", ["attribute", "list", "dict"])
def test_a_checkpoint_of_a_layer_that_keeps_a_tied_kernel_holds_its_free_weights(place, tmp_path):
    tied = tied_dense()
    decoder = autoencoder(tied, place).get_layer("decoder")
    before = array(theta_of(tied))
    checkpoint = tf.train.Checkpoint(whole=tied, part=decoder)
    file = checkpoint.save(tmp_path / "checkpoint")
    theta_of(tied).assign(0 * before)

    checkpoint.restore(file).assert_existing_objects_matched()

    np.testing.assert_array_equal(array(theta_of(tied)), before)


def test_a_checkpoint_of_nothing_but_the_layer_that_keeps_a_tied_kernel_holds_its_free_weights(tmp_path):
    tied = tied_dense()
    before = array(theta_of(tied))
    checkpoint = tf.train.Checkpoint(autoencoder(tied).get_layer("decoder"))
    file = checkpoint.save(tmp_path / "checkpoint")
    tied.kernel.assign(0 * tied.kernel)

    checkpoint.restore(file).assert_existing_objects_matched()

    np.testing.assert_array_equal(array(theta_of(tied)), before)


@pytest.mark.parametrize("save", [tf.saved_model.save, lambda model, path: model.export(path, verbose=False)])
@pytest.mark.parametrize("place", ["attribute", "list"])
def test_a_saved_model_with_a_layer_that_keeps_a_tied_kernel_computes_the_same(place, save, tmp_path):
    model = autoencoder(tied_dense(), place)
    save(model, str(tmp_path / "saved"))

    outputs = next(iter(tf.saved_model.load(tmp_path / "saved").signatures.values()))(tf.constant(INPUTS))

    np.testing.assert_allclose(next(iter(outputs.values())), array(model(INPUTS)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make_step", [on_tensorflow.inference_step, on_tensorflow.training_step], ids=["inference", "training"]
)
def test_timed_steps_wait_for_accelerators(monkeypatch, make_step):
    waits = []
    monkeypatch.setattr(on_tensorflow, "_accelerators", lambda: "accelerators")
    monkeypatch.setattr(tf.test.experimental, "sync_devices", lambda: waits.append("waited"))

    make_step(tf.square, [tf.ones(3)], False)()

    assert waits == ["waited"]


@pytest.mark.parametrize(("has_onednn", "break_even"), [(False, 2.5), (True, 4.5)], ids=["Eigen", "oneDNN"])
def test_the_rule_depends_on_the_library_that_convolves(monkeypatch, has_onednn, break_even):
    monkeypatch.setattr(on_tensorflow, "threads", lambda: 1)
    monkeypatch.setattr(on_tensorflow._pywrap_util_port, "IsMklEnabled", lambda: has_onednn)

    assert on_tensorflow.break_even_reductions("dense", is_compiled=False)[32] == break_even
    assert on_tensorflow.break_even_reductions("dense", is_compiled=True)[32] == 2.5
