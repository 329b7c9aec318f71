"""Expected costs, the multi-class hinge and ordered classes: what the registry does not ask."""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from jax.experimental import checkify
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import hinge_loss

import jaxloss
from tests import cases, oracle

EPS = 2.0**-23
SIZE = 6
Z, Y = jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)
COST, HINGE, ORDERED = jaxloss.expected_cost_loss, jaxloss.multiclass_hinge_loss, jaxloss.ordered_logistic_loss


def distances(size: int = SIZE) -> np.ndarray:
    return np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(np.float32)


TABLES = {
    "distance": distances(),
    "square": distances() ** 2,
    "any": np.random.default_rng(3).uniform(0, 5, (SIZE, SIZE)).astype(np.float32),
    "near one another": (100 + distances() / 64).astype(np.float32),
}
ROWS = {key: rows for key, rows in cases.structured_rows(np.random.default_rng(5), SIZE).items() if key != "masked"}


@pytest.mark.optimized
@pytest.mark.parametrize("name", TABLES)
def test_any_costs_keep_the_promise(name):
    """4 + d units of the last place, of the value, and of the terms of each entry of the gradient, of either sign.

    Their sum is as exact as if each logit had been moved by no more than its own rounding.
    """
    table = TABLES[name]
    run = jax.jit(jaxloss.per_example_value_grad_hess(partial(jaxloss.expected_cost_loss, costs=table)))
    for regime, (logits, ids) in ROWS.items():
        for labels in (ids, np.eye(SIZE, dtype=np.float32)[ids]):
            for z, y, *got in zip(logits, ids, *map(np.asarray, run(logits, labels)), strict=True):
                e = [mp.exp(mp.mpf(float(x))) for x in z]
                p, k = [x / mp.fsum(e) for x in e], [mp.mpf(float(x)) for x in table[y]]
                loss = mp.fsum(a * b for a, b in zip(p, k, strict=True))
                differences = [mp.fsum(p[c] * (k[j] - k[c]) for c in range(SIZE)) for j in range(SIZE)]
                terms = [mp.fsum(p[c] * abs(k[j] - k[c]) for c in range(SIZE)) for j in range(SIZE)]
                bound = (4 + np.ptp(z)) * EPS
                assert abs(float(got[0]) - loss) <= bound * loss + 1e-36, (regime, z)
                for j in range(SIZE):
                    room = 2 * bound * p[j] * terms[j] + mp.mpf(1e-36)
                    assert abs(float(got[1][j]) - p[j] * differences[j]) <= room, (regime, z, j)
                    exact = p[j] * differences[j] * (1 - 2 * p[j])
                    assert abs(float(got[2][j]) - exact) <= room, (regime, z, j)


def test_costs_of_0_and_1_are_those_of_generalized_cross_entropy(rng):
    logits, costs = cases.logits_for(None, rng), 1 - np.eye(5, dtype=np.float32)
    pair = partial(COST, costs=costs), partial(jaxloss.generalized_cross_entropy, q=1.0)
    both = jax.jit(lambda z, t: [jaxloss.per_example_value_grad_hess(loss)(z, t) for loss in pair])
    for kind in ("ids", "soft"):
        found = both(logits, cases.labels_for(None, rng, kind))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


@pytest.mark.optimized
def test_a_right_and_a_wrong_row_keep_their_digits():
    """As it stands, k_j - L would be 0 for both labels of the second row: the costs of its class and of the mean."""
    run = jax.jit(jaxloss.per_example_value_and_grad(partial(jaxloss.expected_cost_loss, costs=1 - jnp.eye(3))))
    value, gradient = run(jnp.array([[40.0, 0.0, 0.0], [40.0, 0.0, 0.0]]), jnp.array([0, 1]))
    e = np.exp(-40.0)
    np.testing.assert_allclose(value, [2 * e, 1], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-2 * e, e, e], [e, -e, e * e]], rtol=1e-5)


@pytest.mark.optimized
def test_tied_wrong_classes_keep_their_digits():
    """They share all but e of the probability; the mean of their one cost, as it rounds, may be off by more than e."""
    e = np.exp(np.float64(-30))

    @jax.jit
    def gradient(logits, cost):
        costs = cost * (1 - jnp.eye(len(logits)))
        return jax.grad(lambda z: jaxloss.expected_cost_loss(z, jnp.array(0), costs=costs))(logits)

    for ties in (3, 5, 6, 7):
        logits = np.float32([-30] + [0] * ties)
        for cost in np.float32([0.3, 0.7, 1.1, 1.3]):
            expected = cost * e / ties * np.append(-1, np.full(ties, 1 / ties))
            np.testing.assert_allclose(gradient(logits, cost), expected, rtol=34 * EPS)


