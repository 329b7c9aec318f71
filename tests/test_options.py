"""Options crossed with each other against one oracle; an option switched off is the option absent, bit for bit."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from tests import cases, jaxprs, oracle

SIZE = 5
WEIGHTS = np.array([0.5, 1.0, 2.0, 0.0, 3.0], np.float32)
CLASSES = np.array([True, True, False, True, True])
MARGINS = np.array([0.5, -1.0, 0.0, 2.0, 0.75], np.float32)
WITH_MARGINS = [  # pairs that have margins beside them: each other option once
    ("class_weights", "classes"),
    ("label_smoothing", "axis"),
    ("z_loss", "rows"),
]
ON = {
    "class_weights": WEIGHTS,
    "label_smoothing": np.float32(0.25),
    "z_loss": np.float32(0.125),
    "classes": CLASSES,
    "rows": np.array([True, False, True, True, False, True]),
    "axis": 0,
}


def same(got, expected, exact: bool) -> None:
    """Bit for bit, or 2 units where programs differ.

    A neutral array (ones, all true) is in the program and cuts it into other loops, and XLA joins a product and a sum
    into one rounding where it meets both in a loop. Cross-entropy has no such sum.
    """
    if exact:
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_array_max_ulp(np.asarray(got), np.asarray(expected), maxulp=2)


@cases.parametrize(cases.distinct(cases.SOFTMAX))
@pytest.mark.parametrize("labels", [["ids"], ["onehot", "soft"]], ids="+".join)
@pytest.mark.parametrize("chosen", list(itertools.combinations(ON, 2)), ids="+".join)
def test_every_pair_of_options_against_the_oracle(case, labels, chosen, rng):
    if "classes" in chosen and "rows" in chosen:
        chosen = ("classes",)  # one `where`
    logits = np.array(cases.logits_for(case, rng))
    options = {key: ON[key] for key in chosen if key not in ("classes", "rows", "axis")}
    if chosen in WITH_MARGINS:
        options["label_margins"] = MARGINS
    exists = np.broadcast_to(CLASSES if "classes" in chosen else True, logits.shape)
    kept = ON["rows"] if "rows" in chosen else np.ones(len(logits), bool)
    if "classes" in chosen:
        options["where"] = exists
    if "rows" in chosen:
        options["where"] = kept

    run = jax.jit(jaxloss.per_example_value_and_grad(partial(case.call, axis=0 if "axis" in chosen else -1)))
    for kind in labels:
        given = np.array(cases.labels_for(case, rng, kind))
        if "classes" in chosen:
            given = np.where(given == 2, 1, given) if kind == "ids" else given * CLASSES
        exact = [exact_row(case, *row, options) for row in zip(logits, given, exists, kept, strict=True)]
        arguments = (logits, given)
        if "axis" in chosen:
            arguments = (logits.T, given if kind == "ids" else given.T)
        if "axis" in chosen and "classes" in chosen:
            options["where"] = exists.T
        value, gradient = run(*arguments, **options)
        gradient = gradient.T if "axis" in chosen else gradient
        np.testing.assert_allclose(value, [e[0] for e in exact], rtol=40 * 2.0**-23)
        # Shares of the label and of smoothing meet in one entry with either sign: absolute there.
        np.testing.assert_allclose(gradient, [e[1] for e in exact], rtol=80 * 2.0**-23, atol=16 * 2.0**-23)


def exact_row(case, logits, given, exists, kept, options: dict) -> tuple[float, list[float]]:
    weights, smoothing = options.get("class_weights"), float(options.get("label_smoothing", 0))
    u = oracle.shares(given, SIZE, exists, weights, smoothing)
    row = np.where(exists, logits, -np.inf)
    given = float(options.get("z_loss", 0))
    loss, gradient, _ = oracle.softmax_row(row, u, case.phi, case.value, given, margins=options.get("label_margins"))
    return float(loss) * kept, [float(g) * kept for g in gradient]


@pytest.mark.parametrize("kind", ["ids", "soft"])
@pytest.mark.parametrize("where", ["rows", "classes"])
def test_the_alias_is_the_same_program(kind, where, rng):
    """With every option, value, gradient and Hessian: so other tests may leave it out."""
    logits, labels = rng.normal(size=(SIZE, SIZE)).astype(np.float32), cases.labels_for(None, rng, kind, rows=SIZE)
    keep = ON["rows"][:SIZE] if where == "rows" else np.broadcast_to(CLASSES, logits.shape)
    options = {key: ON[key] for key in ("class_weights", "label_smoothing", "z_loss", "axis")} | {
        "label_margins": MARGINS
    }
    plain, alias = jaxloss.softmax_cross_entropy, jaxloss.softmax_cross_entropy_with_integer_labels

    def program(loss):
        run = partial(jaxloss.per_example_value_grad_hess(loss), where=keep, **options)
        text = str(jax.make_jaxpr(run)(logits, labels)).replace(alias.__name__, plain.__name__)
        return "".join(text.split())  # lines break by the length of names

    assert program(alias) == program(plain)


NUMBERS_OFF = [{"label_smoothing": 0}, {"z_loss": 0.0}, {"label_margins": 0}, {"class_weights": 1}]
ARRAYS_OFF = [
    {"class_weights": np.ones(SIZE, np.float32), "where": np.ones(6, bool)},
    {"label_smoothing": np.float32(0), "z_loss": np.float32(0), "where": np.ones((6, SIZE), bool)},
]


@cases.all_cases
@pytest.mark.parametrize("labels", ["ids", "soft"])
def test_switched_off_by_a_number_is_the_program_without_it(case, labels, rng):
    logits, labels = np.asarray(cases.logits_for(case, rng)), np.asarray(cases.labels_for(case, rng, labels))
    run = jaxloss.per_example_value_and_grad(case.call)
    program = str(jax.make_jaxpr(run)(logits, labels))
    for off in NUMBERS_OFF:
        if case.takes(**off) and not off.keys() & case.options.keys():
            assert str(jax.make_jaxpr(partial(run, **off))(logits, labels)) == program


@pytest.mark.optimized
@pytest.mark.thin
@cases.all_cases
@pytest.mark.parametrize("labels", ["ids", "soft"])
def test_switched_off_by_arrays_is_absent(case, labels, rng):
    # Not soft labels of multi-label losses: the parts of their gradients cancel.
    kind = "multihot" if labels == "soft" and case.multilabel else labels
    logits = np.asarray(cases.logits_for(case, rng, scale=8))
    labels = np.asarray(cases.labels_for(case, rng, kind))
    expected = case.run(logits, labels)
    for off in (case.takes(**off) for off in ARRAYS_OFF):
        absent = expected
        if case in cases.SOFTMAX and "label_smoothing" in off and labels.ndim == 1:
            absent = case.run(logits, np.eye(SIZE, dtype=np.float32)[labels])  # smoothing makes ids into rows
        for got, wanted in zip(case.run(logits, labels, **off), absent, strict=True):
            same(got, wanted, exact=case.phi is oracle.cross_entropy)


@cache
def program(loss):
    return jax.jit(jaxloss.per_example_value_and_grad(loss))


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("loss", "plain", "off"),
    [
        (jaxloss.softmax_focal_loss, jaxloss.softmax_cross_entropy, {"gamma": 0}),
        (jaxloss.softmax_focal_loss, jaxloss.poly_loss_cross_entropy, {"gamma": 0, "epsilon": 2.0}),
        (jaxloss.poly_loss_cross_entropy, jaxloss.softmax_cross_entropy, {"epsilon": 0.0}),
        (jaxloss.generalized_cross_entropy, jaxloss.softmax_cross_entropy, {"q": 0}),
        (jaxloss.sigmoid_focal_loss, jaxloss.sigmoid_binary_cross_entropy, {"gamma": 0.0}),
        (jaxloss.sigmoid_binary_cross_entropy, jaxloss.sigmoid_binary_cross_entropy, {"pos_weight": 1}),
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_neutral_parameters_leave_cross_entropy(loss, plain, off, traced, rng):
    logits = np.asarray(cases.logits_for(None, rng, scale=30))
    run = (
        partial(program(loss), **{k: np.float32(v) for k, v in off.items()})
        if traced
        else program(partial(loss, **off))
    )
    for kind in ("ids", "onehot"):
        labels = np.asarray(cases.labels_for(None, rng, kind))
        for got, expected in zip(run(logits, labels), program(plain)(logits, labels), strict=True):
            np.testing.assert_array_equal(got, expected)


@cases.softmax_cases
def test_switched_off_is_not_in_the_program(case, rng):
    logits, ids = cases.logits_for(case, rng), cases.labels_for(case, rng)

    def count(**options):
        program = jax.make_jaxpr(lambda z: case.call(z, ids, **options))(logits)
        return len(list(jaxprs.equations(program)))

    assert count(label_smoothing=0.0, z_loss=0, class_weights=None, where=None) == count()
    ids = jax.nn.one_hot(ids, logits.shape[1])
    assert count(label_smoothing=0.1) > count()


@cases.parametrize([case for case in cases.SOFTMAX if case.parameter])
def test_parameters_per_class(case, rng):
    logits, ids = cases.logits_for(case, rng), cases.labels_for(case, rng)
    each = jnp.asarray(rng.uniform(0.25, 0.75, SIZE), jnp.float32)
    per_class = case.loss(logits, ids, **{case.parameter: each})
    for i, c in enumerate(np.asarray(ids)):
        np.testing.assert_allclose(
            per_class[i], case.loss(logits[i], ids[i], **{case.parameter: each[c]}), rtol=2.0**-22
        )
    np.testing.assert_allclose(
        case.loss(logits, jax.nn.one_hot(ids, SIZE), **{case.parameter: each}), per_class, rtol=2.0**-19
    )


def test_smoothing_counts_the_classes_that_exist(rng):
    """torch#73205, optax.smooth_labels: neither rows left out nor classes left out take a share."""
    logits = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    ids = jnp.array([0, 1, 2, 0])
    padded = jnp.concatenate([logits, jnp.full((4, 2), -jnp.inf)], 1)
    run = jaxloss.per_example_value_and_grad(jaxloss.softmax_cross_entropy)
    value, gradient = run(logits, ids, label_smoothing=0.3)
    padded_value, padded_gradient = run(padded, ids, label_smoothing=0.3)
    np.testing.assert_allclose(padded_value, value, rtol=1e-6)
    np.testing.assert_allclose(padded_gradient[:, :3], gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(padded_gradient[:, 3:], np.zeros((4, 2)))


def test_margins_in_a_linear_layer_swept_and_differentiated(rng):
    """One program for a grid of margins, in chunks of rows: each the dense loss of lowered logits."""
    hidden, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((6, 3), (3, SIZE)))
    ids, counts, grid = cases.labels_for(None, rng), jnp.array([40, 20, 9, 3, 0]), jnp.array([0.0, 0.5, 4.0])

    def chunked(largest, h):
        loss = partial(jaxloss.softmax_focal_loss, label_margins=jaxloss.balanced_label_margins(counts, largest))
        return jaxloss.linear_loss(loss, h, kernel, ids, chunk_rows=4).mean()

    def dense(largest, h):
        margins = largest * (3 / jnp.array([40, 20, 9, 3, 3.0])) ** 0.25
        return jnp.mean(jaxloss.softmax_focal_loss(h @ kernel - margins[None] * jax.nn.one_hot(ids, SIZE), ids))

    got, expected = (
        jax.jit(jax.vmap(jax.value_and_grad(f, (0, 1)), (0, None)))(grid, hidden) for f in (chunked, dense)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), got, expected)


