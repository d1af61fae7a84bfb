import sys

import jax
import jax.numpy as jnp
import pytest

from scripts import runtime


def test_precision_is_set_and_put_back():
    with runtime.precision("float32"):
        assert jnp.zeros(()).dtype == jnp.float32
        with runtime.precision("float64"):
            assert jnp.zeros(()).dtype == jnp.float64
        assert jnp.zeros(()).dtype == jnp.float32
    assert jnp.zeros(()).dtype == jnp.float64


def test_provenance_names_versions_and_devices():
    record = runtime.provenance()
    assert all(record["versions"].values())
    assert "cpu" in record["devices"].lower()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how many maps there may be")
def test_compiled_programs_are_dropped_where_they_leave_no_room():
    traced = []

    @jax.jit
    def program(x):
        traced.append(x)
        return 2 * x

    assert float(program(jnp.ones(()))) == 2
    runtime.make_room_for_programs(share=1.0)
    program(jnp.ones(()))
    assert len(traced) == 1
    runtime.make_room_for_programs(share=0.0)
    assert float(program(jnp.ones(()))) == 2
    assert len(traced) == 2


def test_flags_that_are_set_stay_as_they_are():
    flags = runtime.with_fast_compilation("--xla_backend_optimization_level=2 --other")
    words = flags.split()
    assert words[:2] == ["--xla_backend_optimization_level=2", "--other"]
    assert "--xla_llvm_disable_expensive_passes=true" in words
    assert sum("optimization_level" in word for word in words) == 1
    assert runtime.with_fast_compilation(flags) == flags