def test_the_expected_distance_of_a_model_of_scikit_learn(rng):
    x, y = rng.normal(size=(60, 3)), rng.integers(0, SIZE, 60)
    model = LogisticRegression(max_iter=200).fit(x, y)
    p, logits = model.predict_proba(x), model.decision_function(x).astype(np.float32)
    expected = (p * distances()[y]).sum(1)
    np.testing.assert_allclose(jaxloss.expected_cost_loss(logits, y, costs=distances()), expected, rtol=1e-5)
    soft = rng.dirichlet(np.ones(SIZE), 60).astype(np.float32)
    got = jaxloss.expected_cost_loss(logits, soft, costs=distances().astype(int))
    np.testing.assert_allclose(got, np.einsum("ny,yc,nc->n", soft, distances(), p), rtol=1e-5)
    hinge = jaxloss.mean(jaxloss.multiclass_hinge_loss(logits, y))
    np.testing.assert_allclose(hinge, hinge_loss(y, model.decision_function(x)), rtol=1e-5)


@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_options_and_derivatives_by_costs_and_labels(kind, rng):
    """Weights are of the true class, smoothing is over the classes that exist."""
    logits, labels = cases.logits_for(None, rng, size=SIZE), cases.labels_for(None, rng, kind, size=SIZE)
    where = rng.random(logits.shape) < 0.7
    where[:, 0], where[0] = True, False
    weights = rng.uniform(0.5, 2, SIZE).astype(np.float32)
    table = TABLES["any"]

    def plain(z, t, w, costs, smoothing):
        t = jax.nn.one_hot(t, SIZE) if kind == "ids" else t
        exist = where.any(1)
        t = jnp.where(where, (1 - smoothing) * t + smoothing / jnp.maximum(where.sum(1, keepdims=True), 1), 0)
        p = jnp.where(where, jax.nn.softmax(jnp.where(where, z, -1e9)), 0)
        return jnp.where(exist, jnp.einsum("ny,yc,nc->n", t * w[None], costs, p), 0)

    def ours(z, t, w, costs, smoothing):
        return jaxloss.expected_cost_loss(z, t, where=where, costs=costs, class_weights=w, label_smoothing=smoothing)

    given = logits, labels, jnp.asarray(weights), jnp.asarray(table), jnp.float32(0.25)
    by = (0, 2, 3, 4) if kind == "ids" else (0, 1, 2, 3, 4)

    @partial(jax.jit, static_argnums=0)
    def derivatives(loss, *given):
        return loss(*given), jax.grad(lambda *x: jnp.sum(jnp.sin(loss(*x))), by)(*given)

    with jax.numpy_dtype_promotion("standard"):
        found = [derivatives(loss, *given) for loss in (ours, plain)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), *found)


def test_of_a_gather_there_is_no_scatter_and_other_costs_need_no_other_program(rng):
    logits, ids = cases.logits_for(None, rng, size=SIZE), cases.labels_for(None, rng, size=SIZE)
    traces = []

    @jax.jit
    def by_costs(costs):
        traces.append(1)
        return jax.grad(lambda c: jnp.sum(jaxloss.expected_cost_loss(logits, ids, costs=c)))(costs)

    p, onehot = jax.nn.softmax(logits), np.eye(SIZE)[ids]
    for table in TABLES.values():
        np.testing.assert_allclose(by_costs(jnp.asarray(table)), onehot.T @ p, rtol=1e-5, atol=1e-7)
    assert len(traces) == 1
    assert "scatter" not in by_costs.lower(jnp.asarray(table)).as_text()


def test_a_table_is_a_constant_or_an_argument_of_a_layer(rng):
    hidden, kernel = (rng.normal(size=s).astype(np.float32) for s in ((9, 4), (4, SIZE)))
    ids = rng.integers(0, SIZE, 9)

    def direct(h, k, c):
        return jnp.sum(jaxloss.expected_cost_loss(h @ k, ids, costs=c))

    def constant(h, k, c):
        return jaxloss.linear_loss(partial(jaxloss.expected_cost_loss, costs=c), h, k, ids, chunk_rows=4).total

    def argument(h, k, c):
        def loss(z, y, c):
            return jaxloss.expected_cost_loss(z, y, costs=c)

        return jaxloss.linear_loss(loss, h, k, ids, loss_args=(c,), chunk_rows=4).total

    every = jax.jit(lambda *x: [jax.value_and_grad(f, (0, 1, 2))(*x) for f in (direct, constant, argument)])
    found = every(hidden, kernel, TABLES["any"])
    for other in found[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), other, found[0])


