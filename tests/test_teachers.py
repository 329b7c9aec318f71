"""`TopK` labels: k classes in each row and, with `tail`, all others as one event."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import TopK
from tests import oracle

CE, KL, JS = jaxloss.softmax_cross_entropy, jaxloss.softmax_kl_divergence, jaxloss.softmax_js_divergence
ROWS, SIZE, K = 6, 8, 3
OF_P = {  # by plain formulas of p and t of the events
    "cross-entropy": (CE, lambda p, t, log: -t * log(p)),
    "focal": (partial(jaxloss.softmax_focal_loss, gamma=2.0), lambda p, t, log: -t * (1 - p) ** 2 * log(p)),
    "forward": (KL, lambda p, t, log: t * (log(t) - log(p))),
    "reverse": (partial(KL, direction="reverse"), lambda p, t, log: p * (log(p) - log(t))),
    "mixed": (partial(JS, weight=0.25), None),
}


def teacher(rng, scale=2.0, rows=ROWS, size=SIZE, k=K, tail=False):
    """Logits of a student near the teacher's in the first rows, and the labels."""
    u = rng.normal(size=(rows, size)) * scale
    z = u + rng.normal(size=(rows, size)) * np.logspace(-2, 0.5, rows)[:, None]
    ids = np.argsort(-u, -1)[:, :k]
    p = np.exp(u) / np.exp(u).sum(-1, keepdims=True)
    return z.astype(np.float32), TopK(ids.astype(np.int32), np.take_along_axis(p, ids, -1).astype(np.float32), tail)


def spread_out(labels: TopK, size: int) -> np.ndarray:
    found = np.zeros((len(labels.ids), size), np.float32)
    np.put_along_axis(found, np.asarray(labels.ids), np.asarray(labels.probabilities, np.float32), -1)
    return found


def close(got, expected, tolerance=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance / 10), got, expected)


def compiled(losses):
    """Values and gradients of several losses of the same arguments, in one program."""
    return jax.jit(lambda z, y: {name: jaxloss.per_example_value_and_grad(f)(z, y) for name, f in losses.items()})


@pytest.mark.parametrize("tail", [False, True])
def test_against_the_oracle(tail, rng):
    losses = {name: loss for name, (loss, _) in OF_P.items() if tail or name != "reverse"}
    run = compiled(losses)
    for scale in (2, 12):
        z, labels = teacher(rng, scale, tail=tail)
        z[1, next(c for c in range(SIZE) if c not in labels.ids[1])] = -np.inf
        for name, (values, gradients) in run(z, labels).items():
            for i in range(ROWS):
                value, gradient = oracle.events_row(name, z[i], labels.ids[i], labels.probabilities[i], tail)
                expected = np.array(gradient, float)
                # Where student and teacher agree, the probabilities' own rounding is left.
                np.testing.assert_allclose(values[i], float(value), rtol=2e-6, atol=1e-7, err_msg=f"{name} {i}")
                if np.isinf(values[i]):
                    continue
                np.testing.assert_allclose(gradients[i], expected, rtol=1e-5, atol=3e-7, err_msg=f"{name} {i}")


def naive(name, z, ids, t, tail):
    """In plain JAX, for derivatives of a second order."""
    p = jax.nn.softmax(z)
    at_ids, rest = p[ids], 1 - jnp.sum(p[ids])
    p, t = (jnp.append(at_ids, rest), jnp.append(t, 1 - jnp.sum(t))) if tail else (at_ids, t)
    if name == "mixed":
        m = 0.25 * t + 0.75 * p
        outside = 0 if tail else -0.75 * rest * jnp.log(0.75)
        return jnp.sum(0.25 * t * jnp.log(t / m) + 0.75 * p * jnp.log(p / m)) + outside
    return jnp.sum(OF_P[name][1](p, t, jnp.log))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("tail", [False, True])
