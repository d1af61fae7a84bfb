import jax.numpy as jnp

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
