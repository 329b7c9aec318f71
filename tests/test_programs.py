"""How tests are compiled, with and without the private function of JAX that makes them faster."""

import jax
import jax.numpy as jnp
import pytest
from jax._src import compiler

from tests import programs


@pytest.fixture(autouse=True)
def as_users_get_them():
    programs.fast(False)
    yield
    programs.fast(False)


@pytest.mark.skipif(programs.EVERYTHING, reason="every program is compiled as users get it")
@pytest.mark.parametrize("known", [True, False])
def test_least_effort(known, monkeypatch):
    if not known:
        monkeypatch.delattr(compiler, "get_compile_options")
        monkeypatch.setattr(programs, "_options", None)
    original = getattr(compiler, "get_compile_options", None)
    programs.fast(True)
    assert jax.config.read("jax_disable_most_optimizations")
    changed = getattr(compiler, "get_compile_options", None) is not original
    assert changed == (known and bool(programs.quick()))
    if known:  # without it JAX, which calls it, could compile nothing; elsewhere it has another name
        assert jax.jit(jnp.sin)(0.0) == 0
    programs.fast(False)
    assert not jax.config.read("jax_disable_most_optimizations")
    assert getattr(compiler, "get_compile_options", None) is original
