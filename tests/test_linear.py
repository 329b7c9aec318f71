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
    hidden = jnp.asarray(rng.normal(size=(*batch, WIDTH)), dtype)
    kernel = jnp.asarray(rng.normal(size=(WIDTH, SIZE)), dtype)
    bias = jnp.asarray(rng.normal(size=SIZE), jnp.float32)
    return hidden, kernel, bias


def options(rng, batch=(ROWS,)):
    where = jnp.asarray(rng.uniform(size=batch) < 0.7)
    return {"where": where, "weights": jnp.asarray(rng.uniform(0.5, 2, size=batch), jnp.float32)}


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

    def found(function):
        return jax.jit(jax.value_and_grad(function, (0, 1, 2)))(hidden, kernel, bias)

    expected = found(whole)
    for chunk in CHUNKS if case is cases.SOFTMAX[0] else [5]:  # chunks are the same for every loss
        close(found(partial(chunked, chunk=chunk)), expected)


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

    got, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, kernel) for f in (chunked, whole))
    close(got, expected)


@pytest.mark.parametrize("chunk", [4, 100])
def test_batch_axes_and_a_tied_table(chunk, rng):
    hidden, kernel, _ = layer(rng, (2, 3, 4))
    ids, rest = jnp.asarray(rng.integers(0, SIZE, (2, 3, 4))), options(rng, (2, 3, 4))

    def chunked(h, k, axis):
        return jaxloss.linear_loss(CE, h, k, ids, axis=axis, chunk_rows=chunk, **rest)

    expected = dense(CE, hidden, kernel, ids, **rest)
    close(chunked(hidden, kernel, -1), expected)
    close(chunked(hidden, kernel.T, 0), expected)
    by_kernel = jax.grad(lambda k: chunked(hidden, k, 1).mean())(kernel)
    by_table = jax.grad(lambda k: chunked(hidden, k, -2).mean())(kernel.T)
    close(by_table.T, by_kernel)
    # A table is not turned around: no [H, C] array but its gradient is in the program.
    text = jax.jit(lambda k: chunked(hidden, k, 0).total).lower(kernel.T).as_text()
    assert "transpose" not in text


@pytest.mark.parametrize("scale", [5, 20, 80, 640])
def test_bfloat16_factors(scale, rng):
    """marin#8217, Liger#1329, tokamax: logits in float32, label gradient formed before it is rounded, once."""
    rows, width, size, chunk = 96, 16, 301, 20
    hidden = jnp.asarray(rng.normal(size=(rows, width)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(width, size)) * scale / 4, jnp.bfloat16)
    ids = np.argmax(np.asarray(hidden, np.float32) @ np.asarray(kernel, np.float32), 1)
    ids[::3] = rng.integers(0, size, len(ids[::3]))
    weights = np.ones(rows)

    def chunked(h, k):
        return jaxloss.linear_loss(CE, h, k, jnp.asarray(ids, jnp.int32), chunk_rows=chunk).total

    value, (by_hidden, by_kernel) = jax.value_and_grad(chunked, (0, 1))(hidden, kernel)
    h, k = (np.asarray(x, np.float64) for x in (hidden, kernel))
    exact, *exact_gradients, dz = oracle.linear_cross_entropy(h, k, ids, weights)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    assert by_hidden.dtype == by_kernel.dtype == jnp.bfloat16
    # Rounding to nearest in bfloat16 is within 2^-8: of dz, which moves a gradient by 2^-8 sum |dz| |factor|, and of
    # the gradient itself. Roundings of the float32 sums are far smaller; what float32 cannot hold is 0.
    sizes = (np.abs(dz) @ np.abs(k).T, np.abs(h).T @ np.abs(dz))
    for got, expected, size in zip((by_hidden, by_kernel), exact_gradients, sizes, strict=True):
        bound = 2.0**-8 * (np.abs(expected) + size) * (1 + 2.0**-8) + 2.0**-100
        assert np.all(np.abs(np.asarray(got, np.float64) - expected) <= bound)


