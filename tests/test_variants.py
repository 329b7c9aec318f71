"""chex's variants: with and without jit. A class of its own kind of test, which takes no fixture with parameters."""

import chex
import jax.numpy as jnp
import numpy as np

from tests import cases


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_with_and_without_jit(self):
        logits, ids = jnp.array([[1.0, -2.0, 0.5]]), np.array([2])
        for case in cases.SOFTMAX:
            np.testing.assert_allclose(self.variant(case.call)(logits, ids), case.call(logits, ids), rtol=1e-6)
