"""Objectives, metrics and starting scores of boosting: as each library calls them, and in the libraries installed.

`Table` stands for the data of a library, so that the interfaces are tested without it; the numbers expected come from
NumPy.
"""

import copy
import functools
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import boosting
from jaxloss._core import boosting as programs

FOCAL = functools.partial(jaxloss.softmax_focal_loss, gamma=2.0)
GENERALIZED = functools.partial(jaxloss.generalized_cross_entropy, q=0.7)
BINARY = jaxloss.sigmoid_binary_cross_entropy


class Table:
    """Labels, as floats, and weights, as LightGBM's `Dataset` gives them."""

    def __init__(self, labels, weights=None):
        self._labels, self._weights = np.asarray(labels, np.float32), weights

    def get_label(self):
        return self._labels

    def get_weight(self):
        return self._weights


class Matrix(Table):
    """As XGBoost's `DMatrix` gives them: no weights are an empty array."""

    def get_weight(self):
        return np.zeros(0, np.float32) if self._weights is None else np.float32(self._weights)

    def get_base_margin(self):
        return np.zeros(0, np.float32)


def calls(made, scores, labels, weights=None):
    """The results of the four ways in which XGBoost and LightGBM call."""
    labels = np.asarray(labels, np.float32)
    scores32, columns = np.asarray(scores, np.float32), np.asfortranarray(scores, np.float64)
    by_keyword = {} if weights is None else {"sample_weight": weights}
    return {
        "xgboost": made(scores32, Matrix(labels, weights)),
        "xgboost.sklearn": made(labels, scores32, **by_keyword),
        "lightgbm": made(columns, Table(labels, weights)),
        "lightgbm.sklearn": made(labels, columns, weights, None),
    }


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def softmax(z):
    e = np.exp(np.asarray(z, np.float64))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def binary(rng):
    return rng.normal(size=20) * 3, rng.integers(0, 2, 20), rng.integers(0, 4, 20).astype(float)


@pytest.fixture
def several(rng):
    return rng.normal(size=(20, 3)) * 3, rng.integers(0, 3, 20), rng.integers(0, 4, 20).astype(float)


@pytest.mark.parametrize("loss", [BINARY, jaxloss.softmax_cross_entropy])
@pytest.mark.parametrize("weighted", [False, True])
def test_two_classes(loss, weighted, binary):
    z, y, w = binary
    p = sigmoid(z)
    each = w if weighted else 1
    for way, (gradient, curvature) in calls(boosting.objective(loss), z, y, w if weighted else None).items():
        np.testing.assert_allclose(gradient, each * (p - y), rtol=1e-5, atol=1e-7, err_msg=way)
        np.testing.assert_allclose(curvature, each * p * (1 - p), rtol=1e-5, atol=1e-7, err_msg=way)
        for x in (gradient, curvature):
            assert type(x) is np.ndarray
            assert x.dtype == np.float32
            assert x.flags.c_contiguous  # LightGBM asserts it


@pytest.mark.parametrize("weighted", [False, True])
def test_several_classes_with_the_factor_of_each_library(weighted, several):
    z, y, w = several
    p = softmax(z)
    each = w[:, None] if weighted else 1
    made = boosting.objective(jaxloss.softmax_cross_entropy)
    for way, (gradient, curvature) in calls(made, z, y, w if weighted else None).items():
        factor = 2 if "xgboost" in way else 3 / 2
        np.testing.assert_allclose(gradient, each * (p - np.eye(3)[y]), rtol=1e-5, atol=1e-6, err_msg=way)
        np.testing.assert_allclose(curvature, each * factor * p * (1 - p), rtol=1e-5, atol=1e-6, err_msg=way)
        assert gradient.shape == curvature.shape == (20, 3)
    alone = boosting.objective(jaxloss.softmax_cross_entropy, factor=1.0)
    np.testing.assert_allclose(alone(z, Matrix(y))[1], p * (1 - p), rtol=1e-5, atol=1e-6)