def test_bfloat16_kernel_gradient_is_added_up_in_float32(rng):
    """Liger#512: 512 chunks, each with the same small gradient, in bfloat16 would stop growing at 256 of them."""
    hidden = jnp.ones((512, 2), jnp.bfloat16)
    kernel = jnp.zeros((2, 3), jnp.bfloat16)

    def chunked(k):
        return jaxloss.linear_loss(CE, hidden, k, jnp.zeros(512, jnp.int32), chunk_rows=1).total

    def mapped(k):
        losses = jaxloss.map_linear_logits(CE, hidden, k, jnp.zeros(512, jnp.int32), chunk_rows=1)
        return jnp.sum(losses)

    exact = np.array([-2 / 3, 1 / 3, 1 / 3]) * 512
    for function in (chunked, mapped):
        np.testing.assert_allclose(jax.grad(function)(kernel).astype(np.float32)[0], exact, rtol=2.0**-7)


def test_float64_and_mixed_factors(x64, rng):
    hidden, kernel, _ = layer(rng, dtype=jnp.float64)
    ids = jnp.asarray(rng.integers(0, SIZE, ROWS))

    def chunked(h, k):
        return jaxloss.linear_loss(CE, h, k, ids, chunk_rows=5).total

    value, gradients = jax.value_and_grad(chunked, (0, 1))(hidden, kernel)
    exact, *exact_gradients, _ = oracle.linear_cross_entropy(hidden, kernel, ids, np.ones(ROWS))
    close((value, gradients), (exact, tuple(exact_gradients)), rtol=1e-13, atol=1e-14)
    assert value.dtype == jnp.float64
    narrow = jax.value_and_grad(chunked, (0, 1))(hidden.astype(jnp.bfloat16), kernel.astype(jnp.float32))
    assert [x.dtype for x in jax.tree.leaves(narrow)] == [jnp.float32, jnp.bfloat16, jnp.float32]
    program = jax.jit(jax.grad(chunked, (0, 1))).lower(hidden.astype(jnp.float32), kernel.astype(jnp.float32))
    assert "f64[" not in program.compile().as_text()


def everything(rng):
    """A loss of all that can be differentiated, in chunks and from all logits, and its arguments."""
    hidden, kernel, bias = layer(rng)
    rest = options(rng)
    teacher = jnp.asarray(rng.normal(size=(ROWS, SIZE)), jnp.float32)
    ids = jnp.asarray(rng.integers(0, SIZE, ROWS), jnp.int32)

    def loss(logits, labels, gamma, temperature):
        teacher, ids = labels["teacher"], labels["ids"]
        distance = jaxloss.softmax_kl_divergence(logits, teacher, temperature=temperature)
        return jaxloss.softmax_focal_loss(logits, ids, gamma=gamma) + distance

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


@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_derivative_by_everything(name, rng):
    chunked, whole, x = everything(rng)
    t = jax.tree.map(lambda a: jnp.cos(3 * a), x)
    got, expected = (jax.jit(partial(DERIVATIVES[name], f))(x, t) for f in (chunked, whole))
    close(got, expected, rtol=1e-4, atol=1e-5)


def test_vmap_over_seeds_and_options(rng):
    chunked, whole, x = everything(rng)
    kernels = jnp.stack([x[1], 2 * x[1], -x[1]])
    gammas = jnp.array([0.5, 1.0, 2.0])

    def gradient(f):
        def one(kernel, gamma):
            return jax.value_and_grad(lambda k, g: f(x[0], k, *x[2:5], g, x[6]), (0, 1))(kernel, gamma)

        return jax.jit(jax.vmap(one))(kernels, gammas)

    close(gradient(chunked), gradient(whole), rtol=1e-5, atol=1e-5)