def test_derivatives_of_both_arguments_and_orders(tail, rng):
    z, labels = teacher(rng, rows=1, tail=tail)
    z, ids, t = z[0].astype(np.float64), labels.ids[0], labels.probabilities[0].astype(np.float64)
    directions = rng.normal(size=SIZE), rng.normal(size=K)
    names = [name for name in OF_P if tail or name != "reverse"]

    def ours(z, t):
        return jnp.stack([OF_P[name][0](z, TopK(ids, t, tail)) for name in names])

    def plain(z, t):
        return jnp.stack([naive(name, z, ids, t, tail) for name in names])

    def derivatives(function):
        """Of the chosen loss: value and gradients, and how they change along a direction."""

        def chosen(share, *x):
            return jax.jvp(jax.value_and_grad(lambda *x: share @ function(*x), (0, 1)), x, directions)

        return jax.jit(chosen)

    mine, expected = map(derivatives, (ours, plain))
    for share in np.eye(len(names)):
        close(mine(share, z, t), expected(share, z, t), 1e-9)


def test_hessian_diagonals(rng):
    z, labels = teacher(rng, tail=True)
    weighted = partial(CE, class_weights=2.0, label_smoothing=0.1, z_loss=0.01)
    bare = TopK(labels.ids, labels.probabilities)
    some = ((weighted, labels), (partial(KL, temperature=2.0), labels), (OF_P["focal"][0], bare))

    def both(z):
        for loss, given in some:
            full = jax.vmap(jax.hessian(loss))(z, given)
            yield jaxloss.per_example_value_grad_hess(loss)(z, given)[2], jnp.diagonal(full, axis1=1, axis2=2)

    for found, expected in jax.jit(lambda z: list(both(z)))(z):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    for loss, key in ((JS, "target_logits"), (OF_P["reverse"][0], "target_logits"), (OF_P["focal"][0], "labels")):
        with pytest.raises(TypeError, match=f"`{key}` of softmax_.* must be arrays; got TopK"):
            jaxloss.per_example_value_grad_hess(loss)(z, labels)


def test_every_class_listed_is_the_whole_distribution(rng):
    """In any order, with and without a tail, which is then nothing."""
    z, labels = teacher(rng, k=SIZE)
    losses = {
        "forward": KL,
        "reverse": partial(KL, direction="reverse"),
        "mixed": partial(JS, weight=0.3),
        "cross-entropy": CE,
    }
    t = spread_out(labels, SIZE)
    of_logits = {
        name: loss if loss is CE else lambda z, t, loss=loss: loss(z, jnp.log(t)) for name, loss in losses.items()
    }
    expected, run = compiled(of_logits)(z, t), compiled(losses)
    order = rng.permutation(SIZE)
    for tail in (False, True):
        close(run(z, TopK(labels.ids[:, order], labels.probabilities[:, order], tail)), expected, 3e-6)


