"""Properties of every loss over calls drawn at random (tests/fuzz.py), beside the named tests of the other files."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax.experimental import checkify
from jax.sharding import AxisType, PartitionSpec

import jaxloss
from tests import accuracy, cases, fuzz, oracle
from tests.fuzz import Call, calls, examples, masks

EPS = 2.0**-23
HESSIANS = tuple(cases.LOGITS)
CLASSES = tuple(cases.CLASSES)
WEIGHTED = tuple(case for case in cases.ALL if case.takes(class_weights=0))
HARD = ("ids", "onehot")
FEW = fuzz.few(cases.ALL)


def derivatives(call: Call, logits=None, labels=None, **options) -> list[np.ndarray]:
    """Losses and gradients of the logits."""
    given = {**call.options, **options}
    found = call.case.run(call.logits if logits is None else logits, call.labels if labels is None else labels, **given)
    return [np.asarray(x, np.float64) for x in found]


def bound(call: Call) -> np.ndarray:
    """Of each row: the promise, in eps, with a unit for each further operation that an option costs."""
    wide = np.asarray(call.logits, np.float64)
    return (accuracy.promise(call.case, accuracy.spread(call.case, wide)) + 4 * len(call.options)) * EPS


def close(got, expected, rtol, scale=1.0) -> None:
    """Within `rtol` of the size of the row or of `scale`; rtol of each row."""
    for a, b in zip(got, expected, strict=True):
        with np.errstate(invalid="ignore"):
            largest = np.abs(b).max(-1) if b.ndim > 1 else np.abs(b)
        size = np.maximum(np.where(np.isfinite(largest), largest, 1), scale)
        room = (rtol * size)[:, None] if a.ndim > 1 else rtol * size
        with np.errstate(invalid="ignore"):
            right = (a == b) | (np.abs(a - b) <= room) | (np.isnan(a) & np.isnan(b))
        assert right.all(), (a, b)


def units(dtype) -> float:
    return float(jnp.finfo(dtype).eps) / EPS


@examples(24)
@given(calls(kinds=HARD, dtypes=(jnp.float32, jnp.bfloat16)))
def test_values_and_gradients_keep_the_promise(call):
    """Of hard labels, for which every entry is promised its digits."""
    assume(not call.case.element or "impossible" not in call.regimes)  # log 0 in the oracle
    values, gradients = map(np.asarray, call.case.run(call.logits, call.labels))
    wide = np.asarray(call.logits, np.float64)
    exact = [call.case.row(row, label) for row, label in zip(wide, call.shares, strict=True)]
    measure = accuracy.absolute_error if call.case.sparse else oracle.ulp_error
    most = accuracy.promise(call.case, accuracy.spread(call.case, wide))
    for value, gradient, row, allowed in zip(values, gradients, exact, most, strict=True):
        assert np.max(measure(np.ravel(value), np.ravel(row[0]), np.float32)) <= allowed, row[0]
        assert measure(gradient, row[1], call.dtype).max() <= allowed, row[1]


@examples(12)
@given(calls(of=tuple(cases.SOFTMAX), options=True, dtypes=(jnp.float32,)))
def test_options_together_are_those_of_the_oracle(call):
    assume(call.kind == "ids" or "impossible" not in call.regimes)
    given = call.options
    values, gradients = derivatives(call)
    wide = np.asarray(call.logits, np.float64)
    for i, row in enumerate(wide):
        assume("z_loss" not in given or np.abs(row[row > -np.inf]).max() < 100)
        exists = row > -np.inf
        shares = oracle.shares(
            call.shares[i], len(row), exists, given.get("class_weights"), float(given.get("label_smoothing", 0))
        )
        loss, gradient, _ = oracle.softmax_row(
            row,
            shares,
            call.case.phi,
            call.case.value,
            float(given.get("z_loss", 0)),
            margins=given.get("label_margins"),
        )
        # Terms of either sign meet in a gradient of soft labels: its error is that of the larger.
        scale = 4 * float(sum(map(abs, gradient)) + sum(shares))
        np.testing.assert_allclose(values[i], float(loss), rtol=2 * bound(call)[i], atol=1e-37)
        np.testing.assert_allclose(gradients[i], np.array(gradient, float), atol=bound(call)[i] * scale)


@examples(16)
@given(calls(kinds=HARD, options=True))
def test_ids_are_their_one_hot_rows(call):
    ids, onehot = (derivatives(call.of(kind)) for kind in HARD)
    close(ids, onehot, 2 * bound(call) * units(call.dtype))


@examples(12)
@given(calls(of=HESSIANS, kinds=HARD, dtypes=(jnp.float32,)))
def test_hessians_of_ids_are_those_of_one_hot_rows(call):
    """Entry by entry, to the promise: so a class that wrongly leads keeps its digits.

    The curvature of a loss that is not convex changes its sign; there its digits are those of cross-entropy's.
    """

    def diagonal(case, kind):
        return np.asarray(case.run_twice(call.logits, call.of(kind).labels)[2], np.float64)

    ids, onehot = (diagonal(call.case, kind) for kind in HARD)
    size = np.maximum(np.abs(ids), np.abs(onehot))
    if call.case in cases.SOFTMAX and call.case.exponent:
        size = np.maximum(size, diagonal(cases.SOFTMAX[0], "ids"))
    room = 4 * bound(call)[:, None] * size
    assert (np.abs(ids - onehot) <= room + (8 * EPS if call.case.sparse else 1e-30)).all(), (ids, onehot)


@examples(12)
@given(calls(kinds=HARD))
def test_signs_and_sums(call):
    values, gradients = derivatives(call)
    assert not np.signbit(values).any()
    assert not np.isnan(values).any()
    assert (gradients * (1 - 2 * call.shares) >= 0).all()
    if call.case.shift_invariant and call.case in cases.LOGITS:
        largest = 1 if call.case.sparse else np.abs(gradients).sum(-1)
        assert (np.abs(gradients.sum(-1)) <= 4 * EPS * units(call.dtype) * largest + 1e-37).all()


@examples(12)
@given(calls(of=FEW, options=True), st.randoms(use_true_random=False))
def test_the_order_of_rows_and_classes_is_of_no_account(call, random):
    rows, classes = random.sample(range(fuzz.ROWS), fuzz.ROWS), random.sample(range(call.size), call.size)
    labels = np.asarray(call.labels)[rows]
    labels = np.argsort(classes)[labels].astype(np.int32) if call.kind == "ids" else labels[:, classes]
    weights = {key: x[np.array(classes)] for key, x in call.options.items() if np.ndim(x)}
    moved = derivatives(call, call.logits[rows][:, classes], labels, **weights)
    values, gradients = derivatives(call)
    values = values[rows][:, classes] if values.ndim > 1 else values[rows]
    close(moved, [values, gradients[rows][:, classes]], 2 * bound(call)[rows] * units(call.dtype))


@examples(8)
@given(calls(of=tuple(case for case in cases.LOGITS if case.shift_invariant), regimes=("tied", "zeros", "offset")))
def test_an_exact_shift_changes_no_bit(call):
    grid = np.round(call.logits.astype(np.float32) * 8) / 8
    for a, b in zip(derivatives(call, grid), derivatives(call, grid + 512), strict=True):
        np.testing.assert_array_equal(a, b)


@examples(10)
@given(st.data(), calls(of=FEW, options=True))
def test_rows_left_out_change_no_bit_and_may_hold_anything(data, call):
    keep = data.draw(masks((fuzz.ROWS,)))
    junk = np.array([np.nan, -np.inf, np.inf, 6e4]).astype(call.dtype)[:, None]
    poisoned = np.where(keep[:, None], call.logits, junk)
    spoiled = call.labels.copy()
    spoiled[~keep] = -100 if call.kind == "ids" else np.nan
    with jax.debug_nans(True):
        got = derivatives(call, poisoned, spoiled, where=keep)
    for x, clean in zip(got, derivatives(call, where=keep), strict=True):
        np.testing.assert_array_equal(x, clean)
        assert not x[~keep].any()


@cache
def masked_mean(case):
    return jax.jit(jax.value_and_grad(lambda z, t, keep: jaxloss.masked_loss(case.call, z, t, keep).mean()))


@examples(10)
@given(st.data(), calls(of=FEW))
def test_a_mask_given_once_is_the_mean_over_what_it_keeps(data, call):
    keep = data.draw(masks((fuzz.ROWS,)))
    labels = call.labels.copy()
    labels[~keep] = -100 if call.kind == "ids" else np.nan
    value, gradient = masked_mean(call.case)(call.logits, labels, keep)
    losses, gradients = derivatives(call)
    expected = losses[keep].mean() if keep.any() else 0.0
    count = max(losses[keep].size, 1)
    np.testing.assert_allclose(value, expected, rtol=8 * EPS, atol=1e-37)
    # By shares of several classes it is a difference of terms up to 1, which may be small.
    least = 4 * EPS if call.kind == "soft" else 1e-30
    np.testing.assert_allclose(
        np.asarray(gradient, float)[keep],
        gradients[keep] / count,
        rtol=4 * EPS * units(call.dtype),
        atol=least if call.dtype == jnp.float32 else 1e-7,
    )
    assert not np.asarray(gradient)[~keep].any()


@examples(10)
@given(st.data(), calls(of=fuzz.few(CLASSES), regimes=("normal", "spread", "tied"), dtypes=(jnp.float32,)))
def test_a_mask_of_classes_is_the_row_of_those_classes(data, call):
    keep = data.draw(masks((fuzz.ROWS, call.size)))
    logits = np.where(keep, call.logits, np.float32(data.draw(st.sampled_from([np.nan, np.inf, 0.0]))))
    values, gradients = derivatives(call, logits, where=keep)
    assert not gradients[~keep].any()
    for i, kept in enumerate(keep):
        shares = call.shares[i][kept].astype(np.float32)
        if not shares.any():  # no class, or no share of one: the entropy of a sparse label aside
            assert call.kind != "ids" or values[i] == 0
            continue
        if len(shares) == 1:
            assert values[i] <= 4 * EPS
            continue
        alone = call.case.run(call.logits[i][kept], shares)
        np.testing.assert_allclose(values[i], alone[0], rtol=4 * bound(call)[i], atol=4 * EPS)
        np.testing.assert_allclose(gradients[i][kept], alone[1], rtol=4 * bound(call)[i], atol=4 * EPS)


@examples(10)
@given(calls(of=fuzz.few(case for case in WEIGHTED if case not in (*cases.RANKING, *cases.SPARSE))))
def test_a_weight_of_zero_drops_what_is_infinite(call):
    """The first class gets labels that it cannot have, and no weight."""
    z, never = np.array(call.logits, np.float32), fuzz.impossible(call.case)
    z[:, 0] = never
    shares = call.shares.astype(np.float32)
    shares[:, 0] = 1
    weights = (np.arange(call.size) > 0).astype(np.float32)
    elementwise = call.case.element is not None
    assume(elementwise or np.isfinite(z[:, 1:]).any(-1).all())
    possible = shares if elementwise else np.where(z > never, shares, 0)
    possible[:, 0] = 1
    for x in derivatives(call, z.astype(call.dtype), possible, class_weights=weights):
        assert np.isfinite(x[:, 0] if x.ndim > 1 else x).all()
        assert not elementwise or not x[:, 0].any()


@examples(8)
@given(calls(of=CLASSES, kinds=HARD, regimes=fuzz.FINITE))
def test_a_label_of_infinite_logit_costs_nothing(call):
    at = call.shares.argmax(-1)
    z = np.array(call.logits, np.float32)
    z[np.arange(fuzz.ROWS), at] = np.inf
    for kind in HARD:
        for x in derivatives(call, z.astype(call.dtype), call.of(kind).labels):
            np.testing.assert_array_equal(x, np.zeros_like(x))


@examples(8)
@given(calls(of=FEW, options=True), st.sampled_from([0, 1, 2, -3]), st.sampled_from([(2, 2), (4, 1), (1, 2, 2)]))
def test_any_axis_and_batch_is_the_same_rows(call, axis, batch):
    logits = np.moveaxis(call.logits.reshape(*batch, call.size), -1, axis)
    labels = call.labels.reshape(*batch, *call.labels.shape[1:])
    labels = labels if call.kind == "ids" else np.moveaxis(labels, -1, axis)
    run = jax.jit(jaxloss.per_example_value_and_grad(partial(call.case.call, axis=axis)))
    values, gradients = (np.asarray(x, np.float64) for x in run(logits, labels, **call.options))
    back = np.moveaxis(gradients, axis, -1).reshape(fuzz.ROWS, call.size)
    values = np.moveaxis(values, axis, -1) if values.shape == gradients.shape else values
    expected = derivatives(call)
    close([values.reshape(expected[0].shape), back], expected, bound(call) * units(call.dtype))


@cache
def inside(case):
    @jax.jit
    def vmap_and_scan(logits, labels, options):
        run = partial(jaxloss.per_example_value_and_grad(case.call), **options)
        return jax.vmap(run)(logits, labels), jax.lax.scan(lambda _, x: (0, run(*x)), 0, (logits, labels))[1]

    return vmap_and_scan


@examples(8)
@given(calls(of=FEW, options=True, regimes=("normal", "spread", "tied at the top"), dtypes=(jnp.float32,)))
def test_inside_jit_vmap_and_scan_it_is_the_same(call):
    run = partial(jaxloss.per_example_value_and_grad(call.case.call), **call.options)
    for found in (run(call.logits, call.labels), *inside(call.case)(call.logits, call.labels, call.options)):
        close([np.asarray(x, float) for x in found], derivatives(call), 2 * bound(call))


@cache
def all_modes(case):
    @jax.jit
    def run(z, t, tangent):
        def total(z):
            return jnp.sum(case.call(z, t))

        _, gradient, diagonal = jaxloss.per_example_value_grad_hess(case.call)(z, t)
        return gradient, diagonal, jax.jvp(total, (z,), (tangent,))[1], jax.hessian(total)(z)

    return run


@examples(6)
@given(calls(of=HESSIANS, regimes=("normal",), dtypes=(jnp.float32,)))
def test_derivatives_of_all_modes_agree(call):
    assume(call.size <= 5)
    assume(not (call.case.sparse or "hinge" in call.case.name or "huber" in call.case.name))  # kinks
    tangent = call.rng.normal(size=call.logits.shape)
    with jax.enable_x64(True):
        found = all_modes(call.case)(call.logits.astype(np.float64), call.labels, tangent)
    gradient, diagonal, forward, full = map(np.asarray, found)
    np.testing.assert_allclose(forward, np.sum(gradient * tangent), rtol=1e-9, atol=1e-12)
    full = np.diag(full.reshape(tangent.size, tangent.size)).reshape(tangent.shape)
    np.testing.assert_allclose(full, diagonal, rtol=1e-8, atol=1e-11)


@examples(5)
@given(st.data(), calls(of=fuzz.few(CLASSES), regimes=("normal",), dtypes=(jnp.float32,)), st.integers(1, 5))
def test_chunks_are_the_whole(data, call, chunk_rows):
    keep = data.draw(masks((fuzz.ROWS,)))
    kernel = (call.rng.normal(size=(call.size, call.size)) / call.size**0.5).astype(np.float32)

    def chunked(h, k):
        return jaxloss.linear_loss(call.case.call, h, k, call.labels, where=keep, chunk_rows=chunk_rows).mean()

    def dense(h, k):
        return jaxloss.masked_loss(call.case.call, h @ k, call.labels, keep).mean()

    @jax.jit
    def both(h, k):
        return [jax.value_and_grad(f, (0, 1))(h, k) for f in (chunked, dense)]

    found, expected = both(call.logits, kernel)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), found, expected)


def capped(z):
    return 2 * jnp.tanh(z / 2)


@examples(3)
@given(st.data(), calls(of=CLASSES, regimes=("normal",), dtypes=(jnp.float32,)), st.sampled_from([2, 4, 8]))
def test_a_mesh_is_one_device(data, call, devices):
    """Classes divide over the devices or do not; a cap of the logits is right on both."""
    keep = data.draw(masks((fuzz.ROWS,)))
    kernel = (call.rng.normal(size=(call.size, call.size)) / call.size**0.5).astype(np.float32)
    mesh = jax.make_mesh((devices,), ("m",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    given = {"where": keep, "logits_fn": capped}

    def mean(loss, names, h, k):
        return jaxloss.linear_loss(loss, h, k, call.labels, **given, **names).mean()

    here = jax.jit(jax.value_and_grad(partial(mean, call.case.call, {}), (0, 1)))(call.logits, kernel)
    with jax.set_mesh(mesh):
        loss = partial(call.case.call, axis_name="m")
        names = {"axis_name": "m", "labels_spec": None if call.kind == "ids" else PartitionSpec(None, "m")}
        there = jax.jit(jax.value_and_grad(partial(mean, loss, names), (0, 1)))(call.logits, kernel)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), there, here)


@examples(8)
@given(calls(of=tuple(cases.PROBABILITIES), kinds=HARD, dtypes=(jnp.float32, jnp.bfloat16)), st.integers(0, 2**32 - 1))
def test_probabilities_a_rounding_outside_are_inside(call, seed):
    rng, eps = np.random.default_rng(seed), float(jnp.finfo(call.dtype).eps)
    logarithm = call.case.name == "log_probabilities"
    ends = np.eye(call.size)[rng.integers(0, call.size, fuzz.ROWS)]
    off = (ends + eps * rng.integers(-3, 4, ends.shape)).astype(call.dtype)
    if logarithm:
        off = np.where(ends == 1, off.astype(np.float32) - 1, -np.inf).astype(call.dtype)
        ends = np.where(ends == 1, 0, -np.inf)
    exact = derivatives(call, ends.astype(call.dtype))
    got = derivatives(call, off)
    inside = np.asarray(off <= 0 if logarithm else (off >= 0) & (off <= 1)) & (np.asarray(off, float) != ends)
    rows = ~inside.any(-1)
    for a, b in zip(got, exact, strict=True):
        assert not np.isnan(a).any()
        np.testing.assert_array_equal(a[rows], b[rows])


@cache
def checked(case):
    return jax.jit(checkify.checkify(case.call, errors=checkify.user_checks))


def user_error(case, *arguments) -> str:
    return checked(case)(*arguments)[0].get() or ""


@examples(8)
@given(calls(of=FEW, dtypes=(jnp.float32,)), st.data())
def test_ids_outside_are_nan_and_named(call, data):
    call = call.of("ids") if call.kind != "soft" and call.kind != "multihot" else call
    assume(call.kind == "ids" and call.size > 1)
    at, bad = data.draw(st.integers(0, fuzz.ROWS - 1)), data.draw(st.sampled_from([-1, -100, 255, 2**31 - 1]))
    assume(not 0 <= bad < call.size)
    labels = call.labels.copy()
    labels[at] = bad
    good = np.arange(fuzz.ROWS) != at
    for x, whole in zip(derivatives(call, labels=labels), derivatives(call), strict=True):
        assert np.isnan(x[at]).all()
        np.testing.assert_array_equal(x[good], whole[good])
    assert f"got {bad}" in user_error(call.case, call.logits, labels)
    assert user_error(call.case, call.logits, call.labels) == ""


Z, Y = np.zeros, partial(np.zeros, dtype=np.int32)
SPOILT = {
    "None for labels": lambda call: ((call.logits, None), {}),
    "None for logits": lambda call: ((None, call.labels), {}),
    "labels of another batch": lambda call: ((call.logits, Y(fuzz.ROWS + 1)), {}),
    "labels of other classes": lambda call: ((call.logits, Z((fuzz.ROWS, call.size + 1))), {}),
    "float ids": lambda call: ((call.logits, Z(fuzz.ROWS, np.float32)), {}),
    "ids in a column": lambda call: ((call.logits, Y((fuzz.ROWS, 1))), {}),
    "complex labels": lambda call: ((call.logits, Z((fuzz.ROWS, call.size), np.complex64)), {}),
    "text": lambda call: ((call.logits, ["cat"] * fuzz.ROWS), {}),
    "integer logits": lambda call: ((Y((fuzz.ROWS, call.size)), call.labels), {}),
    "the other order": lambda call: ((np.eye(fuzz.ROWS, call.size, dtype=np.int32), np.asarray(call.logits)), {}),
    "an axis too far": lambda call: ((call.logits, call.labels), {"axis": 2}),
    "an axis of half": lambda call: ((call.logits, call.labels), {"axis": 0.5}),
    "numbers as mask": lambda call: ((call.logits, call.labels), {"where": Y(fuzz.ROWS)}),
    "a mask too long": lambda call: ((call.logits, call.labels), {"where": np.ones(fuzz.ROWS + 1, bool)}),
    "a weight of each row": lambda call: ((call.logits, call.labels), {"class_weights": Z(fuzz.ROWS + 3, np.float32)}),
    "smoothing above 1": lambda call: ((call.logits, call.labels), {"label_smoothing": 1.5}),
    "a switch": lambda call: ((call.logits, call.labels), {"class_weights": True}),
    "an unknown option": lambda call: ((call.logits, call.labels), {"reduction": "mean"}),
}


@examples(40)
@given(calls(regimes=("normal",)), st.sampled_from(sorted(SPOILT)), st.booleans())
def test_invalid_calls_name_function_and_argument(call, mistake, traced):
    arguments, options = SPOILT[mistake](call)
    assume(not options or {*call.case.takes(**options), "reduction"} >= {*options})
    assume(call.size > 1)
    run = call.case.call
    if traced and mistake not in ("text", "a switch", "an unknown option"):
        run = jax.jit(partial(run, **options))
        options = {}
    with pytest.raises((TypeError, ValueError), match=rf"^{call.case.loss.__name__}: .*`?\w+`?") as error:
        run(*arguments, **options)
    assert "jax/_src" not in str(error.value)