def error_of(function, *arguments) -> str:
    return checkify.checkify(jax.jit(function), errors=checkify.user_checks)(*arguments)[0].get() or ""


def test_checkify_names_costs_and_cutpoints():
    good, bad = jnp.ones((3, 3)), jnp.ones((3, 3)).at[1, 2].set(-2)
    assert error_of(lambda c: COST(Z, Y, costs=c), good) == ""
    assert "`costs` must be finite and >= 0; got -2.0" in error_of(lambda c: COST(Z, Y, costs=c), bad)
    assert error_of(lambda c: ORDERED(Z[:, 0], Y, c), jnp.arange(2.0)) == ""
    for steps in (jnp.zeros(2), jnp.array([1.0, 0.5])):
        assert "`cutpoints` must ascend; got a step of" in error_of(lambda c: ORDERED(Z[:, 0], Y, c), steps)
    assert "class ids in [0, 3)" in error_of(lambda y: ORDERED(Z[:, 0], y, jnp.arange(2.0)), Y.at[1].set(3))


def test_ties_at_the_top_share_the_slope_of_the_hinge():
    logits = np.float32(
        [[1.0, 1, 1, 0], [2, 1, 1, 1], [1, 0, -1, -1], [1, 0.5, 0.5, -1], [0.5, 0.5, 0.5, 1], [0.5, 1, 0.5, -3]]
    )
    ids = np.array([0, 0, 0, 0, 3, 1])
    third = 1 / 3
    expected = np.zeros((6, 4))
    expected[0] = expected[3] = [-1, 0.5, 0.5, 0]
    expected[4:] = [[third, third, third, -1], [0.5, -1, 0.5, 0]]
    for labels in (ids, np.eye(4, dtype=np.float32)[ids]):
        value, gradient = jaxloss.per_example_value_and_grad(HINGE)(logits, labels)
        np.testing.assert_array_equal(value, [1, 0, 0, 0.5, 0.5, 0.5])  # the kink at a lead of exactly 1
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    soft, every = np.float32([[0.5, 0.25, 0.0, 0.25]] * 6), np.tile(np.arange(4), (6, 1))

    @jax.jit
    def gradients(z, margin):
        by_labels = jax.grad(lambda z: jnp.sum(HINGE(z, soft)))(z)
        by_ids = jax.grad(lambda z: jnp.sum(soft * jax.vmap(lambda y: HINGE(z, y), 1, 1)(every)))(z)
        return (by_labels, by_ids), jax.grad(lambda m: jnp.sum(HINGE(z, ids, margin=m)))(margin)

    pair, by_margin = gradients(logits, np.float32(1))
    np.testing.assert_allclose(*pair, atol=1e-7)
    assert by_margin == 4


@pytest.mark.optimized
def test_a_hinge_near_its_kink_keeps_its_digits():
    """1 + (z_m - z_y) from the rounded difference is off by as much as the hinge itself."""
    ahead = np.float32([1 - 2.0**-24, 1 - 2.0**-22, 1 + 2.0**-23])
    logits = np.stack([np.float32(0.3) + 0 * ahead, np.float32(0.3) + ahead], -1).astype(np.float32)
    logits = np.concatenate([logits, [[-0.7, 0.30000001], [1e-9, 1.0], [3e-8, 1.0]]]).astype(np.float32)
    got = HINGE(logits, np.ones(len(logits), np.int32))
    wide = logits.astype(np.float64)
    np.testing.assert_allclose(got, np.maximum(0, 1 + wide[:, 0] - wide[:, 1]), rtol=1e-6)


# Scores near and far, at cutpoints and between; cutpoints far apart and nearly equal.
CUTPOINTS = np.float32([-3.0, -1.0, -0.99999, 0.0, 1e-6, 30.0])
SCORES = np.float32([-80.0, -12.0, -1.0, -0.999995, 0.0, 3e-7, 0.25, 15.0, 29.0, 31.0, 75.0, 1e4])