def test_labels_may_be_shares_or_several(several):
    z, y, _ = several
    soft = np.random.default_rng(0).dirichlet([1, 1, 1], 20)
    shares = boosting.objective(jaxloss.softmax_cross_entropy)
    many = boosting.objective(BINARY)
    for order in "CF":
        scores = np.asarray(z, order=order)
        np.testing.assert_allclose(shares(scores, Matrix(soft))[0], softmax(z) - soft, atol=1e-6)
        for labels in (soft, soft.ravel()):  # flat, as XGBoost gives them
            gradient, curvature = many(scores, Matrix(labels))
            np.testing.assert_allclose(gradient, sigmoid(z) - soft, atol=1e-6)
            np.testing.assert_allclose(curvature, sigmoid(z) * sigmoid(-z), atol=1e-6)  # no factor
        np.testing.assert_allclose(many(scores, Matrix(y))[0], sigmoid(z) - np.eye(3)[y], atol=1e-6)
    for loss in (BINARY, jaxloss.softmax_cross_entropy):
        gradient, _ = boosting.objective(loss)(z[:, 0], Matrix(soft[:, 0]))
        np.testing.assert_allclose(gradient, sigmoid(z[:, 0]) - soft[:, 0], atol=1e-6)


def test_catboost_maximizes(binary, several):
    z, y, w = binary
    p = sigmoid(z)
    made = boosting.objective(BINARY)
    expected = np.stack([w * (y - p), -w * p * (1 - p)], -1)
    np.testing.assert_allclose(made.calc_ders_range(z, y.astype(float), w), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.calc_ders_range(z, y.astype(float), None)[:, 0], y - p, rtol=1e-5, atol=1e-6)

    z, y, _ = several
    p = softmax(z)[0]
    for target in (float(y[0]), np.eye(3)[y[0]]):
        first, second = boosting.objective(jaxloss.softmax_cross_entropy).calc_ders_multi(z[0], target, 2.0)
        np.testing.assert_allclose(first, 2 * (np.eye(3)[y[0]] - p), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(second, -2 * (np.diag(p) - np.outer(p, p)), rtol=1e-5, atol=1e-6)
    made = boosting.objective(FOCAL)
    first, second = made.calc_ders_multi(z[0], float(y[0]), 2.0)
    gradient, curvature = made(z[:1], Table(y[:1], np.array([2.0])))
    np.testing.assert_allclose(first, -gradient[0], rtol=1e-5)
    np.testing.assert_allclose(second, -np.diag(curvature[0]), rtol=1e-5)


SLOPES = {  # of the loss by -log p, of p of the label
    "focal": (FOCAL, lambda p: (1 - p) ** 2 - 2 * p * (1 - p) * np.log(p)),
    "generalized": (GENERALIZED, lambda p: p**0.7),
}


@pytest.mark.parametrize("name", SLOPES)
def test_curvatures(name, several):
    loss, slope = SLOPES[name]
    z, y, _ = several
    p = softmax(z)
    by_nll = slope(p[np.arange(20), y])[:, None]
    gradient, curvature = boosting.objective(loss)(z, Table(y))
    np.testing.assert_allclose(gradient, by_nll * (p - np.eye(3)[y]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(curvature, abs(gradient) + 1e-6, rtol=1e-5)
    _, _, hessian = jaxloss.per_example_value_grad_hess(loss)(jnp.float32(z), jnp.asarray(y))
    assert hessian.min() < 0
    np.testing.assert_allclose(
        boosting.objective(loss, curvature="diagonal", factor=1.0)(z, Table(y))[1], hessian, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    "loss",
    [
        *(FOCAL, GENERALIZED, jaxloss.sigmoid_focal_loss, jaxloss.asymmetric_loss, jaxloss.modified_huber_loss),
        functools.partial(jaxloss.entmax_loss, alpha=1.3),
    ],
)
def test_the_default_curvature_is_positive(loss):
    z = np.linspace(-80, 80, 40)
    for label in (0, 1):
        gradient, curvature = boosting.objective(loss)(z, Table(np.full(40, label)))
        assert (curvature > 0).all()
        assert np.isfinite(gradient).all()
        assert (abs(gradient) <= curvature).all()  # so no leaf moves by more than 1


def test_one_program_for_rows_of_nearly_one_number_and_for_copies(binary):
    z, y, w = binary
    z, y, w = np.tile(z, 7), np.tile(y, 7), np.tile(w, 7)

    def made(gamma):
        return boosting.objective(functools.partial(jaxloss.sigmoid_focal_loss, gamma=gamma))

    objective = made(2.0)
    whole = objective(z[:129], Table(y[:129], w[:129]))
    count = programs._derivatives._cache_size()
    for rows in range(130, 141, 3):
        part = objective(z[:rows], Table(y[:rows], w[:rows]))
        assert part[0].shape == part[1].shape == (rows,)
        np.testing.assert_array_equal(part[0][:129], whole[0])
    for other in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective)), made(2.0)):
        np.testing.assert_array_equal(other(z[:129], Table(y[:129], w[:129]))[1], whole[1])
    assert abs(made(3.0)(z[:129], Table(y[:129], w[:129]))[1] - whole[1]).max() > 1e-3
    assert programs._derivatives._cache_size() == count