def test_a_distribution_of_few_classes(rng):
    """Options, masks of rows and of classes, entries of probability 0 and any class axis, as of the distribution."""
    z, labels = teacher(rng)
    dense, weights = spread_out(labels, SIZE), np.arange(1, 1 + SIZE, dtype=np.float32) / 4
    rows, classes = np.arange(ROWS) != 2, rng.random((ROWS, SIZE)) < 0.7
    losses = {
        "options": partial(CE, class_weights=weights, label_smoothing=0.1, z_loss=0.01),
        "poly": partial(jaxloss.poly_loss_cross_entropy, epsilon=weights, label_smoothing=0.2),
        "generalized": partial(jaxloss.generalized_cross_entropy, where=classes),
        "classes": partial(jaxloss.softmax_cross_entropy_with_integer_labels, where=classes, label_smoothing=0.1),
        "rows": partial(CE, where=rows),
        "smoothing 1": partial(CE, label_smoothing=jnp.ones(())),
    }
    expected, run = compiled(losses)(z, dense), compiled(losses)
    close(run(z, labels), expected)
    filled = TopK(
        np.pad(labels.ids, ((0, 0), (0, 2)), constant_values=-100), np.pad(labels.probabilities, ((0, 0), (0, 2)))
    )
    close(run(z, filled), expected)
    spoiled = TopK(np.where(rows[:, None], labels.ids, 99), np.where(rows[:, None], labels.probabilities, np.nan))
    jax.tree.map(np.testing.assert_array_equal, run(z, spoiled)["rows"], run(z, labels)["rows"])
    half = z.astype(jnp.bfloat16)
    low = TopK(labels.ids.astype(np.uint8), labels.probabilities.astype(jnp.bfloat16))

    @jax.jit
    def others():
        found = {
            "masked": jaxloss.masked_loss(CE, z, spoiled, rows).mean(),
            "axis": CE(z.T, labels, axis=0),
            "axes": CE(z.reshape(ROWS, 2, SIZE // 2), labels, axis=(1, 2)),
        }
        same = {"masked": jaxloss.masked_loss(CE, z, dense, rows).mean(), "axis": CE(z, dense), "axes": CE(z, dense)}
        of_low = jaxloss.per_example_value_and_grad(CE)(half, low), CE(half.astype(np.float32), spread_out(low, SIZE))
        return (found, same), of_low

    pair, ((value, gradient), expected) = others()
    close(*pair)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    close(value, expected)


def test_wrong_ids_spoil_their_row_alone(rng):
    z, labels = teacher(rng, tail=True)
    ids = labels.ids.copy()
    ids[1, 0], ids[3, 2], ids[4, 1] = SIZE, -1, ids[4, 0]
    bad = TopK(ids, labels.probabilities, True)
    spoiled = np.isin(np.arange(ROWS), [1, 3, 4])
    losses = {"cross-entropy": partial(CE, label_smoothing=0.1), "mixed": JS}
    run = compiled(losses)
    for (values, gradients), (good, good_gradients) in zip(run(z, bad).values(), run(z, labels).values(), strict=True):
        np.testing.assert_array_equal(values, np.where(spoiled, np.nan, good))
        np.testing.assert_array_equal(gradients, np.where(spoiled[:, None], np.nan, good_gradients))
    check = jax.jit(checkify.checkify(lambda y: CE(z, y), errors=checkify.user_checks))
    for i, j, given, message in (
        (1, 0, SIZE, r"softmax_cross_entropy: `labels` must be class ids in \[0, 8\).*got 8"),
        (4, 1, int(labels.ids[4, 0]), rf"`labels` must name each class once in a row; got {labels.ids[4, 0]} twice"),
    ):
        ids = labels.ids.copy()
        ids[i, j] = given
        with pytest.raises(Exception, match=message):
            check(TopK(ids, labels.probabilities, True))[0].throw()
    with pytest.raises(Exception, match="add up to 1 at the most where tail=True"):
        check(TopK(labels.ids, labels.probabilities + 0.5, True))[0].throw()
    check(labels)[0].throw()


def test_classes_without_probability(rng):
    """A class listed, or all others, at -inf: +inf where a share has nowhere to go, no NaN in a gradient."""
    z = np.array([[0, 1, 2, 3], [-np.inf, 1, 2, 3], [0, 1, -np.inf, -np.inf], [-np.inf, -np.inf, 1, 2]], np.float32)
    labels = TopK(np.tile(np.int32([[0, 1]]), (4, 1)), np.full((4, 2), 0.25, np.float32), tail=True)
    losses = {"cross-entropy": CE, "forward": KL, "reverse": partial(KL, direction="reverse"), "mixed": JS}
    with jax.debug_nans(True):
        found = compiled(losses)(z, labels)
    for name in ("cross-entropy", "forward"):
        np.testing.assert_array_equal(np.isinf(found[name][0]), [False, True, True, True])
    for name in ("reverse", "mixed"):
        assert np.isfinite(found[name][0]).all()
    for values, gradients in found.values():
        assert np.isfinite(gradients).all()
        impossible = (z == -np.inf) & np.isfinite(values)[:, None]
        np.testing.assert_array_equal(np.where(impossible, gradients, 0), np.zeros_like(z))


HEAD = {
    "cross-entropy": (CE, False),
    "options": (partial(CE, label_smoothing=0.1, z_loss=1e-2), True),
    "forward": (partial(KL, temperature=2.0), True),
    "mixed": (JS, False),
}


def test_a_linear_layer_on_any_mesh(rng):
    """Chunks, rows left out, classes that do not divide over the devices."""
    size, rows = 9, 8
    hidden, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, 5), (5, size)))
    where = np.arange(rows) != 3
    labels = {}
    for tail in (False, True):
        drawn = teacher(rng, rows=rows, size=size)[1]
        labels[tail] = TopK(np.where(where[:, None], drawn.ids, 77), drawn.probabilities, tail)

    def run(names, function):
        """The sums of the losses, and the gradient of what these add up to."""

        def total(*layer):
            found = {name: function(HEAD[name][0], *layer, labels[HEAD[name][1]]) for name in names}
            return sum(found.values()), found

        return jax.jit(jax.grad(total, (0, 1), has_aux=True))(hidden, kernel)

    def dense(loss, hidden, kernel, labels):
        return jnp.sum(loss(hidden @ kernel, labels, where=where))

    def linear(loss, hidden, kernel, labels, axis_name=None, **options):
        loss = partial(loss, axis_name=axis_name)
        options |= {"where": where, "axis_name": axis_name}
        return jaxloss.linear_loss(loss, hidden, kernel, labels, **options).total

    few = ("cross-entropy", "mixed")
    close(run(few, partial(linear, chunk_rows=3)), run(few, dense), 1e-4)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        found = run(HEAD, partial(linear, axis_name="model", batch_spec="data", chunk_rows=2))
    close(found, run(HEAD, dense), 1e-4)


