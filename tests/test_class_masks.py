"""A mask of the classes and labels: shares of classes left out count nothing, for every kind of label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxloss
from tests import cases

CASES = [*cases.CLASSES, *cases.PROBABILITIES[:2]]
KINDS = ("ids", "onehot", "soft")
SIZE = 5


def run(case, logits, labels, **options):
    """Losses, gradient and, where there is one in closed form, the diagonal of the Hessian."""
    return (case.run_twice if case in cases.LOGITS else case.run)(logits, labels, **case.takes(**options))


def masks(rng, rows: int = 6, size: int = SIZE) -> np.ndarray:
    """Rows with any number of classes, the first with none, the second with one."""
    where = rng.integers(0, 2, (rows, size)).astype(bool)
    where[0], where[1] = False, np.arange(size) == 2
    return where


def same(got, expected) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), got, expected)


@cases.parametrize(cases.distinct(CASES))
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_a_mask_restricts_logits_and_labels_alike(case, kind, rng):
    """Each row is what it is with the classes impossible and no label on them; without a class it is 0."""
    logits, where = np.array(cases.logits_for(case, rng)), masks(rng)
    labels = np.array(cases.labels_for(case, rng, kind))
    options = {"class_weights": rng.uniform(0.5, 2, SIZE).astype(np.float32), "z_loss": np.float32(0.25)}
    options |= {"label_smoothing": np.float32(0.25)} if kind == "soft" else {}
    with jax.debug_nans(True):
        got = run(case, logits, labels, where=where, **options)
    shares = labels if kind == "soft" else np.eye(SIZE, dtype=np.float32)[labels]
    impossible = 0 if case.name == "probabilities" else -np.inf
    expected = run(case, np.where(where, logits, impossible), shares * where, **options)
    same([x[1:] for x in got], [np.where(where if x.ndim > 1 else True, x, 0)[1:] for x in expected])
    for x in got:
        np.testing.assert_array_equal(x[0], np.zeros_like(x[0]))


@pytest.mark.thin
@cases.parametrize(CASES)
def test_an_id_left_out_is_like_its_one_hot_row(case, rng):
    logits, where, ids = cases.logits_for(case, rng), masks(rng), np.array([0, 1, 2, 3, 4, 0], np.int32)
    where[2], where[3] = np.arange(SIZE) != 2, np.arange(SIZE) != 0
    by_ids = run(case, logits, ids, where=where)
    same(by_ids, run(case, logits, np.eye(SIZE, dtype=np.float32)[ids], where=where))
    assert by_ids[0][0] == by_ids[0][1] == by_ids[0][2] == 0 != by_ids[0][3]
    outside = run(case, logits, np.where(np.arange(6) < 4, -100, ids), where=where)[0]
    np.testing.assert_array_equal(np.isnan(outside), [False, True, True, True, False, False])


def test_a_mask_of_several_class_axes(rng):
    logits, where, ids = rng.normal(size=(6, 2, 3)).astype(np.float32), masks(rng, size=6), rng.integers(0, 6, 6)
    expected = jaxloss.softmax_focal_loss(logits.reshape(6, 6), ids, where=where)
    split = jaxloss.softmax_focal_loss(logits.transpose(1, 0, 2), ids, (0, 2), where.reshape(6, 2, 3).swapaxes(0, 1))
    np.testing.assert_array_equal(split, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_may_hold_anything(kind, rng):
    logits, labels, where = (
        np.array(cases.logits_for(None, rng)),
        np.array(cases.labels_for(None, rng, kind)),
        masks(rng),
    )
    clean = jaxloss.softmax_statistics(logits, labels, where=where)
    for rubbish in (np.nan, np.inf, -np.inf):
        dirty = np.where(where, labels, rubbish) if labels.ndim == 2 else np.where(where.any(1), labels, -100)
        got = jaxloss.softmax_statistics(np.where(where, logits, rubbish), dirty.astype(labels.dtype), where=where)
        jax.tree.map(np.testing.assert_array_equal, got, clean)


@pytest.mark.parametrize("loss", [jaxloss.softmax_cross_entropy, jaxloss.entmax_loss], ids=lambda f: f.__name__)
def test_a_mask_of_sharded_classes(loss, rng):
    logits, where, ids = rng.normal(size=(6, 8)).astype(np.float32), masks(rng, size=8), rng.integers(0, 8, 6)
    mesh = jax.make_mesh((4,), ("classes",), axis_types=(AxisType.Auto,))
    specs = (P(None, "classes"), P(), P(None, "classes"))

    def sharded(z, y, w):
        return jax.shard_map(
            lambda z, y, w: loss(z, y, where=w, axis_name="classes"), mesh=mesh, in_specs=specs, out_specs=P()
        )(z, y, w)

    losses = [lambda z: loss(z, ids, where=where), lambda z: sharded(z, ids, where)]
    same(*jax.jit(lambda z: [jaxloss.per_example_value_and_grad(of)(z) for of in losses])(logits))


def test_checkify_names_an_id_left_out():
    where = jnp.array([[True, False, True], [False, False, False]])

    def error(ids):
        step = jax.jit(lambda y: jaxloss.softmax_cross_entropy(jnp.zeros((2, 3)), y, where=where))
        return checkify.checkify(step, errors=checkify.user_checks)(jnp.array(ids))[0].get()

    message = error([1, 0])
    assert message is not None
    assert "`labels` must be ids of classes that `where` keeps in their row; got 1" in message
    assert error([2, 0]) is None  # a row without classes is left out