def test_scan_over_microbatches_adds_up(rng):
    hidden, kernel, _ = layer(rng, (3, 7))
    ids, rest = jnp.asarray(rng.integers(0, SIZE, (3, 7))), options(rng, (3, 7))

    def total(kernel):
        def step(so_far, part):
            h, y, where, weights = part
            return so_far + jaxloss.linear_loss(CE, h, kernel, y, where=where, weights=weights, chunk_rows=3), None

        start = jaxloss.LossSum(jnp.float32(0), jnp.float32(0))
        return lax.scan(step, start, (hidden, ids, rest["where"], rest["weights"]))[0].mean()

    def whole(kernel):
        return jaxloss.linear_loss(CE, hidden, kernel, ids, chunk_rows=100, **rest).mean()

    close(jax.jit(jax.value_and_grad(total))(kernel), jax.value_and_grad(whole)(kernel))


def test_what_the_loss_closes_over_is_differentiated(rng):
    hidden, kernel, _ = layer(rng)
    ids = jnp.asarray(rng.integers(0, SIZE, ROWS), jnp.int32)

    def value(linear, weights, temperature, kernel):
        def loss(logits, ids):
            return CE(jnp.tanh(logits / temperature) * temperature, ids, class_weights=weights)

        return linear(loss, hidden, kernel, ids).total

    chunked, whole = partial(value, partial(jaxloss.linear_loss, chunk_rows=4)), partial(value, dense)
    x = (jnp.linspace(0.5, 2, SIZE), jnp.float32(3.0), kernel)
    close(jax.jit(jax.grad(chunked, (0, 1, 2)))(*x), jax.grad(whole, (0, 1, 2))(*x))
    swept = jax.vmap(jax.grad(chunked, 1), (None, 0, None))(x[0], jnp.array([2.0, 3.0]), kernel)
    close(swept, jnp.stack([jax.grad(whole, 1)(x[0], t, kernel) for t in (2.0, 3.0)]))
    # Integers that are closed over, batched by vmap.
    masks = jnp.asarray(rng.integers(0, 2, (3, ROWS)))

    def masked(linear, mask):
        def loss(logits, row):
            return CE(logits, ids[row]) * mask[row]

        return linear(loss, hidden, kernel, jnp.arange(ROWS)).total

    close(jax.vmap(partial(masked, partial(jaxloss.linear_loss, chunk_rows=4)))(masks.astype(jnp.float32)),
          jax.vmap(partial(masked, dense))(masks.astype(jnp.float32)))  # fmt: skip


