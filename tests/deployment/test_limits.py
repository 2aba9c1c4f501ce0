"""What Keras cannot export, stock models no more than tied ones. A test that fails here tells that Keras has learned it."""

import re
from pathlib import Path

import keras
import pytest
from families import batch, make
from runtimes import BACKEND, LIMITS, batch_options, export, exported

DOCS = Path(__file__).parents[2] / "docs" / "deployment.md"
HERE = [limit for limit in LIMITS if limit.backend == BACKEND]
with_and_without_tying = pytest.mark.parametrize("variant", ["stock", "values"])


@pytest.mark.usefixtures("int64_constants")
@with_and_without_tying
@pytest.mark.parametrize("limit", HERE, ids=lambda limit: f"{limit.format}-{limit.family}")
def test_keras_fails_with_stock_and_tied_models_alike(limit, variant, tmp_path):
    model = make(limit.family, variant)
    model(batch(model, 1))
    inputs = batch(model, 3)

    with pytest.raises(Exception, match=re.escape(limit.error)):
        exported(model, limit.format, tmp_path, **batch_options(limit.format, inputs))(inputs)


@pytest.mark.parametrize("limit", LIMITS, ids="-".join)
def test_the_docs_quote_the_error(limit):
    assert limit.error in DOCS.read_text(encoding="utf-8")


@with_and_without_tying
def test_onnx_wants_a_model_that_was_called(variant, tmp_path):
    model = keras.models.clone_model(make("planes", "stock")) if variant == "stock" else make("planes", variant)

    with pytest.raises(ValueError, match="The model provided has never called"):
        export(model, "onnx", tmp_path)
