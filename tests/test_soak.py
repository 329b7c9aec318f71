"""The short form of `python -m tests.soak`."""

import jax.numpy as jnp
import pytest

from tests import soak


@pytest.mark.parametrize(("model", "dtype"), [("classifier", jnp.bfloat16), ("last layer", jnp.float32)])
@pytest.mark.usefixtures("standard_promotion")
def test_a_long_run_in_short(model, dtype):
    assert soak.problems(model, dtype, 100)[0] == []