@pytest.mark.usefixtures("standard_promotion")
def test_any_loss_will_do(rng):
    hidden, kernel, _ = layer(rng)
    ids = jnp.asarray(rng.integers(0, SIZE, ROWS), jnp.int32)
    advantages = jnp.asarray(rng.normal(size=ROWS), jnp.float32)
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

        expected = jax.value_and_grad(whole)(kernel)
        np.testing.assert_allclose(chunked(kernel), expected[0], rtol=1e-5, err_msg=name)
        close(jax.grad(chunked)(kernel), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.optimized
def test_auxiliary_results_come_of_the_same_pass(rng):
    hidden, kernel, _ = layer(rng, (3, 7))
    ids, rest = jnp.asarray(rng.integers(0, SIZE, (3, 7)), jnp.int32), options(rng, (3, 7))

    def loss(logits, ids):
        row = jaxloss.softmax_statistics(logits, ids)
        penalty = 1e-2 * row.logsumexp**2
        log = {"z_loss": penalty, "log_prob": -row.negative_log_probability, "right": row.accuracy > 0}
        return row.negative_log_probability + penalty, log | {"best": jnp.argmax(logits, -1)}

    def chunked(kernel):
        total, log = jaxloss.linear_loss(loss, hidden, kernel, ids, has_aux=True, chunk_rows=4, **rest)
        return total.mean(), log

    (value, log), gradient = jax.jit(jax.value_and_grad(chunked, has_aux=True))(kernel)
    plain = jax.value_and_grad(lambda k: dense(lambda z, y: CE(z, y, z_loss=1e-2), hidden, k, ids, **rest).mean())
    close((value, gradient), plain(kernel))
    expected = loss(hidden @ kernel, ids)[1]
    jax.tree.map(
        lambda got, x: np.testing.assert_allclose(got, jnp.where(rest["where"], x, jnp.zeros_like(x)), rtol=1e-5),
        log,
        expected,
    )
    assert log["right"].dtype == jnp.bool_
    assert log["best"].dtype == jnp.int32
    program = jax.jit(jax.value_and_grad(chunked, has_aux=True)).lower(kernel)
    assert products(program.compile().as_text()) == 2
    # Constants: nothing flows back through them.
    assert not np.any(jax.grad(lambda k: jnp.sum(chunked(k)[1]["log_prob"]))(kernel))


def products(text: str) -> int:
    """Matrix products in a compiled program."""
    return len(re.findall(r" (?:dot|custom-call)\(", text))


@pytest.mark.optimized
@pytest.mark.parametrize("chunk", [256, 64])
def test_the_count_of_products_and_no_array_of_all_logits(chunk, rng):
    rows, width, size = 256, 24, 640
    hidden, kernel = jnp.zeros((rows, width)), jnp.zeros((width, size))
    ids = jnp.zeros(rows, jnp.int32)

    def loss(h, k):
        return jaxloss.linear_loss(CE, h, k, ids, chunk_rows=chunk).mean()

    programs = [
        (1, loss),
        (2, jax.value_and_grad(loss, 0)),
        (2, jax.grad(loss, 1)),
        (3, jax.value_and_grad(loss, (0, 1))),
    ]
    for count, program in programs:
        text = jax.jit(program).lower(hidden, kernel).compile().as_text()
        assert products(text) == count
        if chunk < rows:
            assert f"[{rows},{size}]" not in text
            assert f"[{rows // chunk},{chunk},{size}]" not in text
    frozen = jax.jit(jax.grad(lambda k: loss(lax.stop_gradient(hidden * 2), k))).lower(kernel).compile().as_text()
    assert products(frozen) == 2


def temporary(function, *arguments) -> int:
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.optimized
def test_memory_of_every_mode(rng):
    """That of a chunk, of the kernel's gradient and of the rows; other modes stay within twice that of the gradient."""
    rows, width, size, chunk = 4096, 64, 2048, 256
    hidden, kernel = jnp.zeros((rows, width)), jnp.zeros((width, size))
    ids = jnp.zeros(rows, jnp.int32)

    def loss(h, k):
        return jaxloss.linear_loss(CE, h, k, ids, chunk_rows=chunk).mean()

    logits, row_bytes, kernel_bytes = 4 * rows * size, 4 * rows * width, 4 * width * size
    gradient = temporary(jax.value_and_grad(loss, (0, 1)), hidden, kernel)
    assert gradient <= logits / 4 + kernel_bytes
    assert gradient <= 1.5 * logits * chunk / rows + row_bytes + 2 * kernel_bytes
    x = (hidden, kernel)
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
    hidden, kernel, _ = layer(rng)
    ids = jnp.asarray(rng.integers(0, SIZE, ROWS), jnp.int32)

    def run(hidden, ids, where=None):
        def total(h, k):
            return jaxloss.linear_loss(CE, h, k, ids, where=where, chunk_rows=4)

        value = total(hidden, kernel)
        return value, jax.grad(lambda h, k: total(h, k).mean(), (0, 1))(hidden, kernel)

    value, gradients = run(hidden, ids.at[3].set(SIZE))
    assert np.isnan(value.total)
    assert np.isnan(gradients[0][3]).all()
    assert not np.isnan(jnp.delete(gradients[0], 3, 0)).any()
    where = jnp.arange(ROWS) % 3 != 0
    bad = run(jnp.where(where[:, None], hidden, jnp.nan), jnp.where(where, ids, -100), where)
    jax.tree.map(np.testing.assert_array_equal, bad, run(hidden, ids, where))
    assert not np.any(bad[1][0][::3])
    nothing = run(hidden, ids, jnp.zeros(ROWS, bool))
    assert nothing[0].mean() == 0
    assert not any(np.any(x) for x in nothing[1])
    empty = jaxloss.linear_loss(CE, hidden[:0], kernel, ids[:0])
    assert (empty.total, empty.weight) == (0, 0)


@pytest.mark.parametrize("chunk", [4, 100])
def test_clean_under_debug_nans_and_checkify(chunk, rng):
    hidden, kernel, bias = layer(rng)
    ids = jnp.asarray(rng.integers(0, SIZE - 1, ROWS), jnp.int32)

    def step(ids):
        def total(h, k):
            out = bias.at[SIZE - 1].set(-jnp.inf)
            return jaxloss.linear_loss(CE, h, k, ids, bias=out, chunk_rows=chunk).mean()

        return jax.value_and_grad(total, (0, 1))(hidden, kernel)

    with jax.debug_nans(True):
        jax.block_until_ready(jax.jit(step)(ids))
    checked = jax.jit(checkify.checkify(step, errors=checkify.user_checks))
    assert checked(ids)[0].get() is None
    message = checked(ids.at[5].set(-7))[0].get()
    assert message is not None
    assert "softmax_cross_entropy" in message
    assert "-7" in message


def test_one_trace_for_one_function(rng):
    hidden, kernel, _ = layer(rng)
    traces = []

    def loss(logits, ids):
        traces.append(logits.shape)
        return CE(logits, ids)

    ids = jnp.zeros(ROWS, jnp.int32)
    jaxloss.linear_loss(loss, hidden, kernel, ids, chunk_rows=4)
    before = len(traces)
    jaxloss.linear_loss(loss, hidden + 1, kernel, ids, chunk_rows=4)
    assert len(traces) == before
    assert set(traces) == {(4, SIZE), (1, SIZE)}  # 21 rows in 6 chunks; quarters for second derivatives


def test_a_loss_that_cannot_be_hashed(rng):
    class Weighted:
        __hash__ = None
        weights = jnp.ones(SIZE)

        def __call__(self, logits, ids):
            return CE(logits, ids, class_weights=self.weights)

    hidden, kernel, _ = layer(rng)
    ids = jnp.zeros(ROWS, jnp.int32)
    close(jaxloss.linear_loss(Weighted(), hidden, kernel, ids), dense(CE, hidden, kernel, ids))


def test_nothing_forbidden_in_the_program(rng):
    hidden, kernel, _ = layer(rng)

    def loss(h, k):
        return jaxloss.linear_loss(CE, h, k, jnp.zeros(ROWS, jnp.int32), chunk_rows=4).mean()

    program = jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(hidden, kernel)
    names = [equation.primitive.name for equation in jaxprs.equations(program)]
    assert not {"scatter", "scatter-add", "pure_callback", "io_callback", "debug_callback"} & set(names)
    assert names.count("while") == 1  # never unrolled


@pytest.mark.parametrize("chunk", [4, 100])
def test_results_by_row(chunk, rng):
    hidden, kernel, bias = layer(rng, (3, 7))
    ids = jnp.asarray(rng.integers(0, SIZE, (3, 7)), jnp.int32)
    scale = jnp.asarray(rng.normal(size=(3, 7)), jnp.float32)

    def results(logits, ids, scale):
        row = jaxloss.softmax_statistics(logits, ids)
        return {"log_prob": -scale * row.negative_log_probability, "entropy": row.entropy, "right": row.accuracy == 1}

    def mapped(h, k, b, s):
        return jaxloss.map_linear_logits(results, h, k, ids, s, bias=b, chunk_rows=chunk)

    def whole(h, k, b, s):
        return results(h @ k + b[None, None, :], ids, s)

    x = (hidden, kernel, bias, scale)
    close(jax.jit(mapped)(*x), whole(*x))
    close(mapped(hidden, kernel, bias, scale), whole(*x))
    table = jaxloss.map_linear_logits(results, hidden, kernel.T, ids, scale, bias=bias, axis=0, chunk_rows=chunk)
    close(table, whole(*x))
    cotangent = jnp.asarray(rng.normal(size=(3, 7)), jnp.float32)
    t = jax.tree.map(lambda a: jnp.cos(3 * a), x)

    def scalar(f):
        def value(*x):
            found = f(*x)
            return jnp.sum(cotangent * (found["log_prob"] + found["entropy"] ** 2))

        return value

    f, g = scalar(mapped), scalar(whole)
    every = tuple(range(4))
    close(jax.jit(jax.grad(f, every))(*x), jax.grad(g, every)(*x), rtol=1e-4, atol=1e-5)
    close(jax.jvp(f, x, t), jax.jvp(g, x, t), rtol=1e-4, atol=1e-5)
    close(jax.jvp(jax.grad(f, every), x, t), jax.jvp(jax.grad(g, every), x, t), rtol=1e-4, atol=1e-5)


@pytest.mark.optimized
def test_results_by_row_in_four_products(rng):
    hidden, kernel = jnp.zeros((64, 8)), jnp.zeros((8, 320))

    def total(h, k):
        return jnp.sum(jaxloss.map_linear_logits(CE, h, k, jnp.zeros(64, jnp.int32), chunk_rows=16) ** 2)

    counts = {(): 1, (0,): 3, (1,): 3, (0, 1): 4}
    for by, count in counts.items():
        function = jax.value_and_grad(total, by) if by else total
        assert products(jax.jit(function).lower(hidden, kernel).compile().as_text()) == count


SECOND = {
    "weights": lambda x: {"weights": jnp.ones(ROWS, x) / 2},
    "bias": lambda x: {"bias": jnp.ones(SIZE, x)},
    "labels": lambda x: {"labels": jnp.ones((ROWS, SIZE), x)},
    "loss_args": lambda x: {"loss_args": (jnp.ones((), x),)},
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
    arguments = {"labels": jnp.zeros(ROWS, jnp.int32)} | SECOND[name](other)
    found = jaxloss.linear_loss(loss, hidden, kernel, chunk_rows=5, **arguments)
    assert [x.dtype for x in (found.total, found.weight, found.mean())] == [expected] * 3


def test_weights_may_be_counts_and_sizes_numbers_of_numpy(rng):
    hidden, kernel, _ = layer(rng)
    ids, counts = jnp.asarray(rng.integers(0, SIZE, ROWS), jnp.int32), rng.integers(0, 4, ROWS)
    expected = dense(CE, hidden, kernel, ids, weights=jnp.asarray(counts, jnp.float32))
    for kind in (np.int64, np.uint8):
        rest = {"weights": counts.astype(kind), "chunk_rows": np.int64(5), "axis": np.int32(1)}
        close(jaxloss.linear_loss(CE, hidden, kernel, ids, **rest), expected)
        by_kernel = jax.grad(lambda k, rest=rest: jaxloss.linear_loss(CE, hidden, k, ids, **rest).mean())(kernel)
        close(by_kernel, jax.grad(lambda k: dense(CE, hidden, k, ids, weights=counts).mean())(kernel))
    close(jaxloss.linear_loss(CE, hidden, kernel, ids, weights=counts > 0).weight, np.sum(counts > 0))
    rows = jaxloss.map_linear_logits(CE, hidden, kernel, ids, chunk_rows=np.uint16(5))
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
    ids, traces = jnp.zeros(ROWS, jnp.int32), []
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
        close(jnp.sum(jax.tree.leaves(found)[0]), jnp.sum(CE(hidden @ kernel * float(by), ids)))
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
