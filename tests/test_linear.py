"""Losses of a linear layer in chunks: the same numbers as from all logits, in three products and little memory."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.experimental import checkify

import jaxloss
from tests import cases, jaxprs, oracle

ROWS, WIDTH, SIZE = 21, 6, 11
CHUNKS = [1, 5, 7, ROWS, 100]
CE = jaxloss.softmax_cross_entropy


def close(got, expected, rtol=64 * 2.0**-23, atol=2.0**-21):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, expected)


def layer(rng, batch=(ROWS,), dtype=jnp.float32):
    hidden = rng.normal(size=(*batch, WIDTH)).astype(dtype)
    kernel = rng.normal(size=(WIDTH, SIZE)).astype(dtype)
    return jnp.asarray(hidden), jnp.asarray(kernel), jnp.asarray(rng.normal(size=SIZE).astype(np.float32))


def ids_for(rng, batch=(ROWS,)):
    return jnp.asarray(rng.integers(0, SIZE, batch).astype(np.int32))


def options(rng, batch=(ROWS,)):
    where = jnp.asarray(rng.uniform(size=batch) < 0.7)
    return {"where": where, "weights": jnp.asarray(rng.uniform(0.5, 2, size=batch).astype(np.float32))}


def dense(loss, hidden, kernel, labels, bias=None, where=None, weights=None):
    """What `linear_loss` must equal: the same from all logits."""
    logits = hidden @ kernel if bias is None else hidden @ kernel + bias[None, :]
    return jaxloss.LossSum.of(loss(logits, labels), where, weights)


@pytest.mark.parametrize("kind", ["ids", "soft"])
@cases.parametrize(cases.distinct(cases.SOFTMAX))
def test_value_and_gradients_are_those_of_all_logits(case, kind, rng):
    hidden, kernel, bias = layer(rng)
    labels, rest = cases.labels_for(case, rng, kind, ROWS, SIZE), options(rng)
    loss = partial(case.call, label_smoothing=0.1, z_loss=0.01)

    def chunked(h, k, b, chunk):
        return jaxloss.linear_loss(loss, h, k, labels, bias=b, chunk_rows=chunk, **rest).mean()

    def whole(h, k, b):
        return dense(loss, h, k, labels, b, **rest).mean()

    chunks = CHUNKS if case is cases.SOFTMAX[0] else [5]  # chunks are the same for every loss
    functions = [whole, *(partial(chunked, chunk=chunk) for chunk in chunks)]
    expected, *found = jax.jit(lambda *x: [jax.value_and_grad(f, (0, 1, 2))(*x) for f in functions])(
        hidden, kernel, bias
    )
    for got in found:
        close(got, expected)


@cases.parametrize(cases.distinct(cases.SIGMOID))
def test_multi_label_losses(case, rng):
    hidden, kernel, _ = layer(rng)
    labels = cases.labels_for(case, rng, "multihot", ROWS, SIZE)

    def loss(logits, labels):
        return jnp.sum(case.call(logits, labels), -1)

    def chunked(h, k):
        return jaxloss.linear_loss(loss, h, k, labels, chunk_rows=4).total

    def whole(h, k):
        return dense(loss, h, k, labels).total

    close(*jax.jit(lambda *x: [jax.value_and_grad(f, (0, 1))(*x) for f in (chunked, whole)])(hidden, kernel))


@pytest.mark.parametrize("chunk", [4, 100])
def test_batch_axes_and_a_tied_table(chunk, rng):
    hidden, kernel, _ = layer(rng, (2, 3, 4))
    ids, rest = ids_for(rng, (2, 3, 4)), options(rng, (2, 3, 4))

    def chunked(h, k, axis):
        return jaxloss.linear_loss(CE, h, k, ids, axis=axis, chunk_rows=chunk, **rest)

    @jax.jit
    def run(h, k, table):
        sums = [chunked(h, k, -1), chunked(h, table, 0), dense(CE, h, k, ids, **rest)]
        by_kernel = jax.grad(lambda k: chunked(h, k, 1).mean())(k)
        return sums, by_kernel, jax.grad(lambda k: chunked(h, k, -2).mean())(table)

    (by_column, by_row, expected), by_kernel, by_table = run(hidden, kernel, kernel.T)
    close(by_column, expected)
    close(by_row, expected)
    close(by_table.T, by_kernel)
    # A table is not turned around: no [H, C] array but its gradient is in the program.
    text = jax.jit(lambda k: chunked(hidden, k, 0).total).lower(kernel.T).as_text()
    assert "transpose" not in text


def test_bfloat16_factors(rng):
    """marin#8217, Liger#1329, tokamax: logits in float32, label gradient formed before it is rounded, once."""
    rows, width, size = 96, 16, 301

    @jax.jit
    def chunked(hidden, kernel, ids):
        def total(h, k):
            return jaxloss.linear_loss(CE, h, k, ids, chunk_rows=20).total

        return jax.value_and_grad(total, (0, 1))(hidden, kernel)

    for scale in (5, 20, 80, 640):
        hidden = rng.normal(size=(rows, width)).astype(jnp.bfloat16)
        kernel = (rng.normal(size=(width, size)) * scale / 4).astype(jnp.bfloat16)
        h, k = (x.astype(np.float64) for x in (hidden, kernel))
        ids = np.argmax(h @ k, 1).astype(np.int32)
        ids[::3] = rng.integers(0, size, len(ids[::3]))
        value, (by_hidden, by_kernel) = chunked(hidden, kernel, ids)
        exact, *exact_gradients, dz = oracle.linear_cross_entropy(h, k, ids, np.ones(rows))
        np.testing.assert_allclose(value, exact, rtol=1e-6)
        assert by_hidden.dtype == by_kernel.dtype == jnp.bfloat16
        # Rounding to nearest in bfloat16 is within 2^-8: of dz, which moves a gradient by 2^-8 sum |dz| |factor|, and
        # of the gradient itself. Roundings of the float32 sums are far smaller; what float32 cannot hold is 0.
        sizes = (np.abs(dz) @ np.abs(k).T, np.abs(h).T @ np.abs(dz))
        for got, expected, size_of in zip((by_hidden, by_kernel), exact_gradients, sizes, strict=True):
            bound = 2.0**-8 * (np.abs(expected) + size_of) * (1 + 2.0**-8) + 2.0**-100
            assert np.all(np.abs(np.asarray(got, np.float64) - expected) <= bound), scale