def test_padding_wastes_little():
    for rows in (1, 15, 16, 17, 1000, 1025, 100_000, 1_000_001):
        held = len(programs.padded(np.ones(rows), np.float32))
        assert rows <= held <= max(16, 9 / 8 * rows + 1)
        assert programs.padded(np.ones(rows), np.float32).sum() == rows


def test_nothing_moves_between_devices_unasked(several):
    z, y, w = several
    loss = functools.partial(FOCAL, class_weights=jnp.ones(3))
    with jax.transfer_guard("disallow"):
        boosting.objective(loss)(z, Table(y, w))
        boosting.metric(FOCAL)(z, Table(y, w))
        boosting.objective(FOCAL).calc_ders_multi(z[0], 1.0, 1.0)
        boosting.initial_score(FOCAL, y)


def test_metric(binary, several):
    for loss, (z, y, w) in ((BINARY, binary), (jaxloss.softmax_cross_entropy, binary), (FOCAL, several)):
        logits = np.stack([0 * z, z], -1) if z.ndim == 1 and loss is not BINARY else z
        losses = np.asarray(loss(jnp.float32(logits), jnp.asarray(y)), np.float64)
        made = boosting.metric(loss)
        name = "sigmoid_binary_cross_entropy" if loss is BINARY else made.__name__
        for weights in (None, w):
            mean = np.average(losses, weights=weights)
            found = calls(made, z, y, weights)
            assert found["xgboost"] == (name, pytest.approx(mean, rel=1e-5))
            assert found["xgboost.sklearn"] == pytest.approx(mean, rel=1e-5)
            assert found["lightgbm"] == found["lightgbm.sklearn"] == (name, pytest.approx(mean, rel=1e-5), False)
            columns = tuple(z.T) if z.ndim == 2 else (z,)
            both = made.evaluate(columns, y.astype(float), weights)
            assert made.get_final_error(*both) == pytest.approx(mean, rel=1e-5)
    assert not made.is_max_optimal()
    assert made.get_final_error(0.0, 0.0) == 0.0


def test_a_row_of_weight_zero_counts_nothing_in_a_metric():
    _, mean, _ = boosting.metric(BINARY)(np.array([0.0, np.nan]), Table([1, 1], np.array([1.0, 0.0])))
    assert mean == pytest.approx(np.log(2), rel=1e-6)


