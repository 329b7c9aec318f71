"""Classes that do not divide over a mesh, and functions of the logits: one device's numbers, or an error."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxloss

ROWS, WIDTH = 6, 3
CE = jaxloss.softmax_cross_entropy
LOSSES = {
    "cross-entropy": (partial(CE, label_smoothing=0.1, z_loss=1e-2), "ids"),
    "cross-entropy, soft": (partial(CE, label_smoothing=0.1), "soft"),
    "cross-entropy, one-hot integers": (CE, "one-hot"),
    "focal": (partial(jaxloss.softmax_focal_loss, gamma=1.5, label_smoothing=0.1), "soft"),
    "generalized": (jaxloss.generalized_cross_entropy, "soft"),
    "divergence": (partial(jaxloss.softmax_kl_divergence, temperature=2.0), "logits"),
    "jensen-shannon": (jaxloss.softmax_js_divergence, "logits"),
    "sparsemax": (jaxloss.multiclass_sparsemax_loss, "soft"),
    "entmax": (jaxloss.entmax_loss, "ids"),
}


def mesh():
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def close(got, expected, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), got, expected)


def labels_of(kind, rng, size):
    ids = rng.integers(0, size, ROWS).astype(np.int32)
    return {
        "ids": ids,
        "one-hot": np.eye(size, dtype=np.int32)[ids],
        "soft": rng.dirichlet(np.ones(size), ROWS).astype(np.float32),
        "logits": (rng.normal(size=(ROWS, size)) + 2).astype(np.float32),
    }[kind]


def cap(z):
    return 2 * jnp.tanh(z / 2)


@pytest.mark.parametrize(
    ("logits_fn", "size", "names"),
    [(None, 3, LOSSES), (cap, 6, ("cross-entropy", "divergence"))],
    ids=["plain", "capped"],
)
def test_every_loss_is_that_of_one_device(logits_fn, size, names, rng):
    """With 3 classes a device has none but a class added. A cap comes before all that the losses do differently."""
    hidden = (rng.normal(size=(ROWS, WIDTH)) - 2).astype(np.float32)
    kernel = (rng.normal(size=(WIDTH, size)) + 1).astype(np.float32)
    losses = {name: LOSSES[name] for name in names}
    labels = {name: labels_of(kind, rng, size) for name, (_, kind) in losses.items()}

    def whole(hidden, kernel):
        z = hidden @ kernel
        z = z if logits_fn is None else logits_fn(z)
        found = {name: loss(z, labels[name]) for name, (loss, _) in losses.items()}
        return {name: (jnp.sum(x), x) for name, x in found.items()}

    def split(hidden, kernel):
        found = {}
        for name, (loss, kind) in losses.items():
            spec = P("data") if kind == "ids" else P("data", "model")
            arguments = (partial(loss, axis_name="model"), hidden, kernel, labels[name])
            rest = {"batch_spec": "data", "axis_name": "model", "logits_fn": logits_fn}
            total = jaxloss.linear_loss(*arguments, labels_spec=spec, **rest).total
            found[name] = (total, jaxloss.map_linear_logits(*arguments, rows_spec=(spec,), **rest))
        return found

    def run(function):
        def scalar(hidden, kernel):
            found = function(hidden, kernel)
            return sum(total for total, _ in found.values()), found

        return jax.jit(jax.grad(scalar, (0, 1), has_aux=True))(hidden, kernel)

    with jax.set_mesh(mesh()):
        gradients, values = run(split)
    expected_gradients, expected = run(whole)
    close(values, expected)
    close(gradients, expected_gradients, atol=1e-4)  # sums of twenty of about 10 each


def cross_entropy_of_a_cap(z, y):
    return CE(cap(z), y, axis_name="model")


def test_a_function_that_is_not_known_is_refused(rng):
    """Of the issue: 4 devices, 5 classes, a cap inside the loss, 2.0757 for log 5."""
    hidden, kernel = np.full((2, 2), -3, np.float32), np.ones((2, 5), np.float32)
    ids = np.array([0, 4], np.int32)
    names = {"axis_name": "model"}
    sharded = partial(CE, axis_name="model")

    def own(z, y):
        return sharded(z, y)

    teacher = (rng.normal(size=(2, 5)) + 3).astype(np.float32)
    by_args = {"loss_args": (teacher,), "loss_args_spec": (P(None, "model"),)}

    def distilled(z, y, teacher):
        return jaxloss.softmax_kl_divergence(z, teacher, axis_name="model")

    with jax.set_mesh(mesh()):
        for linear in (jaxloss.linear_loss, jaxloss.map_linear_logits):
            for function in (cross_entropy_of_a_cap, own, partial(own), partial(CE, hidden)):
                with pytest.raises(ValueError, match=r"(?s)must be a function of jaxloss.*class_fill=0.*logits_fn"):
                    linear(function, hidden, kernel, ids, **names)
            found = jax.jit(partial(linear, own, logits_fn=cap, class_fill=0, **names))(hidden, kernel, ids)
            close(np.sum(jax.tree.leaves(found)[0]), 2 * np.log(5))
        one_hot = np.eye(5, dtype=np.int32)[:2]
        with pytest.raises(ValueError, match=r"`class_fill` must be 0 for `labels` int32"):
            jaxloss.linear_loss(sharded, hidden, kernel, one_hot, labels_spec=P(None, "model"), class_fill=1, **names)
        with pytest.raises(TypeError, match=r"`class_fill` must be a number, or None; got '0'"):
            jaxloss.linear_loss(sharded, hidden, kernel, ids, class_fill="0", **names)
        with pytest.raises(ValueError, match=r"`loss_args` float32\[2,5\] must be filled up with classes"):
            jaxloss.linear_loss(sharded, hidden, kernel, ids, **by_args, **names)
        filled = partial(jaxloss.linear_loss, distilled, class_fill=-jnp.inf, **by_args, **names)
        total = jax.jit(lambda *x: filled(*x).total)(hidden, kernel, ids)
    close(total, np.sum(jaxloss.softmax_kl_divergence(hidden @ kernel, teacher)))


def test_an_id_of_a_class_added_is_out_of_range(rng):
    hidden, kernel = np.ones((4, 2), np.float32), np.ones((2, 5), np.float32)
    where = np.array([True, True, True, False])
    sharded = partial(CE, axis_name="model")

    @jax.jit
    def both(ids):
        total = jaxloss.linear_loss(sharded, hidden, kernel, ids, where=where, axis_name="model").total
        return total, jaxloss.map_linear_logits(sharded, hidden, kernel, ids, axis_name="model")

    with jax.set_mesh(mesh()):
        for bad in (5, 7, 8, -1):
            total, losses = both(np.array([0, bad, 4, 0], np.int32))
            assert np.isnan(total)
            np.testing.assert_array_equal(np.isnan(losses), [False, True, False, False])
            assert np.isfinite(both(np.array([0, 1, 4, bad], np.int32))[0])


def test_classes_left_out_stay_so_after_a_function_of_the_logits(rng):
    """By the bias, on one device too; the function's own derivative is finite."""
    hidden = jnp.asarray(rng.normal(size=(ROWS, WIDTH)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(WIDTH, 5)), jnp.float32)
    bias = jnp.array([0.5, -jnp.inf, 0.0, 1.0, -jnp.inf])
    exists, ids = bias > -jnp.inf, jnp.asarray(rng.choice([0, 2, 3], ROWS), jnp.int32)

    def chunked(hidden, kernel, temperature):
        def heated(z):
            return temperature * jnp.tanh(z / temperature)

        arguments = (CE, hidden, kernel, ids)
        rest = {"bias": bias, "logits_fn": heated, "chunk_rows": 2}
        return jaxloss.linear_loss(*arguments, **rest).total + jnp.sum(jaxloss.map_linear_logits(*arguments, **rest))

    def whole(hidden, kernel, temperature):
        z = (hidden @ kernel + bias[None])[:, exists]
        return 2 * jnp.sum(CE(temperature * jnp.tanh(z / temperature), jnp.cumsum(exists)[ids] - 1))

    x = (hidden, kernel, jnp.float32(1.5))
    close(*(jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*x) for f in (chunked, whole)))


def test_errors_of_a_function_of_the_logits():
    arguments = (CE, jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.array([0, 1]))
    for linear in (jaxloss.linear_loss, jaxloss.map_linear_logits):
        with pytest.raises(TypeError, match=r"`logits_fn` must be a function of logits; got float"):
            linear(*arguments, logits_fn=2.0)
        for wrong in (lambda z: z[:, 0], lambda z: z > 0, lambda z: 1.0):
            with pytest.raises(ValueError, match=r"`logits_fn` must return logits of the shape of those given"):
                linear(*arguments, logits_fn=wrong)
