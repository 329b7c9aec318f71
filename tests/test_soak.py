"""The short form of `python -m tests.soak`."""

import jax.numpy as jnp
import pytest

from tests import soak


@pytest.mark.parametrize("model", soak.MODELS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.usefixtures("standard_promotion")
def test_a_long_run_in_short(model, dtype):
    assert soak.problems(model, dtype, 150)[0] == []