def test_initial_score_of_cross_entropy_is_exact(rng):
    y, w = rng.integers(0, 2, 50), rng.integers(1, 4, 50)
    log_odds = np.log(w[y == 1].sum() / w[y == 0].sum())
    for loss in (BINARY, jaxloss.softmax_cross_entropy):
        score = boosting.initial_score(loss, y, weights=w)
        assert type(score) is float
        np.testing.assert_allclose(score, log_odds, rtol=1e-12)
        np.testing.assert_allclose(boosting.initial_score(loss, np.repeat(y, w)), log_odds, rtol=1e-12)
    ids = np.repeat([0, 1, 2], [70, 25, 5]).astype(float)
    scores = boosting.initial_score(jaxloss.softmax_cross_entropy, ids)
    np.testing.assert_allclose(scores, np.log([0.7, 0.25, 0.05]), rtol=1e-12)
    np.testing.assert_allclose(
        boosting.initial_score(jaxloss.softmax_cross_entropy, np.eye(3)[ids.astype(int)]), scores
    )
    never = boosting.initial_score(jaxloss.softmax_cross_entropy, ids, classes=4)
    np.testing.assert_allclose(never, [*scores, np.log(1e-15)], rtol=1e-12)
    many = boosting.initial_score(BINARY, np.stack([y, 1 - y], -1), weights=w)
    np.testing.assert_allclose(many, [log_odds, -log_odds], rtol=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        FOCAL,
        GENERALIZED,
        functools.partial(jaxloss.softmax_focal_loss, gamma=5.0),
        functools.partial(jaxloss.softmax_cross_entropy, class_weights=jnp.array([1.0, 2.0, 3.0]), label_smoothing=0.1),
    ],
)
def test_initial_score_is_where_the_gradient_is_zero(loss):
    ids, w = np.array([0, 1, 2, 2]), np.array([70.0, 25.0, 4.0, 1.0])
    scores = boosting.initial_score(loss, ids, weights=w)
    gradient, _ = boosting.objective(loss, curvature="gradient")(np.tile(scores, (4, 1)), Table(ids, w / 100))
    np.testing.assert_allclose(gradient.sum(0), 0, atol=1e-6)
    if loss is FOCAL:
        never = boosting.initial_score(loss, ids, weights=w, classes=4)
        np.testing.assert_allclose(never, [*scores, np.log(1e-15)], rtol=1e-4)


@pytest.mark.parametrize("loss", [jaxloss.softmax_focal_loss, jaxloss.sigmoid_focal_loss])
def test_initial_score_of_two_classes(loss):
    """For gamma 5 steps by the size of the gradient would swing about it."""
    y, w = np.array([0, 1]), np.array([0.97, 0.03])
    for gamma in (2.0, 5.0):
        of_two = functools.partial(loss, gamma=gamma)
        gradient, _ = boosting.objective(of_two)(np.full(2, boosting.initial_score(of_two, y, weights=w)), Table(y, w))
        assert abs(gradient.sum()) <= 1e-6 * abs(gradient).max()


def test_what_is_made_shows_what_it_is():
    made = boosting.objective(FOCAL, curvature="gradient")
    assert repr(made) == "boosting.objective(partial(softmax_focal_loss, gamma=2.0), curvature='gradient')"
    assert repr(boosting.metric(BINARY)) == "boosting.metric(sigmoid_binary_cross_entropy)"
    assert repr(pickle.loads(pickle.dumps(made))) == repr(made)
    assert copy.deepcopy(made) is made
    assert made.__name__ == "softmax_focal_loss"


