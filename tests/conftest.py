import importlib
import os

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

ONE_BACKEND_ALONE = {f"test_{name}.py" for name in ("tensorflow", "jax", "torch")}
collect_ignore = sorted(ONE_BACKEND_ALONE - {f"test_{keras.backend.backend()}.py"})

SUPPRESSED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
EXAMPLES = 5 if keras.backend.backend() == "jax" else 15  # JAX compiles each operation anew for each shape
settings.register_profile("dev", max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=SUPPRESSED)
settings.register_profile("thorough", max_examples=300, deadline=None, suppress_health_check=SUPPRESSED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_collection_modifyitems(items):
    """Runs the facts about Keras first: where one fails, it tells why others do."""
    items.sort(key=lambda item: item.path.name != "test_keras_private.py")


@pytest.fixture
def double_precision():
    """Lets the backend compute in float64: JAX does so on request alone."""
    with importlib.import_module(f"backends.{keras.backend.backend()}").double_precision():
        yield