def test_bfloat16_kernel_gradient_is_added_up_in_float32(rng):
    """Liger#512: 512 chunks, each with the same small gradient, in bfloat16 would stop growing at 256 of them."""
    hidden, kernel, ids = np.ones((512, 2), jnp.bfloat16), np.zeros((2, 3), jnp.bfloat16), np.zeros(512, np.int32)

    def chunked(k):
        return jaxloss.linear_loss(CE, hidden, k, ids, chunk_rows=1).total

    def mapped(k):
        return jnp.sum(jaxloss.map_linear_logits(CE, hidden, k, ids, chunk_rows=1))

    exact = np.array([-2 / 3, 1 / 3, 1 / 3]) * 512
    for by_kernel in jax.jit(lambda k: (jax.grad(chunked)(k), jax.grad(mapped)(k)))(kernel):
        np.testing.assert_allclose(np.asarray(by_kernel, np.float32)[0], exact, rtol=2.0**-7)


def test_float64_and_mixed_factors(x64, rng):
    hidden, kernel, _ = layer(rng, dtype=jnp.float64)
    ids = ids_for(rng)

    @jax.jit
    def chunked(h, k):
        return jax.value_and_grad(lambda h, k: jaxloss.linear_loss(CE, h, k, ids, chunk_rows=5).total, (0, 1))(h, k)

    value, gradients = chunked(hidden, kernel)
    exact, *exact_gradients, _ = oracle.linear_cross_entropy(hidden, kernel, ids, np.ones(ROWS))
    close((value, gradients), (exact, tuple(exact_gradients)), rtol=1e-13, atol=1e-14)
    assert value.dtype == jnp.float64
    hidden, kernel = np.asarray(hidden, np.float32), np.asarray(kernel, np.float32)
    narrow = jax.eval_shape(chunked, hidden.astype(jnp.bfloat16), kernel)
    assert [x.dtype for x in jax.tree.leaves(narrow)] == [jnp.float32, jnp.bfloat16, jnp.float32]
    assert "f64[" not in chunked.lower(hidden, kernel).compile().as_text()