def exact_ordered(score, label: int, cutpoints) -> tuple:
    """-log P and its derivatives by the score and by the two cutpoints around the class, in textbook form."""
    f = mp.mpf(float(score))
    edges = [-mp.inf, *(mp.mpf(float(x)) for x in cutpoints), mp.inf]

    def sigmoid(x):
        return mp.mpf(int(x > 0)) if mp.isinf(x) else 1 / (1 + mp.exp(-x))

    upper, lower = (sigmoid(edges[label + k] - f) for k in (1, 0))
    slope, other = upper * (1 - upper), lower * (1 - lower)
    p = upper - lower
    # Of the score also by how much the rounding of the arguments themselves moves its derivative.
    nearest = max(abs(x) for x in (f, *edges[label : label + 2]) if not mp.isinf(x))
    bend = upper * (1 - upper) + lower * (1 - lower)
    return -mp.log(p), (slope - other) / p, -slope / p, other / p, bend * nearest * EPS


@pytest.mark.optimized
def test_ordered_classes_keep_their_digits_near_and_far():
    size = len(CUTPOINTS) + 1
    f, y = (x.reshape(-1) for x in np.meshgrid(SCORES, np.arange(size), indexing="ij"))
    onehot = np.eye(size, dtype=np.float32)[y]

    def derivatives(loss):
        def one(f, t, cutpoints):
            return jax.value_and_grad(loss, (0, 2))(f, t, cutpoints)

        return jax.jit(jax.vmap(one, in_axes=(0, 0, None)))

    exact = []
    for row in zip(f, y, strict=True):
        with mp.workdps(9000 if row[0] > 1000 else 250):  # sigmoid(1e4) is 1 - 1e-4343
            exact.append(exact_ordered(*row, CUTPOINTS))
    for labels in (y, onehot):
        value, (by_score, by_cutpoint) = derivatives(ORDERED)(f, labels, CUTPOINTS)
        for i, (loss, slope, upper, lower, moved) in enumerate(exact):
            bound = 4 + np.abs(CUTPOINTS - f[i]).max()
            expected = [mp.mpf(0)] * (size - 1)
            if y[i] < size - 1:
                expected[y[i]] += upper
            if y[i] > 0:
                expected[y[i] - 1] += lower
            assert oracle.ulp_error(value[i], [loss])[0] <= bound, (f[i], y[i], value[i], loss)
            error = abs(float(by_score[i]) - slope)
            assert error <= bound * EPS * abs(slope) + moved + 1e-36, (f[i], y[i], by_score[i], slope)
            assert oracle.ulp_error(by_cutpoint[i], expected).max() <= bound, (f[i], y[i], by_cutpoint[i], expected)


def test_ordered_classes_at_the_edges(rng):
    cutpoints, ids = np.float32([-1.0, 0.5]), np.array([0, 1, 2, 1, 5, -1])
    scores = rng.normal(size=6).astype(np.float32)
    where = (ids >= 0) & (ids < 3)
    loss = partial(ORDERED, cutpoints=cutpoints)

    @jax.jit
    def run(scores, cutpoints):
        every = jaxloss.per_example_value_grad_hess(loss)(scores, ids), jax.vmap(jax.hessian(loss))(scores, ids)
        return every, jax.value_and_grad(lambda c, s: jnp.sum(ORDERED(s, ids % 5, c, where)), (0, 1))(cutpoints, scores)

    (found, hessian), clean = run(scores, cutpoints)
    for x in found:
        np.testing.assert_array_equal(np.isnan(x), [False] * 4 + [True] * 2)
    np.testing.assert_allclose(found[2], hessian, rtol=1e-5)
    dirty = run(np.where(where, scores, np.float32(np.inf)), cutpoints)[1]
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)

    weights, one_cutpoint = np.float32([1, 0, 1]), np.float32([0.25])
    tied, falling = np.float32([1.0, 1.0]), np.float32([1.0, 0.5])
    zeros, every_class = np.zeros(3, np.float32), np.arange(3)
    infinite, soft = np.float32([np.inf, np.inf, -np.inf, -np.inf]), np.float32([[0.0, 0.5, 0.5]])

    @jax.jit
    def edges(infinite):
        return {
            "infinite": jaxloss.per_example_value_and_grad(ORDERED)(infinite, np.array([2, 1, 0, 1]), cutpoints),
            "soft": ORDERED(infinite[:1], soft, cutpoints),
            "soft, weighted": ORDERED(infinite[:1], soft, cutpoints, class_weights=weights),
            "tied": ORDERED(zeros, every_class, tied),
            "falling": ORDERED(zeros, every_class, falling),
            "by row": jax.vmap(jax.value_and_grad(ORDERED, 2), (0, 0, None))(zeros, np.eye(3, dtype=np.float32), tied),
            "no weight": ORDERED(zeros[:1], np.array([1]), tied, class_weights=weights),
            "half": ORDERED(zeros.astype(jnp.bfloat16), every_class, cutpoints),
            "one cutpoint": ORDERED(scores, ids % 2, one_cutpoint),
        }

    found = edges(infinite)
    value, gradient = found["infinite"]
    np.testing.assert_array_equal(value, [0, np.inf, 0, np.inf])
    np.testing.assert_array_equal(gradient, [0, 1, 0, -1])
    np.testing.assert_array_equal(found["soft"], [np.inf])
    np.testing.assert_array_equal(found["soft, weighted"], [0])
    np.testing.assert_array_equal(np.isinf(found["tied"]), [False, True, False])
    np.testing.assert_array_equal(np.isnan(found["falling"]), [False, True, False])
    value, gradient = found["by row"]
    np.testing.assert_array_equal(np.isinf(value), [False, True, False])
    assert np.isfinite(gradient[::2]).all()  # the class without a width has no share there
    np.testing.assert_array_equal(found["no weight"], [0])
    assert found["half"].dtype == jnp.float32
    binary = jaxloss.sigmoid_binary_cross_entropy(scores - one_cutpoint, ids % 2)
    np.testing.assert_allclose(found["one cutpoint"], binary, rtol=1e-6)


