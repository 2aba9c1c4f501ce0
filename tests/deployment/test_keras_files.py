"""What a backend cannot export, TensorFlow exports from the `.keras` file of the stripped model."""

import os
import subprocess
import sys
import textwrap

from families import assert_computes, make
from runtimes import BACKEND, FORMATS

EXPORT = """
    import sys

    import keras

    model = keras.saving.load_model(sys.argv[1])
    model.export(sys.argv[2], format=sys.argv[3], verbose=False)
    assert "kernel_tying" not in sys.modules
"""


def test_the_keras_file_of_a_stripped_model_exports_on_tensorflow(tmp_path):
    format = {"jax": "litert", "torch": "tf_saved_model"}[BACKEND]
    source, target = tmp_path / "stripped.keras", tmp_path / FORMATS[format].file
    make("planes", "stripped").save(source)

    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXPORT), source, target, format],
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        check=True,
    )

    assert_computes(FORMATS[format].load(target), "planes", rows=(1, 3))