def everything(rng):
    """A loss of all that can be differentiated, in chunks and from all logits, and its arguments."""
    hidden, kernel, bias = layer(rng)
    rest = options(rng)
    teacher, ids = jnp.asarray(rng.normal(size=(ROWS, SIZE)).astype(np.float32)), ids_for(rng)

    def loss(logits, labels, gamma, temperature):
        focal = jaxloss.softmax_focal_loss(logits / temperature, labels["ids"], gamma=gamma)
        return focal - jnp.sum(jax.nn.softmax(labels["teacher"]) * logits, -1)

    def chunked(hidden, kernel, bias, teacher, weights, gamma, temperature):
        labels = {"teacher": teacher, "ids": ids}
        more = {"where": rest["where"], "weights": weights, "loss_args": (gamma, temperature), "chunk_rows": 5}
        return jaxloss.linear_loss(loss, hidden, kernel, labels, bias=bias, **more).mean()

    def whole(hidden, kernel, bias, teacher, weights, gamma, temperature):
        def whole_loss(logits, labels):
            return loss(logits, labels, gamma, temperature)

        return dense(whole_loss, hidden, kernel, {"teacher": teacher, "ids": ids}, bias, rest["where"], weights).mean()

    arguments = (hidden, kernel, bias, teacher, rest["weights"], jnp.float32(1.5), jnp.float32(2.0))
    return chunked, whole, arguments


def product(pairs):
    return sum(jnp.vdot(x, y) for x, y in pairs)


DERIVATIVES = {
    "gradient": lambda f, x, t: jax.grad(f, tuple(range(7)))(*x),
    "jvp": lambda f, x, t: jax.jvp(f, x, t),
    "forward over reverse": lambda f, x, t: jax.jvp(jax.grad(f, tuple(range(7))), x, t)[1],
    "reverse over forward": lambda f, x, t: jax.grad(lambda x: jax.jvp(f, x, t)[1])(x),
    "reverse over reverse": lambda f, x, t: jax.grad(
        lambda x: product(zip(jax.grad(f, tuple(range(7)))(*x), t, strict=True))
    )(x),
    "hessian": lambda f, x, t: jax.hessian(lambda bias: f(*x[:2], bias, *x[3:]))(x[2]),
    "checkpoint": lambda f, x, t: jax.grad(jax.checkpoint(f), (0, 1))(*x),
    "linearize": lambda f, x, t: jax.linearize(f, *x)[1](*t),
}


@pytest.fixture(scope="module")
def derivatives():
    """The loss in chunks, its arguments and tangents, and every derivative from all logits, of one program."""
    chunked, whole, x = everything(np.random.default_rng(20261127))
    t = jax.tree.map(lambda a: np.cos(3 * np.asarray(a)), x)
    expected = jax.jit(lambda x, t: {name: function(whole, x, t) for name, function in DERIVATIVES.items()})(x, t)
    return chunked, x, t, expected


@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_derivative_by_everything(name, derivatives):
    chunked, x, t, expected = derivatives
    close(jax.jit(partial(DERIVATIVES[name], chunked))(x, t), expected[name], rtol=1e-4, atol=1e-5)


def test_vmap_over_seeds_and_options(rng):
    chunked, whole, x = everything(rng)
    kernels, gammas = np.stack([np.asarray(x[1]) * scale for scale in (1, 2, -1)]), np.float32([0.5, 1, 2])

    def gradient(f):
        def one(kernel, gamma):
            return jax.value_and_grad(lambda k, g: f(x[0], k, *x[2:5], g, x[6]), (0, 1))(kernel, gamma)

        return jax.vmap(one)

    got, expected = jax.jit(lambda *x: [gradient(f)(*x) for f in (chunked, whole)])(kernels, gammas)
    close(got, expected, rtol=1e-5, atol=1e-5)