def test_explicit_meshes(rng):
    z, labels = teacher(rng, rows=8, tail=True)
    losses = {"cross-entropy": partial(CE, class_weights=2.0), "mixed": JS}
    run = compiled(losses)
    expected = run(z, labels)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4])
    for spec in (P("data", "model"), P("data", None)):
        given = jax.device_put(z, NamedSharding(mesh, spec))
        placed = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P("data"))), labels)
        close(run(given, placed), expected)


def test_memory_of_a_large_vocabulary():
    """64 of 16384 classes hold what ids hold: no array of the size of the logits is made of labels."""
    rows, width, size, k = 512, 256, 16384, 64
    like = jax.ShapeDtypeStruct
    hidden, kernel = like((rows, width), jnp.float32), like((width, size), jnp.float32)
    top = TopK(like((rows, k), jnp.int32), like((rows, k), jnp.float32), tail=True)

    def temporary(loss, labels):
        def total(hidden, kernel, labels):
            return jaxloss.linear_loss(loss, hidden, kernel, labels, chunk_rows=64).mean()

        program = jax.jit(jax.value_and_grad(total, (0, 1))).lower(hidden, kernel, labels)
        return program.compile().memory_analysis().temp_size_in_bytes

    by_ids = temporary(CE, like((rows,), jnp.int32))
    for loss in (CE, JS):
        assert temporary(loss, top) < by_ids + 4 * 64 * k * 4, loss


MISUSES = {
    "reverse without a tail": (
        lambda z, y: KL(z, y, direction="reverse"),
        r"`target_logits` must be TopK with tail=True in the reverse direction",
    ),
    "another loss": (
        lambda z, y: jaxloss.entmax_loss(z, y),
        r"entmax_loss: `labels` must be an array; got TopK, which is for softmax_cross_entropy, ",
    ),
    "binary": (
        lambda z, y: jaxloss.sigmoid_focal_loss(z, y),
        r"sigmoid_focal_loss: `labels` must be an array; got TopK",
    ),
    "exchanged": (
        lambda z, y: CE(z, TopK(y.probabilities, y.ids)),
        r"must be TopK of integer ids and float.*The order is TopK\(ids, probabilities\)",
    ),
    "of other rows": (lambda z, y: CE(z[:2], y), r"of shape \(2, k\); got int32\[6,3\] and float32\[6,3\]"),
    "too many": (lambda z, y: CE(z[:, :2], y), r"2, the number of classes, at the most"),
    "weights of a tail": (
        lambda z, y: CE(z, TopK(y.ids, y.probabilities, True), class_weights=jnp.ones(SIZE)),
        r"`class_weights` must be a scalar for TopK labels with tail=True",
    ),
    "tail": (lambda z, y: CE(z, TopK(y.ids, y.probabilities, 0.5)), r"`tail` of TopK must be True or False; got 0.5"),
    "nothing": (lambda z, y: CE(z, TopK(y.ids, None)), r"cross_entropy: `probabilities` must be an array; got None"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse(name, rng):
    call, message = MISUSES[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call(*teacher(rng))
