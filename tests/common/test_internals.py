"""Private names of JAX: there, or one message that names them."""

import subprocess
import sys

import jax
import pytest

from common import internals


def test_devices_are_not_started_by_asking():
    code = "from common import internals; print(internals.backends_are_initialized())"
    code += "; import jax; jax.devices(); print(internals.backends_are_initialized())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "True"]


def test_one_process_has_no_client_and_the_coordinator_is_left_as_it_was():
    assert internals.coordination().client is None
    runtime = sys.modules["jax._src.distributed"]._jax
    before = runtime.get_distributed_runtime_service
    with internals.registration_timeout(7):
        assert runtime.get_distributed_runtime_service.keywords == {"cluster_register_timeout": 7}
    assert runtime.get_distributed_runtime_service is before


@pytest.mark.parametrize(
    ("missing", "use"),
    [
        (("jax._src.xla_bridge", "backends_are_initialized"), internals.backends_are_initialized),
        (("jax._src.distributed", "global_state"), internals.coordination),
        (
            ("jax._src.clusters", "ClusterEnv"),
            lambda: internals.detect_cluster(None, None, None, 1),
        ),
        (("jax._src.distributed", "_jax"), lambda: internals.registration_timeout(1).__enter__()),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_name_that_moved_is_named(monkeypatch, missing, use):
    module, name = missing
    monkeypatch.delattr(sys.modules[module], name)
    with pytest.raises(ImportError, match=rf"jax {jax.__version__} has no {module}.{name}.*allows"):
        use()