def test_scan_over_microbatches_adds_up(rng):
    hidden, kernel, _ = layer(rng, (3, 7))
    ids, rest = ids_for(rng, (3, 7)), options(rng, (3, 7))

    def total(kernel):
        def step(so_far, part):
            h, y, where, weights = part
            return so_far + jaxloss.linear_loss(CE, h, kernel, y, where=where, weights=weights, chunk_rows=3), None

        start = jaxloss.LossSum(jnp.float32(0), jnp.float32(0))
        return lax.scan(step, start, (hidden, ids, rest["where"], rest["weights"]))[0].mean()

    def whole(kernel):
        return jaxloss.linear_loss(CE, hidden, kernel, ids, chunk_rows=100, **rest).mean()

    close(*jax.jit(lambda k: [jax.value_and_grad(f)(k) for f in (total, whole)])(kernel))


def test_what_the_loss_closes_over_is_differentiated(rng):
    hidden, kernel, _ = layer(rng)
    ids, chunked = ids_for(rng), partial(jaxloss.linear_loss, chunk_rows=4)

    def value(linear, weights, temperature, kernel):
        def loss(logits, ids):
            return CE(jnp.tanh(logits / temperature) * temperature, ids, class_weights=weights)

        return linear(loss, hidden, kernel, ids).total

    def masked(linear, mask):
        def loss(logits, row):
            return CE(logits, ids[row]) * mask[row]

        return linear(loss, hidden, kernel, jnp.arange(ROWS)).total

    @partial(jax.jit, static_argnums=0)
    def run(linear, weights, temperatures, kernel, masks):
        gradients = jax.grad(partial(value, linear), (0, 1, 2))(weights, temperatures[0], kernel)
        swept = jax.vmap(jax.grad(partial(value, linear), 1), (None, 0, None))(weights, temperatures, kernel)
        # Arrays that are closed over, batched by vmap.
        return gradients, swept, jax.vmap(partial(masked, linear))(masks)

    weights, temperatures = np.linspace(0.5, 2, SIZE, dtype=np.float32), np.float32([3, 2])
    x = weights, temperatures, kernel, rng.integers(0, 2, (3, ROWS)).astype(np.float32)
    close(run(chunked, *x), run(dense, *x))


