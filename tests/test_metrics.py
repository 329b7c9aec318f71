"""Metrics: scikit-learn's numbers, case by case, and the contract of the library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn
import sklearn.metrics
from jax.experimental import checkify

import jaxloss
from jaxloss import metrics
from jaxloss.metrics import hamming_loss, label_ranking_loss, zero_one_loss
from tests import jaxprs
from tests.selection import EXHAUSTIVE

EPS = 2.0**-23
CASES = 10_000 if EXHAUSTIVE else 2_000
each = pytest.mark.parametrize("metric", [hamming_loss, zero_one_loss, label_ranking_loss], ids=lambda f: f.__name__)


@pytest.fixture(autouse=True)
def fast_scikit_learn():
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        yield


def inputs(metric, rng, rows: int, size: int = 6):
    """Scores with many ties, or 0/1 predictions that are often all right; labels with degenerate rows."""
    labels = rng.integers(0, 2, (rows, size)).astype(np.int32)
    labels[::7], labels[1::7] = 0, 1
    if metric is label_ranking_loss:
        return rng.integers(-2, 3, (rows, size)).astype(np.float32) / 2, labels
    return np.where(rng.random((rows, size)) < 0.1, 1 - labels, labels), labels


@each
def test_scikit_learn_in_thousands_of_cases(metric, rng):
    first, labels = inputs(metric, rng, CASES)
    got = np.asarray(metric(first, labels))
    oracle = getattr(sklearn.metrics, metric.__name__)
    rows = 1 if metric is label_ranking_loss else 4  # in one call: scikit-learn is slow
    expected = [oracle(labels[i : i + rows], first[i : i + rows]) for i in range(0, CASES, rows)]
    assert len(set(expected)) >= 5
    np.testing.assert_allclose(got.reshape(CASES // rows, -1).mean(1), expected, rtol=EPS, atol=EPS / 4)
    np.testing.assert_allclose(jaxloss.mean(metric(first, labels)), oracle(labels, first), rtol=1e-6)


@each
def test_scikit_learn_with_rows_left_out(metric, rng):
    first, labels = inputs(metric, rng, 96)
    where = rng.random(96) < 0.5
    dirty, dirty_labels = first.astype(np.float32), labels.astype(np.float32)
    dirty[~where], dirty_labels[~where] = np.nan, np.nan
    got = metric(dirty, dirty_labels, where=where)
    assert not np.asarray(got)[~where].any()
    kept = np.broadcast_to(where[:, None], got.shape) if metric is hamming_loss else where
    expected = getattr(sklearn.metrics, metric.__name__)(labels[where], first[where])
    np.testing.assert_allclose(jaxloss.mean(got, kept), expected, rtol=1e-6)


@each
def test_unknown_labels_are_absent(metric, rng):
    first, labels = inputs(metric, rng, 96)
    known = rng.random(labels.shape) < 0.7
    dirty = np.where(known, first, np.nan).astype(np.float32)
    got = np.asarray(metric(dirty, np.where(known, labels, np.nan).astype(np.float32), where=known))
    oracle = getattr(sklearn.metrics, metric.__name__)
    if metric is hamming_loss:
        np.testing.assert_allclose(jaxloss.mean(got, known), oracle(labels[known], first[known]), rtol=1e-6)
        return
    for i in range(96):
        row = labels[i : i + 1, known[i]]
        expected = oracle(row, first[i : i + 1, known[i]]) if row.shape[1] > 1 else 0
        np.testing.assert_allclose(got[i], expected, rtol=EPS)


@pytest.mark.parametrize(
    "dtypes", [(np.int32, np.int32), (np.int32, np.uint8), (np.int64, np.int32), (np.uint32, np.int32)]
)
def test_class_ids(dtypes, rng):
    predictions, labels = (rng.integers(0, 3, 200).astype(d) for d in dtypes)
    expected = (predictions != labels).astype(np.float32)
    np.testing.assert_array_equal(hamming_loss(predictions, labels), expected)
    wrong = zero_one_loss(predictions, labels, axis=None)
    np.testing.assert_array_equal(wrong, expected)
    np.testing.assert_allclose(jaxloss.mean(wrong), sklearn.metrics.zero_one_loss(labels, predictions), rtol=1e-6)
    np.testing.assert_allclose(jaxloss.mean(wrong), sklearn.metrics.hamming_loss(labels, predictions), rtol=1e-6)
    where = labels > 0
    kept = sklearn.metrics.zero_one_loss(labels[where], predictions[where])
    got = zero_one_loss(predictions, labels, axis=None, where=where)
    np.testing.assert_allclose(jaxloss.mean(got, where), kept, rtol=1e-6)
    assert zero_one_loss(predictions[0], labels[0], axis=None).shape == ()


def test_large_class_ids_keep_every_digit(x64):
    ids = np.array([2**24, 2**31 - 2, 2**53, 7], np.int64)
    np.testing.assert_array_equal(hamming_loss(ids + np.array([1, 1, 1, 0]), ids), [1, 1, 1, 0])
    np.testing.assert_array_equal(hamming_loss(np.array([2**32 + 1]), np.array([1])), [1])


@each
def test_ids_of_one_relevant_label(metric, rng):
    first, _ = inputs(metric, rng, 96)
    ids = rng.integers(0, 6, 96)
    expected = metric(first, np.eye(6)[ids].astype(np.int32))
    np.testing.assert_array_equal(metric(first, ids), expected)
    got = np.asarray(metric(first, np.where(np.arange(96) < 2, [-1, 6] * 48, ids)))
    assert np.isnan(got[:2]).all()
    np.testing.assert_array_equal(got[2:], expected[2:])


@each
def test_label_and_prediction_dtypes(metric, rng):
    first, labels = inputs(metric, rng, 96)
    expected = metric(first, labels)
    assert expected.dtype == jnp.float32
    for dtype in (jnp.bool_, jnp.uint8, jnp.bfloat16):
        np.testing.assert_array_equal(metric(first, jnp.asarray(labels).astype(dtype)), expected)
    for dtype in (jnp.bfloat16,) if metric is label_ranking_loss else (jnp.bool_, jnp.int8, jnp.bfloat16):
        np.testing.assert_array_equal(metric(jnp.asarray(first).astype(dtype), labels), expected)


@each
def test_nan_is_undefined(metric, rng):
    first, labels = inputs(metric, rng, 96)
    first = first.astype(np.float32)
    expected = np.asarray(metric(first, labels))
    first[0, 1] = np.nan
    got = np.asarray(metric(first, labels))
    np.testing.assert_array_equal(got[1:], expected[1:])
    assert np.isnan(got[0, 1] if metric is hamming_loss else got[0])


@each
def test_transformations_and_axes(metric, rng):
    first, labels = map(jnp.asarray, inputs(metric, rng, 96))
    expected = metric(first, labels)
    rows = first if metric is label_ranking_loss else first > 0  # booleans: integers of one axis could be class ids
    np.testing.assert_array_equal(jax.vmap(metric)(rows, labels > 0), expected)
    np.testing.assert_array_equal(jax.jit(metric)(first, labels), expected)
    turned = metric(first.T, labels.T, axis=0)
    np.testing.assert_array_equal(turned.T, expected)
    empty = metric(jnp.zeros((0, 6)), jnp.zeros((0, 6)))
    assert jaxloss.mean(empty) == 0
    with jax.debug_nans(True):
        value, gradient = jax.value_and_grad(lambda z: jnp.sum(metric(z, labels)))(first.astype(jnp.float32))
    np.testing.assert_array_equal(value, jnp.sum(expected))
    np.testing.assert_array_equal(gradient, np.zeros((96, 6)))


@each
@pytest.mark.parametrize("spec", [("data", None), ("data", "model")], ids=["rows", "both"])
def test_meshes(metric, spec, rng):
    first, labels = map(jnp.asarray, inputs(metric, rng, 96, 8))
    axes = {"axis_types": (jax.sharding.AxisType.Explicit,) * 2, "devices": jax.devices()[:4]}
    mesh = jax.make_mesh((2, 2), ("data", "model"), **axes)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    with jax.set_mesh(mesh):
        parts = [jax.device_put(x, sharding) for x in (first, labels)]
        got = metric(*parts)
        sorts = metric is label_ranking_loss and spec[1]  # and brings the classes of a row together
        assert sorts or "all-gather" not in jax.jit(metric).lower(*parts).compile().as_text()
    assert got.sharding.spec[0] == "data"
    np.testing.assert_array_equal(got, metric(first, labels))


def test_no_float64_for_float32_scores(x64, rng):
    scores, labels = map(jnp.asarray, inputs(label_ranking_loss, rng, 96))
    assert label_ranking_loss(scores, labels).dtype == jnp.float32
    assert label_ranking_loss(scores.astype(jnp.float64), labels).dtype == jnp.float64
    program = jax.make_jaxpr(label_ranking_loss)(scores, labels)
    assert not [e for e in jaxprs.equations(program) for x in e.outvars if x.aval.dtype == jnp.float64]
    assert hamming_loss(labels, labels.astype(jnp.int64)).dtype == jnp.float32


def test_infinite_scores_are_ordered():
    inf = np.inf
    scores = np.array([[inf, 2, -inf], [-inf, 0, 1], [inf, inf, 0], [-inf, -inf, -inf]], np.float32)
    labels = np.tile([1, 0, 0], (4, 1))
    np.testing.assert_array_equal(label_ranking_loss(scores, labels), [0, 1, 0.5, 1])
    known = np.tile([True, False, True], (4, 1))
    np.testing.assert_array_equal(label_ranking_loss(scores, labels, where=known), [0, 1, 0, 1])
    zeros = np.array([[0.0, -0.0], [-0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(label_ranking_loss(zeros, np.tile([1, 0], (2, 1))), [1, 1])


def test_ten_thousand_labels(rng):
    """Batch 64 in a few arrays [64, 10000]; exact counts of pairs."""
    z = jax.ShapeDtypeStruct((64, 10_000), jnp.float32)
    memory = jax.jit(label_ranking_loss).lower(z, z).compile().memory_analysis().temp_size_in_bytes
    assert memory < 6 * 64 * 10_000 * 4
    scores = rng.integers(0, 500, (2, 10_000)).astype(np.float32)
    labels = rng.integers(0, 2, scores.shape)
    expected = [sklearn.metrics.label_ranking_loss(labels[i : i + 1], scores[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(label_ranking_loss(scores, labels), expected, rtol=4 * EPS)


Z, T, IDS = jnp.zeros((8, 10)), jnp.zeros((8, 10), jnp.int32), jnp.zeros(8, jnp.int32)
BAD = {
    "ids or labels": (lambda: zero_one_loss(IDS, IDS), ValueError, r"`predictions` of one axis.*axis=None.*int32\[8\]"),
    "integer scores": (lambda: label_ranking_loss(T, T), TypeError, r"`scores` must be floating point; got int32"),
    "swapped": (lambda: label_ranking_loss(IDS, Z), TypeError, r"label_ranking_loss: `scores` must be floating point"),
    "shape": (lambda: hamming_loss(T, T[:, :3]), ValueError, r"hamming_loss: `labels`.*`predictions`.*int32\[8,3\]"),
    "where": (lambda: zero_one_loss(T, T, where=T), TypeError, r"zero_one_loss: `where` must be boolean"),
    "axis": (lambda: label_ranking_loss(Z, T, axis=None), ValueError, r"`scores` must have an axis of at least one"),
    "axis out of range": (lambda: hamming_loss(T, T, axis=2), ValueError, r"hamming_loss: `axis` 2 is out of range"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(bad):
    call, error, message = BAD[bad]
    with pytest.raises(error, match=message):
        call()
    with pytest.raises(error, match=message):
        jax.jit(call)()


@each
def test_debug_checks(metric):
    def user_error(labels):
        first = Z if metric is label_ranking_loss else T
        return checkify.checkify(jax.jit(metric), errors=checkify.user_checks)(first, labels)[0].get()

    assert user_error(IDS) is None
    message = user_error(IDS.at[2].set(10)) or ""
    assert metric.__name__ in message
    assert "[0, 10)" in message


def test_names_are_scikit_learns():
    for metric in (hamming_loss, zero_one_loss, label_ranking_loss):
        assert getattr(metrics, metric.__name__) is metric
        assert "(y_true, y_" in (metric.__doc__ or "")
