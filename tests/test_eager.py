"""Losses where nothing is compiled, as when a program is debugged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from tests import cases


@cases.all_cases
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_valid_input_is_clean_under_debug_nans(case, kind, rng):
    """No constant NaN is formed; an id outside is found there, by the loss that is NaN."""
    z, t = cases.logits_for(case, rng), cases.labels_for(case, rng, kind)
    expected = case.run(z, t)
    with jax.debug_nans(True), jax.disable_jit():
        got = jaxloss.per_example_value_and_grad(case.call)(z, t)
        if kind == "ids":
            outside = np.array(t)
            outside[0] = -7
            with pytest.raises(FloatingPointError):
                case.call(z, outside)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=64 * 2.0**-23, atol=2.0**-22), got, expected)


def test_other_functions_are_clean_too(rng):
    z, ids = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), jnp.array([0, 1, 2, 0])
    relevant = ids[:, None] == jnp.arange(3)[None]
    with jax.debug_nans(True), jax.disable_jit():
        for found in (
            jaxloss.softmax_statistics(z, ids),
            jaxloss.per_example_value_grad_hess(jaxloss.softmax_focal_loss)(z, ids),
            jaxloss.metrics.zero_one_loss(ids.astype(jnp.float32), ids.astype(jnp.float32), axis=None),
            jaxloss.metrics.label_ranking_loss(z, relevant),
            jaxloss.linear_loss(jaxloss.softmax_cross_entropy, z, jnp.eye(3), ids),
        ):
            assert not any(np.isnan(x).any() for x in jax.tree.leaves(found))