@pytest.mark.usefixtures("standard_promotion")
def test_any_loss_will_do(rng):
    hidden, kernel, _ = layer(rng)
    ids, advantages = ids_for(rng), jnp.asarray(rng.normal(size=ROWS).astype(np.float32))
    losses = {
        "optax": (optax.softmax_cross_entropy_with_integer_labels, ids),
        "policy gradient": (lambda z, y: -y[1] * jax.nn.log_softmax(z)[jnp.arange(len(z)), y[0]], (ids, advantages)),
        "Gemma's cap": (lambda z, y: CE(30 * jnp.tanh(z / 30), y), ids),
        "bfloat16 losses": (lambda z, y: CE(z, y).astype(jnp.bfloat16), ids),
    }
    for name, (loss, labels) in losses.items():

        def chunked(k, loss=loss, labels=labels):
            return jaxloss.linear_loss(loss, hidden, k, labels, chunk_rows=5).total

        def whole(k, loss=loss, labels=labels):
            return jnp.sum(loss(hidden @ k, labels).astype(jnp.float32))

        got, expected = jax.jit(lambda k, f=chunked, g=whole: [jax.value_and_grad(h)(k) for h in (f, g)])(kernel)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-5, err_msg=name)
        close(got[1], expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.optimized
def test_auxiliary_results_come_of_the_same_pass(rng):
    hidden, kernel, _ = layer(rng, (3, 7))
    ids, rest = ids_for(rng, (3, 7)), options(rng, (3, 7))

    def loss(logits, ids):
        row = jaxloss.softmax_statistics(logits, ids)
        penalty = 1e-2 * row.logsumexp**2
        log = {"z_loss": penalty, "log_prob": -row.negative_log_probability, "right": row.accuracy > 0}
        return row.negative_log_probability + penalty, log | {"best": jnp.argmax(logits, -1)}

    def chunked(kernel):
        total, log = jaxloss.linear_loss(loss, hidden, kernel, ids, has_aux=True, chunk_rows=4, **rest)
        return total.mean(), log

    def plain(k):
        return dense(lambda z, y: CE(z, y, z_loss=1e-2), hidden, k, ids, **rest).mean()

    program = jax.jit(jax.value_and_grad(chunked, has_aux=True))
    (value, log), gradient = program(kernel)
    expected, expected_log = jax.jit(lambda k: (jax.value_and_grad(plain)(k), loss(hidden @ k, ids)[1]))(kernel)
    close((value, gradient), expected)
    for name, x in expected_log.items():
        np.testing.assert_allclose(log[name], np.where(rest["where"], x, np.zeros_like(x)), rtol=1e-5)
    assert log["right"].dtype == jnp.bool_
    assert log["best"].dtype == jnp.int32
    assert products(program.lower(kernel).compile().as_text()) == 2
    # Constants: nothing flows back through them.
    assert not np.any(jax.jit(jax.grad(lambda k: jnp.sum(chunked(k)[1]["log_prob"])))(kernel))


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def products(text: str) -> int:
    """Matrix products in a compiled program."""
    return len(re.findall(r" (?:dot|custom-call)\(", text))


@pytest.mark.optimized
@pytest.mark.parametrize("chunk", [256, 64])
def test_the_count_of_products_and_no_array_of_all_logits(chunk, rng):
    rows, width, size = 256, 24, 640
    hidden, kernel, ids = shape(rows, width), shape(width, size), np.zeros(rows, np.int32)

    def loss(h, k):
        return jaxloss.linear_loss(CE, h, k, ids, chunk_rows=chunk).mean()

    programs = [(1, loss), (3, jax.value_and_grad(loss, (0, 1)))]
    if chunk < rows:
        frozen = jax.grad(lambda h, k: loss(lax.stop_gradient(h * 2), k), 1)
        programs += [(2, jax.value_and_grad(loss, 0)), (2, jax.grad(loss, 1)), (2, frozen)]
    for count, program in programs:
        text = jax.jit(program).lower(hidden, kernel).compile().as_text()
        assert products(text) == count
        if chunk < rows:
            assert f"[{rows},{size}]" not in text
            assert f"[{rows // chunk},{chunk},{size}]" not in text


def temporary(function, *arguments) -> int:
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.optimized
def test_memory_of_every_mode(rng):
    """That of a chunk, of the kernel's gradient and of the rows; other modes stay within twice that of the gradient."""
    rows, width, size, chunk = 4096, 64, 2048, 256
    x, ids = (shape(rows, width), shape(width, size)), np.zeros(rows, np.int32)

    def loss(h, k):
        return jaxloss.linear_loss(CE, h, k, ids, chunk_rows=chunk).mean()

    logits, row_bytes, kernel_bytes = 4 * rows * size, 4 * rows * width, 4 * width * size
    gradient = temporary(jax.value_and_grad(loss, (0, 1)), *x)
    assert gradient <= logits / 4 + kernel_bytes
    assert gradient <= 1.5 * logits * chunk / rows + row_bytes + 2 * kernel_bytes
    modes = {
        "jvp": lambda x, t: jax.jvp(loss, x, t),
        "forward over reverse": lambda x, t: jax.jvp(jax.grad(loss, (0, 1)), x, t),
        "reverse over forward": lambda x, t: jax.grad(lambda x: jax.jvp(loss, x, t)[1])(x),
        "reverse over reverse": lambda x, t: jax.grad(
            lambda x: product(zip(jax.grad(loss, (0, 1))(*x), t, strict=True))
        )(x),
    }
    found = {name: temporary(mode, x, x) / gradient for name, mode in modes.items()}
    assert max(found.values()) <= 2, found
    losses = partial(jaxloss.map_linear_logits, CE, chunk_rows=chunk)
    by_row = temporary(jax.value_and_grad(lambda h, k: jnp.sum(losses(h, k, ids) ** 2), (0, 1)), *x)
    assert by_row <= 2 * gradient


def test_invalid_labels_poison_the_sum_and_dropped_rows_nothing(rng):
    hidden, kernel, ids = *(np.array(x) for x in layer(rng)[:2]), np.array(ids_for(rng))

    @jax.jit
    def run(hidden, ids, where):
        def total(h, k):
            return jaxloss.linear_loss(CE, h, k, ids, where=where, chunk_rows=4)

        sums = total(hidden, kernel)
        return sums, sums.mean(), jax.grad(lambda h, k: total(h, k).mean(), (0, 1))(hidden, kernel)

    rows = np.arange(ROWS)
    value, _, gradients = run(hidden, np.where(rows == 3, SIZE, ids).astype(np.int32), np.ones(ROWS, bool))
    assert np.isnan(value.total)
    np.testing.assert_array_equal(np.isnan(gradients[0]), np.broadcast_to(rows[:, None] == 3, hidden.shape))
    where = rows % 3 != 0
    bad = run(np.where(where[:, None], hidden, np.float32(np.nan)), np.where(where, ids, np.int32(-100)), where)
    jax.tree.map(np.testing.assert_array_equal, bad, run(hidden, ids, where))
    assert not np.any(bad[2][0][::3])
    _, mean, gradients = run(hidden, ids, np.zeros(ROWS, bool))
    assert mean == 0
    assert not any(np.any(x) for x in gradients)
    empty = jaxloss.linear_loss(CE, hidden[:0], kernel, ids[:0])
    assert (empty.total, empty.weight) == (0, 0)


@pytest.mark.parametrize("chunk", [4, 100])
def test_clean_under_debug_nans_and_checkify(chunk, rng):
    hidden, kernel, bias = layer(rng)
    ids = rng.integers(0, SIZE - 1, ROWS).astype(np.int32)
    out = np.where(np.arange(SIZE) < SIZE - 1, bias, np.float32(-np.inf))

    def step(ids):
        def total(h, k):
            return jaxloss.linear_loss(CE, h, k, ids, bias=out, chunk_rows=chunk).mean()

        return jax.value_and_grad(total, (0, 1))(hidden, kernel)

    with jax.debug_nans(True):
        jax.block_until_ready(jax.jit(step)(ids))
    checked = jax.jit(checkify.checkify(step, errors=checkify.user_checks))
    assert checked(ids)[0].get() is None
    message = checked(np.where(np.arange(ROWS) == 5, np.int32(-7), ids))[0].get()
    assert message is not None
    assert "softmax_cross_entropy" in message
    assert "-7" in message


def test_one_trace_for_one_function(rng):
    hidden, kernel, _ = layer(rng)
    traces = []

    def loss(logits, ids):
        traces.append(logits.shape)
        return CE(logits, ids)

    ids = np.zeros(ROWS, np.int32)
    jaxloss.linear_loss(loss, hidden, kernel, ids, chunk_rows=4)
    before = len(traces)
    jaxloss.linear_loss(loss, np.ones_like(hidden), kernel, ids, chunk_rows=4)
    assert len(traces) == before
    assert set(traces) == {(4, SIZE), (1, SIZE)}  # 21 rows in 6 chunks; quarters for second derivatives


def test_a_loss_that_cannot_be_hashed(rng):
    class Weighted:
        __hash__ = None
        weights = jnp.ones(SIZE)

        def __call__(self, logits, ids):
            return CE(logits, ids, class_weights=self.weights)

    hidden, kernel, _ = layer(rng)
    ids = np.zeros(ROWS, np.int32)
    close(*jax.jit(lambda k: (jaxloss.linear_loss(Weighted(), hidden, k, ids), dense(CE, hidden, k, ids)))(kernel))


def test_nothing_forbidden_in_the_program(rng):
    hidden, kernel, _ = layer(rng)

    def loss(h, k):
        return jaxloss.linear_loss(CE, h, k, np.zeros(ROWS, np.int32), chunk_rows=4).mean()

    program = jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(hidden, kernel)
    names = [equation.primitive.name for equation in jaxprs.equations(program)]
    assert not {"scatter", "scatter-add", "pure_callback", "io_callback", "debug_callback"} & set(names)
    assert names.count("while") == 1  # never unrolled


@pytest.mark.parametrize("chunk", [4, 100])
def test_results_by_row(chunk, rng):
    hidden, kernel, bias = layer(rng, (3, 7))
    ids = ids_for(rng, (3, 7))
    scale, cotangent = rng.normal(size=(2, 3, 7)).astype(np.float32)

    def results(logits, ids, scale):
        row = jaxloss.softmax_statistics(logits, ids)
        return {"log_prob": -scale * row.negative_log_probability, "entropy": row.entropy, "right": row.accuracy == 1}

    def mapped(h, k, b, s):
        return jaxloss.map_linear_logits(results, h, k, ids, s, bias=b, chunk_rows=chunk)

    def whole(h, k, b, s):
        return results(h @ k + b[None, None, :], ids, s)

    x = (hidden, kernel, bias, scale)
    t = jax.tree.map(lambda a: np.cos(3 * np.asarray(a)), x)

    def run(f):
        def scalar(*x):
            found = f(*x)
            return jnp.sum(cotangent * (found["log_prob"] + found["entropy"] ** 2))

        by_all = jax.grad(scalar, tuple(range(4)))
        return lambda x, t: (f(*x), by_all(*x), jax.jvp(scalar, x, t), jax.jvp(by_all, x, t)[1])

    (by_row, *got), (expected, *derivatives) = (jax.jit(run(f))(x, t) for f in (mapped, whole))
    close(by_row, expected)
    close(got, derivatives, rtol=1e-4, atol=1e-5)
    close(mapped(*x), expected)
    table = jaxloss.map_linear_logits(results, hidden, kernel.T, ids, scale, bias=bias, axis=0, chunk_rows=chunk)
    close(table, expected)


@pytest.mark.optimized
def test_results_by_row_in_four_products():
    def total(h, k):
        return jnp.sum(jaxloss.map_linear_logits(CE, h, k, np.zeros(64, np.int32), chunk_rows=16) ** 2)

    counts = {(): 1, (0,): 3, (1,): 3, (0, 1): 4}
    for by, count in counts.items():
        function = jax.value_and_grad(total, by) if by else total
        assert products(jax.jit(function).lower(shape(64, 8), shape(8, 320)).compile().as_text()) == count


SECOND = {
    "weights": lambda x: {"weights": np.ones(ROWS, x) / 2},
    "bias": lambda x: {"bias": np.ones(SIZE, x)},
    "labels": lambda x: {"labels": np.ones((ROWS, SIZE), x)},
    "loss_args": lambda x: {"loss_args": (np.ones((), x),)},
    "logits_fn": lambda x: {"logits_fn": lambda z: z.astype(x)},
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SECOND)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_the_layer_alone_has_the_dtype_of_the_result(dtype, name, rng):
    """Whatever dtype comes beside it, and of sum, weight and mean alike."""
    hidden, kernel, _ = layer(rng, dtype=dtype)

    def loss(logits, labels, *temperature):
        found = CE(logits, labels)
        return found.astype(temperature[0].dtype) * temperature[0] if temperature else found

    expected, other = (jnp.float64, jnp.float32) if dtype == jnp.float64 else (jnp.float32, jnp.float64)
    arguments = {"labels": np.zeros(ROWS, np.int32)} | SECOND[name](other)

    def run():
        found = jaxloss.linear_loss(loss, hidden, kernel, chunk_rows=5, **arguments)
        return found.total, found.weight, found.mean()

    assert [x.dtype for x in jax.eval_shape(run)] == [expected] * 3


def test_weights_may_be_counts_and_sizes_numbers_of_numpy(rng):
    hidden, kernel, _ = layer(rng)
    ids, counts = ids_for(rng), rng.integers(0, 4, ROWS)

    @jax.jit
    def whole(k, weights):
        def run(k):
            found = dense(CE, hidden, k, ids, weights=weights)
            return found.mean(), found

        return jax.value_and_grad(run, has_aux=True)(k)

    (_, expected), gradient = whole(kernel, counts.astype(np.float32))
    for kind in (np.int64, np.uint8):
        rest = {"weights": counts.astype(kind), "chunk_rows": np.int64(5), "axis": np.int32(1)}

        def run(k, rest=rest):
            found = jaxloss.linear_loss(CE, hidden, k, ids, **rest)
            return found.mean(), found

        (_, found), by_kernel = jax.jit(jax.value_and_grad(run, has_aux=True))(kernel)
        close((found, by_kernel), (expected, gradient))
    close(jaxloss.linear_loss(CE, hidden, kernel, ids, weights=counts > 0).weight, np.sum(counts > 0))
    rows = jax.jit(lambda k: jaxloss.map_linear_logits(CE, hidden, k, ids, chunk_rows=np.uint16(5)))(kernel)
    close(rows, CE(hidden @ kernel, ids))


def losses_of_equal_values(traces):
    """Makers of functions, each of which makes equal ones at every call."""

    def loss(logits, ids, scale=1.0, weights=None, nested=None):
        traces.append(logits.shape)
        weights = None if weights is None else jnp.asarray(weights["w"], jnp.float32)
        return CE(logits if nested is None else nested(logits), ids, class_weights=weights) * scale

    class Method:
        def loss(self, logits, ids):
            return loss(logits, ids)

    method, weights = Method(), jnp.ones(SIZE)
    return {
        "plain": lambda: partial(loss),
        "keywords": lambda: partial(loss, scale=float("2")),
        "of a partial": lambda: partial(partial(loss, scale=0.5), scale=float("3")),
        "NumPy": lambda: partial(loss, weights={"w": np.ones(SIZE)}),
        "array": lambda: partial(loss, weights={"w": weights}),
        "nested": lambda: partial(loss, nested=partial(jnp.multiply, np.float32(2))),
        "method": lambda: method.loss,
    }


@pytest.mark.parametrize("linear", [jaxloss.linear_loss, jaxloss.map_linear_logits])
def test_equal_functions_are_one_program(linear, rng):
    """Equal partials and bound methods, as loss and as function of the logits; what differs is another program."""
    hidden, kernel, _ = layer(rng)
    ids, traces = np.zeros(ROWS, np.int32), []
    whole = jax.jit(lambda by: jnp.sum(CE(hidden @ kernel * by, ids)))
    for name, make in losses_of_equal_values(traces).items():
        linear(make(), hidden, kernel, ids, chunk_rows=100)
        before = len(traces)
        assert before
        linear(make(), hidden, kernel, ids, chunk_rows=100)
        assert len(traces) == before, name
        traces.clear()

    def scaled(by, logits):
        traces.append(by)
        return logits * float(by)

    for by in (1.0, True, 1, 0.0, -0.0, 0.0, 1):
        found = linear(CE, hidden, kernel, ids, logits_fn=partial(scaled, by), chunk_rows=100)
        close(np.sum(jax.tree.leaves(found)[0]), whole(np.float32(by)))
    expected = [1.0, True, 1, 0.0, -0.0]
    assert list(dict.fromkeys(map(repr, traces))) == list(map(repr, expected))


def enclosing(x):
    """Functions that hold traced arrays in every way that a caller has."""
    rows = lax.iota(jnp.int32, ROWS) + x.astype(jnp.int32)

    def squares(z, y, scale, shift):
        return jnp.sum(z * z, -1) * scale + shift * rows[y].astype(z.dtype)

    return partial(squares, scale=x, shift=jnp.float32(0.5)), lambda z: z / x


@pytest.mark.parametrize("linear", [jaxloss.linear_loss, jaxloss.map_linear_logits])
def test_no_tracer_is_kept(linear, rng):
    hidden, kernel, _ = layer(rng)

    def value(linear, x, kernel):
        loss, logits_fn = enclosing(x)
        found = linear(loss, hidden, kernel, jnp.arange(ROWS), logits_fn=logits_fn)
        return jnp.sum(jax.tree.leaves(found)[0])

    def whole(loss, hidden, kernel, rows, logits_fn):
        return loss(logits_fn(hidden @ kernel), rows)

    # Once the rule is taken up in the trace that made the functions, once when that is long gone.
    within, later = jax.grad(partial(value, linear), (0, 1)), jax.grad(jax.jit(partial(value, linear)), (0, 1))
    x = (jnp.float32(2), kernel)
    with jax.checking_leaks():
        jax.make_jaxpr(within)(*x)
        jax.make_jaxpr(later)(*x)
    expected = jax.jit(jax.grad(partial(value, whole), (0, 1)))(*x)
    for function in (jax.jit(within), later):
        close(function(*x), expected)