ERRORS = [
    (lambda: boosting.objective(None), "boosting.objective: `loss` must be a loss of jaxloss on logits"),
    (lambda: boosting.metric(jaxloss.huber_loss), "boosting.metric: `loss` must be a loss of jaxloss on logits"),
    (lambda: boosting.objective("focal"), r"got 'focal'. Pass the function, as in functools.partial\(.*library itself"),
    (
        lambda: boosting.objective(lambda z, y: z),
        "got .*<lambda>. Options go by keyword into functools.partial, in place",
    ),
    (lambda: boosting.objective(calls), 'got calls. .*see docs/guide/boosting.md, "A loss of your own"'),
    (lambda: boosting.objective(jaxloss.cross_entropy), "are logits: use jaxloss.softmax_cross_entropy"),
    (lambda: boosting.objective(jaxloss.binary_cross_entropy), "use jaxloss.sigmoid_binary_cross_entropy"),
    (lambda: boosting.objective(jaxloss.mean), "got mean. Pass a loss, as in"),
    (lambda: boosting.objective(functools.partial(FOCAL, axis=0)), "must not hold `axis`"),
    (lambda: boosting.objective(FOCAL, curvature="hessian"), "`curvature` must be one of"),
    (lambda: boosting.objective(FOCAL, factor=0), "`factor` must be a number > 0 or None; got 0"),
    (lambda: boosting.objective(jaxloss.softmax_kl_divergence), "must take logits and labels"),
    (lambda: boosting.objective(functools.partial(FOCAL, gamma=-1.0)), "`gamma` must be >= 0; got -1"),
    (lambda: boosting.objective(functools.partial(FOCAL, gama=1.0)), "Did you mean `gamma`"),
    (lambda: boosting.objective(FOCAL, gamma=1.0), "functools.partial"),
    (lambda: boosting.objective(FOCAL)(np.zeros((4, 3)), Table([0, 1, 2, 3])), "class ids 0 to 2; got 3 in row 3"),
    (lambda: boosting.objective(BINARY)(np.zeros(2), Table([0, -1])), r"labels must be in \[0, 1\]; got -1 in row 1"),
    (lambda: boosting.objective(FOCAL)(np.zeros((2, 3)), Table([0, 0.5])), "class ids 0 to 2; got 0.5"),
    (lambda: boosting.objective(FOCAL)(np.zeros(6), Table([0, 1])), "Flat scores"),
    (
        lambda: boosting.objective(functools.partial(BINARY, class_weights=[1, 20.0]))(np.zeros(20), Table([0] * 20)),
        r"a row has one score; got shape \(2,\). For two classes use `pos_weight`, .*softmax_cross_entropy, which",
    ),
    (
        lambda: boosting.initial_score(functools.partial(BINARY, pos_weight=np.ones(16)), [0, 1]),
        "of sigmoid_binary_cross_entropy must be a scalar: a row has one score",
    ),
    (
        lambda: boosting.objective(functools.partial(FOCAL, class_weights=[1, 2.0]))(
            np.zeros((20, 3)), Table([0] * 20)
        ),
        r"one entry for each of the 3 classes; got shape \(2,\)",
    ),
    (lambda: boosting.objective(FOCAL)(np.zeros(2), Table([0, 1], np.ones(3))), r"weights must have shape \(2,\)"),
    (lambda: boosting.objective(FOCAL)(None, np.zeros(2), None, None), "have no labels"),
    (lambda: boosting.initial_score(FOCAL, ["cat", "dog"]), "labels must be numbers; got dtype <U3"),
    (lambda: boosting.initial_score(FOCAL, [0, 1], weights=[0.0, 0.0]), "must have a sum > 0"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_what_is_refused_but_is_a_loss_names_what_to_use():
    for name in ("softmax_kl_divergence", "softmax_js_divergence", "ordered_logistic_loss", "huber_loss"):
        with pytest.raises(TypeError, match=f"{name}.*(jaxloss.(softmax|expected)|library itself)"):
            boosting.objective(getattr(jaxloss, name))
    optax = pytest.importorskip("optax")
    with pytest.raises(TypeError, match=r"Use jaxloss.sigmoid_binary_cross_entropy\."):
        boosting.objective(optax.sigmoid_binary_cross_entropy)


def test_signatures_are_short():
    assert inspect.signature(boosting.initial_score).parameters["labels"].annotation == "ArrayLike"


# The libraries themselves, where they are installed.

ROUNDS = 50
XGBOOST = {"max_depth": 3, "eta": 0.3, "nthread": 1, "base_score": 0.0, "disable_default_eval_metric": True}
LIGHTGBM = {"num_leaves": 7, "learning_rate": 0.2, "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5}
CATBOOST = {
    **{"iterations": ROUNDS, "depth": 3, "learning_rate": 0.1, "random_seed": 0, "random_strength": 0, "verbose": 0},
    **{"bootstrap_type": "No", "boosting_type": "Plain", "thread_count": 1, "allow_writing_files": False},
    **{"leaf_estimation_method": "Newton", "leaf_estimation_iterations": 1},
}


@pytest.fixture(params=["two classes", "three classes"])
def rows(request):
    """Features, labels, whole weights, the number of classes and a loss; no two splits are as good as each other."""
    rng, classes = np.random.default_rng(0), 2 if request.param == "two classes" else 3
    x = rng.normal(size=(300, 5))
    y = (x @ rng.normal(size=(5, classes)) + rng.gumbel(size=(300, classes)) + np.arange(classes)).argmax(1)
    return x, y, rng.integers(1, 4, 300), classes, (BINARY if classes == 2 else jaxloss.softmax_cross_entropy)


def test_xgboost_trains_as_with_its_own_objective(rows):
    xgb = pytest.importorskip("xgboost")
    x, y, w, classes, loss = rows
    data, several = xgb.DMatrix(x, y, weight=w), {"num_class": 3} if classes == 3 else {}
    own = {"objective": "multi:softprob"} if classes == 3 else {"objective": "binary:logistic", "base_score": 0.5}
    own |= {"disable_default_eval_metric": False, "eval_metric": "mlogloss" if classes == 3 else "logloss"}
    made, measured = boosting.objective(loss), ({}, {})
    ours = xgb.train(
        XGBOOST | several,
        data,
        ROUNDS,
        obj=made,
        custom_metric=boosting.metric(loss),
        evals=[(data, "rows")],
        evals_result=measured[0],
        verbose_eval=False,
    )
    theirs = xgb.train(
        XGBOOST | several | own, data, ROUNDS, evals=[(data, "rows")], evals_result=measured[1], verbose_eval=False
    )
    scores = theirs.predict(data, output_margin=True)
    np.testing.assert_allclose(ours.predict(data, output_margin=True), scores, atol=1e-3)
    metrics = [np.ravel(list(x["rows"].values())) for x in measured]
    np.testing.assert_allclose(*metrics, atol=1e-4)
    exact = XGBOOST | several | {"tree_method": "exact", "min_child_weight": 0.0}
    weighted = xgb.train(exact, data, ROUNDS, obj=made).predict(data, output_margin=True)
    repeated = xgb.DMatrix(np.repeat(x, w, 0), np.repeat(y, w))
    again = xgb.train(exact, repeated, ROUNDS, obj=made).predict(data, output_margin=True)
    np.testing.assert_allclose(again, weighted, atol=1e-3)


def test_xgboost_estimators_are_saved_and_cloned(rows, tmp_path):
    xgb = pytest.importorskip("xgboost")
    from sklearn.base import clone

    x, y, w, _, loss = rows
    options = {"max_depth": 3, "n_estimators": 20, "n_jobs": 1, "base_score": 0.5}
    model = xgb.XGBClassifier(objective=boosting.objective(loss), eval_metric=boosting.metric(loss), **options)
    fitted = clone(model).fit(x, y, sample_weight=w, eval_set=[(x, y)], sample_weight_eval_set=[w], verbose=False)
    own = xgb.XGBClassifier(**options).fit(x, y, sample_weight=w, eval_set=[(x, y)], verbose=False)
    np.testing.assert_allclose(fitted.predict_proba(x), own.predict_proba(x), atol=1e-3)
    assert loss.__name__ in fitted.evals_result()["validation_0"]
    copied = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copied.predict_proba(x), fitted.predict_proba(x))
    fitted.save_model(tmp_path / "model.json")
    loaded = xgb.XGBClassifier()
    loaded.load_model(tmp_path / "model.json")
    np.testing.assert_array_equal(loaded.predict_proba(x), fitted.predict_proba(x))


def test_lightgbm_trains_as_with_its_own_objective(rows):
    lgb = pytest.importorskip("lightgbm")
    x, y, w, classes, loss = rows
    several = {"num_class": 3} if classes == 3 else {}
    made = boosting.objective(loss)
    ours = lgb.train(LIGHTGBM | several | {"objective": made}, lgb.Dataset(x, y, weight=w), ROUNDS).predict(
        x, raw_score=True
    )
    own = {"objective": "multiclass" if classes == 3 else "binary"}
    flat = LIGHTGBM | several | own | {"boost_from_average": False}
    theirs = lgb.train(flat, lgb.Dataset(x, y, weight=w), ROUNDS).predict(x, raw_score=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)

    start = boosting.initial_score(loss, y, weights=w)
    table = lgb.Dataset(x, y, weight=w, init_score=np.tile(start, (len(y), 1)) if classes == 3 else [start] * len(y))
    ours = lgb.train(LIGHTGBM | several | {"objective": made}, table, ROUNDS).predict(x, raw_score=True)
    theirs = lgb.train(LIGHTGBM | several | own, lgb.Dataset(x, y, weight=w), ROUNDS).predict(x, raw_score=True)
    np.testing.assert_allclose(ours + start, theirs, atol=1e-3)


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")  # what replaces it is new in 4.7
def test_lightgbm_estimators_are_saved_and_cloned(rows):
    lgb = pytest.importorskip("lightgbm")
    from sklearn.base import clone

    x, y, w, classes, loss = rows
    options = {"num_leaves": 7, "n_estimators": 20, "verbose": -1, "n_jobs": 1}
    model = lgb.LGBMClassifier(objective=boosting.objective(loss), metric="None", **options)
    metric = boosting.metric(loss)
    given = {"sample_weight": w, "eval_set": [(x, y)], "eval_sample_weight": [w]}
    fitted = clone(model).fit(x, y, **given, eval_metric=metric)
    own = lgb.LGBMClassifier(**options, boost_from_average=False).fit(x, y, **given)
    scores = fitted.predict_proba(x, raw_score=True)
    np.testing.assert_allclose(scores, own.predict_proba(x, raw_score=True), atol=1e-3)
    (ours,), (theirs,) = (x.evals_result_.values() for x in (fitted, own))
    assert list(ours) == [loss.__name__]  # without metric="None" also LightGBM's own, of scores as probabilities
    of_own = theirs["multi_logloss" if classes == 3 else "binary_logloss"]
    np.testing.assert_allclose(ours[loss.__name__], of_own, atol=1e-4)
    copied = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copied.predict_proba(x, raw_score=True), scores)
    booster = lgb.Booster(model_str=fitted.booster_.model_to_string())
    np.testing.assert_array_equal(booster.predict(x, raw_score=True), scores)


@pytest.mark.filterwarnings("ignore:Failed to (import|optimize)")  # numba, by which it would compile objectives
def test_catboost_trains_as_with_its_own_objective(rows):
    cb = pytest.importorskip("catboost")
    from sklearn.base import clone

    x, y, w, classes, loss = rows
    several = {"classes_count": 3} if classes == 3 else {}
    options = CATBOOST | {"iterations": 3 if classes == 3 else ROUNDS}  # row by row
    model = cb.CatBoostClassifier(
        loss_function=boosting.objective(loss), eval_metric=boosting.metric(loss), **options, **several
    )
    ours = clone(model).fit(x, y, sample_weight=w)
    own = {"loss_function": "MultiClass" if classes == 3 else "Logloss", "boost_from_average": False}
    theirs = cb.CatBoostClassifier(**options, **(own if classes == 2 else {"loss_function": "MultiClass"}))
    theirs.fit(x, y, sample_weight=w)
    scores = [m.predict(x, prediction_type="RawFormulaVal") for m in (ours, theirs)]
    np.testing.assert_allclose(*scores, atol=1e-3)
    best = [next(iter(m.get_best_score()["learn"].values())) for m in (ours, theirs)]
    np.testing.assert_allclose(*best, atol=1e-3)


@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
@pytest.mark.parametrize("loss", [FOCAL, GENERALIZED])
def test_losses_that_are_not_convex_do_not_run_away(name, loss, rows):
    library = pytest.importorskip(name)
    x, y, _, classes, _ = rows
    y = np.where(np.random.default_rng(0).random(len(y)) < 0.2, (y + 1) % classes, y)
    several = {"num_class": 3} if classes == 3 else {}
    made = boosting.objective(loss)
    if name == "xgboost":
        data = library.DMatrix(x, y)
        scores = library.train(XGBOOST | several | {"lambda": 0.0, "min_child_weight": 0.0}, data, ROUNDS, obj=made)
        scores, rate = scores.predict(data, output_margin=True), 0.3
    else:
        settings = LIGHTGBM | several | {"objective": made, "min_sum_hessian_in_leaf": 0.0}
        scores, rate = library.train(settings, library.Dataset(x, y), ROUNDS).predict(x, raw_score=True), 0.2
    assert abs(scores).max() <= ROUNDS * rate