def test_weights_that_start_late_compile_once(rng):
    """Deferred re-weighting: a traced epoch chooses the weights, and taus come of one program, too."""
    logits, ids = cases.logits_for(None, rng), cases.labels_for(None, rng)
    traces = []

    @jax.jit
    def gradient(epoch, tau):
        traces.append(epoch)
        adjusted = logits + jaxloss.logit_adjustments(jnp.arange(1, SIZE + 1), tau)[None]
        weights = jnp.where(epoch < 2, 1.0, jnp.asarray(WEIGHTS))
        return jax.grad(lambda z: jnp.sum(jaxloss.softmax_cross_entropy(z, ids, class_weights=weights)))(adjusted)

    for epoch, tau in enumerate((0.0, 0.5, 1.0, 2.0)):
        prior = tau * np.log(np.arange(1, SIZE + 1) / np.arange(1, SIZE + 1).sum())
        expected = jax.nn.softmax(logits + jnp.asarray(prior, jnp.float32)[None]) - jax.nn.one_hot(ids, SIZE)
        weights = np.ones(6) if epoch < 2 else WEIGHTS[np.asarray(ids)]
        np.testing.assert_allclose(gradient(epoch, tau), expected * weights[:, None], rtol=1e-4, atol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("label", [1, [0.0, 1.0, 0.0]])
def test_labels_smoothed_away_may_lie_on_a_class_that_cannot_be(label):
    """A traced smoothing of 1 leaves the mean over the classes that exist."""
    z = jnp.array([0.5, -jnp.inf, 2.0])
    found = jaxloss.softmax_cross_entropy(z, jnp.asarray(label), label_smoothing=jnp.float32(1))
    odd = 0.5 - 2.0
    np.testing.assert_allclose(found, (np.log1p(np.exp(odd)) + np.log1p(np.exp(-odd))) / 2, rtol=1e-6)
