import os

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from support import backends

ONE_BACKEND_ALONE = {f"test_{name}.py" for name in ("tensorflow", "jax", "torch")}
collect_ignore = sorted(ONE_BACKEND_ALONE - {f"test_{keras.backend.backend()}.py"})

SUPPRESSED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
EXAMPLES = {"jax": 5, "tensorflow": 8}.get(keras.backend.backend(), 15)  # both compile or trace again for each shape
settings.register_profile("dev", max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=SUPPRESSED)
# For versions of dependencies: which names they have depends on few of the values.
settings.register_profile("brief", settings.get_profile("dev"), max_examples=2)
settings.register_profile("thorough", max_examples=300, deadline=None, suppress_health_check=SUPPRESSED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_collection_modifyitems(items):
    """Runs the facts about Keras first: where one fails, it tells why others do."""
    items.sort(key=lambda item: item.path.parent.name != "keras_private")


@pytest.fixture(autouse=True)
def _seeded():
    """Seeds what layers draw: whether a test passes is no matter of luck."""
    keras.utils.set_random_seed(0)


@pytest.fixture
def double_precision():
    """Lets the backend compute in float64: JAX does so on request alone."""
    with backends.double_precision():
        yield