def test_ordered_classes_at_the_edges_make_no_nan_on_the_way():
    ids, cutpoints = np.array([0, 1, 2, 1, 5, -1]), np.float32([-1.0, 0.5])
    where = (ids >= 0) & (ids < 3)

    def run(dirty, infinite):
        total = jax.value_and_grad(lambda c, s: jnp.sum(ORDERED(s, ids % 5, c, where)), (0, 1))(cutpoints, dirty)
        return total, jaxloss.per_example_value_and_grad(ORDERED)(infinite, np.array([2, 1, 0, 1]), cutpoints)

    with jax.debug_nans(True):
        run(np.float32([0, 1, 2, 3, np.inf, np.inf]), np.float32([np.inf, np.inf, -np.inf, -np.inf]))


def test_ordered_classes_have_the_numbers_of_statsmodels():
    """OrderedModel(y, x, distr="logit") of version 0.15.0: loglikeobs, and score_obs by its one coefficient."""
    x, coefficient = jnp.array([0.5, -1.25, 2.0, 0.25, -0.5, 3.0]), 0.75
    y, cutpoints = jnp.array([0, 0, 2, 1, 1, 3]), jnp.array([-0.5, 0.75, 2.5])
    likelihoods = [-1.22344458, -0.49813455, -0.89101956, -1.19586789, -1.25132874, -0.82593942]
    slopes = [-0.35289251, 0.49042104, 0.10375976, -0.00709494, -0.11185281, 1.68652950]
    value, gradient = jaxloss.per_example_value_and_grad(ORDERED)(coefficient * x, y, cutpoints)
    np.testing.assert_allclose(-value, likelihoods, rtol=1e-6)
    np.testing.assert_allclose(-gradient * x, slopes, rtol=1e-5)


def test_second_derivatives_by_everything(x64, rng):
    """In float64 against automatic differentiation of the textbook formulas."""
    table, z, theta = rng.uniform(0, 5, (4, 4)), rng.normal(size=4), np.array([-1.0, 0.5, 1.25])
    shares = rng.dirichlet(np.ones(4))

    def plain_cost(z, table, t):
        return t @ table @ jax.nn.softmax(z)

    def plain_ordered(f, theta, t):
        at_most = jax.nn.sigmoid(theta - f)
        return -t @ jnp.log(jnp.diff(at_most, prepend=0.0, append=1.0))

    pairs = [
        (lambda z, table, t: COST(z, t, costs=table), plain_cost, z, table),
        (lambda f, theta, t: ORDERED(f, t, theta), plain_ordered, np.float64(0.3), theta),
    ]
    for ours, plain, *given in pairs:
        mine, expected = (jax.jit(jax.hessian(f, (0, 1))) for f in (ours, plain))
        for t, same in ((shares, shares), (np.eye(4)[2], np.eye(4)[2]), (np.array(2), np.eye(4)[2])):
            jax.tree.map(
                partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), mine(*given, t), expected(*given, same)
            )
