import keras
import pytest

collect_ignore = {
    "tensorflow": ["test_limits_torch.py", "test_keras_files.py"],
    "jax": ["test_limits_torch.py"],
    "torch": [],
}[keras.backend.backend()]


@pytest.fixture
def int64_constants():
    """Lets litert-torch have constants of int64 in more than the first export of a process: `test_limits.py` says why."""
    if keras.backend.backend() != "torch":
        yield
        return
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
