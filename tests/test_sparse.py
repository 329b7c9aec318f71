"""Sparsemax and entmax against mpmath and the published packages, and what the registry leaves of their losses."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import optax
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import sparse
from tests import jaxprs, oracle

EPS = 2.0**-23
DIGITS = 50


class Case(NamedTuple):
    """A projection, its loss, and their alpha."""

    order: float
    project: Callable
    loss: Callable
    traced: bool = True  # alpha is an array in the program


def entmax_of(alpha) -> Case:
    return Case(alpha, partial(sparse.entmax, alpha=alpha), partial(sparse.entmax_loss, alpha=alpha))


CASES = {
    "sparsemax": Case(2, sparse.sparsemax, sparse.multiclass_sparsemax_loss, False),
    "entmax15": Case(1.5, sparse.entmax15, sparse.entmax_loss, False),
    "alpha 1": entmax_of(1),
    "alpha 1 + eps": entmax_of(1 + EPS),
    "alpha 1.25": entmax_of(1.25),
    "alpha 1.5": entmax_of(1.5),
    "alpha 1.75": entmax_of(1.75),
    "alpha 2": entmax_of(2),
}


def cases(*names):
    names = names or tuple(CASES)
    return pytest.mark.parametrize("case", [CASES[name] for name in names], ids=names)


FEW = ("sparsemax", "entmax15", "alpha 1.25")
TWO_PROGRAMS = ("alpha 1", "alpha 1.25", "alpha 2", "entmax15")


@cache
def program(function: Callable, case: Case | None) -> Callable:
    """The compiled function of a case and arguments; one program for every alpha that is an array."""

    def of_case(*args, **options):
        return function(case, *args, **options)

    def of_order(alpha, *args, **options):
        return function(entmax_of(alpha), *args, **options)

    return jax.jit(of_case if case else of_order, static_argnames="axis")


def compiled(function: Callable, case: Case) -> Callable:
    run = partial(program(function, None), np.float32(case.order)) if case.traced else program(function, case)
    return lambda *args, **options: jax.tree.map(np.asarray, run(*args, **options))


def _everything(case, z, labels, axis=-1, **options):
    run = jaxloss.per_example_value_grad_hess(case.loss)
    given = {key: options[key] for key in options if key == "where"}
    return (*run(z, labels, axis, **options), case.project(z, axis, **given))


def everything(case: Case) -> Callable:
    """Value, gradient and diagonal of the Hessian of the loss, and the projection, in one program."""
    return compiled(_everything, case)


def _edge(case, z, labels):
    return (*_everything(case, z, labels), jax.hessian(case.loss)(z, labels), jax.jacrev(case.project)(z))


def edge(case: Case) -> Callable:
    """The same with the Hessian and the Jacobian of the projection."""
    return compiled(_edge, case)


def exact_jacobian(p, alpha) -> np.ndarray:
    s = np.array([float(oracle.power(x, 2 - mp.mpf(alpha))) for x in p])
    return np.diag(s) - np.outer(s, s) / s.sum()


@cache
def rows() -> np.ndarray:
    """Logits [32, 7]: close, N(0, 1), N(0, 20), far from 0, all tied, two at the top, one huge, half of them -inf."""
    normal = np.random.default_rng(5).normal(size=(4, 7)).astype(np.float32)
    two, huge, masked = normal.copy(), normal.copy(), normal.copy()
    two[:, 1] = two[:, 4] = 3.0
    huge[:2, 2], huge[2:, 2] = 1e5, 1e30
    masked[:, 1::2] = -np.inf
    far = (np.round(normal * 8) / 8 + 1e6).astype(np.float32)
    return np.concatenate([normal / 8, normal, normal * 20, far, np.zeros_like(normal), two, huge, masked])


def labels_of(kind, rng):
    z = rows()
    alive = z > -np.inf
    ids = np.array([rng.choice(np.flatnonzero(row)) for row in alive])
    if kind == "ids":
        return ids
    if kind == "best":
        return z.argmax(1)
    if kind == "soft":
        return (rng.dirichlet(np.ones(7), len(z)) * alive).astype(np.float32)
    return ((rng.integers(0, 2, z.shape) | np.eye(7, dtype=int)[ids]) * alive).astype(np.float32)


@cases()
def test_projections_are_exact(case):
    got = np.asarray(compiled(_project, case)(rows()))
    for row, p in zip(rows(), got, strict=True):
        exact = np.array(oracle.entmax(row, case.order), float)
        np.testing.assert_allclose(p, exact, rtol=8 * EPS, atol=4 * EPS)
        assert (p[exact == 0] == 0).all() or case.order < 1.1  # where probabilities underflow
    np.testing.assert_allclose(got.sum(1, dtype=np.float64), 1, atol=4 * EPS)
    assert (got[rows() == -np.inf] == 0).all()
    assert (got >= 0).all()


@cases()
def test_losses_are_exact(case, rng):
    """An error of p changes the loss by that times the gradient, which is no longer than sqrt(2 loss)."""
    for kind in ("ids", "best", "soft", "multi-hot"):
        labels = labels_of(kind, rng)
        value, gradient, *_ = everything(case)(rows(), labels)
        onehot = np.eye(7)[labels] if labels.ndim == 1 else labels
        for row, t, v, g in zip(rows(), onehot, value, gradient, strict=True):
            exact = float(oracle.entmax_row(case.order, row, t)[0])
            assert abs(v - exact) <= 4 * EPS * (2 * exact + np.sqrt(exact)), (kind, row, v, exact)
            p = np.array(oracle.entmax(row, case.order), float)
            np.testing.assert_allclose(g, p - t / t.sum(), rtol=8 * EPS, atol=4 * EPS, err_msg=kind)


@pytest.mark.parametrize("size", [9, 100, 257])
def test_ties_of_many_classes(size):
    """Found by fuzzing: added to the label's term one by one, the others were rounded to its last digit (9 eps)."""
    for case in (CASES["entmax15"], CASES["alpha 1.25"]):
        loss = compiled(_loss, case)(np.zeros((1, size), np.float32), np.zeros(1, np.int32))
        exact = (1 - mp.mpf(size) ** (1 - case.order)) / (case.order * (case.order - 1))
        np.testing.assert_allclose(np.float64(loss[0]), float(exact), rtol=2.5 * EPS)


def test_confident_rows_keep_their_digits():
    """p - 1 and Omega(t) - Omega(p) lose all of them."""
    for order in (1, 1.01, 1.1):
        run = compiled(_value_and_grad, entmax_of(order))
        for z in ([8.0, 0.0, -1.0], [9.0, 0.5, 0.0], [20.0, 0.0, 2.0]):
            exact = float(oracle.entmax_row(float(np.float32(order)), z, [1, 0, 0])[0])
            value, gradient = run(np.array(z, np.float32), 0)
            np.testing.assert_allclose(value, exact, rtol=2e-4 if order > 1 else 1e-5)
            np.testing.assert_allclose(gradient[0], -np.sum(gradient[1:]), rtol=2 * EPS)


def sorted_projection(z, n):
    """The closed form over the k largest logits, in float64, for n = 1 / (alpha - 1) of 1 and 2."""
    s = np.sort(z.astype(np.float64) / n)[::-1]
    k = np.arange(1, len(z) + 1)
    mean = np.cumsum(s) / k
    inner = (1 - k * (np.cumsum(s * s) / k - mean**2)) / k
    tau = mean - 1 / k if n == 1 else mean - np.sqrt(np.maximum(inner, 0))
    support = np.flatnonzero(tau <= s)[-1]
    return np.maximum(z / n - tau[support], 0) ** n


@pytest.mark.parametrize("n", [1, 2])
def test_rows_that_are_hard_for_newton(n):
    """Levels of twice as many classes each, just inside the support of those above: 11 steps instead of 5."""
    levels = -n * (1 - 0.516 ** np.arange(12))
    z = np.repeat(levels, 2 ** np.arange(12)).astype(np.float32)
    many = np.stack([z, z * 0.9, 2.0 ** -np.arange(len(z), dtype=float), np.linspace(0, -1, len(z)), z / 10])
    many = many.astype(np.float32)
    project = sparse.sparsemax if n == 1 else sparse.entmax15
    for got in (project(many), sparse.entmax(many, alpha=jnp.float32(1 + 1 / n))):
        for p, row in zip(np.asarray(got), many, strict=True):
            np.testing.assert_allclose(p, sorted_projection(row - row.max(), n), rtol=1e-5, atol=EPS)
            np.testing.assert_allclose(p.sum(dtype=np.float64), 1, rtol=64 * EPS)  # that of a sum of 4095


def test_rows_that_need_nearly_all_newton_steps():
    """Classes just out of reach at each of Newton's iterates: after 19 of 22 steps two remain, at 1/2 each."""
    share, steps = 0.69, 19
    slopes = np.round(4093 * share ** np.arange(steps + 1)).clip(2).astype(int)
    strides = ((1 - share) / share) ** np.arange(steps)
    iterates = 1 - 0.5 * np.cumsum([0, *strides[:-1]]) / np.sum(strides)
    row = np.concatenate([[0, 0], np.repeat(-iterates * (1 - 1e-9), -np.diff(slopes))]).astype(np.float32)
    expected = np.zeros(row.shape)
    expected[:2] = 0.5
    np.testing.assert_allclose(sparse.sparsemax(row), expected, rtol=0, atol=EPS / 4)


@cases(*FEW)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_newton_steps_read_the_logits_as_they_are_stored(case, dtype):
    z, ids = jnp.zeros((6, 5), dtype), jnp.arange(6) % 5
    step = jax.make_jaxpr(jax.value_and_grad(lambda z: jnp.sum(case.loss(z, ids))))(z)
    (loop,) = (equation for equation in jaxprs.equations(step) if equation.primitive.name == "scan")
    assert [x.aval.dtype for x in loop.invars if x.aval.shape == z.shape] == [dtype]


def test_form_for_gpus(monkeypatch, rng):
    """Sums computed apart have the same numbers."""
    z, ids = (rng.normal(size=(9, 23)) * 2).astype(np.float32), np.arange(9)
    run = jaxloss.per_example_value_and_grad(partial(sparse.entmax_loss, alpha=1.3))
    expected = run(z, ids)
    jaxprs.choose(monkeypatch, "cuda")
    text = jax.jit(lambda z: run(z[:8], ids[:8])).lower(z).as_text()
    got = run(z[:8], ids[:8])
    assert text.count("optimization_barrier") == 2  # one for the logits, one between the sums
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b[:8], rtol=4 * EPS, atol=2 * EPS)


def _first_derivatives(case, z, tangent, soft):
    jacobians = [jax.jacfwd(case.project)(z), jax.jacrev(case.project)(z)]
    product = jax.jvp(jax.grad(lambda z: case.loss(z, 1)), (z,), (tangent,))[1]
    return jacobians + [jax.hessian(case.loss)(z, t) for t in (3, soft)], product


@cases(*TWO_PROGRAMS)
def test_first_derivatives(case):
    z, tangent, soft = np.array(
        [[1.0, 0.7, 0.65, -0.1, -3.0], [0.5, -1.0, 2.0, 0.25, 1.0], [0.1, 0.2, 0.0, 0.3, 0.4]], np.float32
    )
    jacobian = exact_jacobian(oracle.entmax(z, case.order), case.order)
    jacobians, product = compiled(_first_derivatives, case)(z, tangent, soft)
    for got in jacobians:
        np.testing.assert_allclose(got, jacobian, atol=8 * EPS)
    np.testing.assert_allclose(product, jacobian @ tangent, atol=16 * EPS)
    np.testing.assert_allclose(everything(case)(z, soft)[2], np.diag(jacobian), atol=8 * EPS)


def _change_of_jacobian(case, z, direction):
    return jax.jvp(jax.jacrev(case.project), (z,), (direction,))[1]


@cases("sparsemax", "entmax15", "alpha 1.25", "alpha 1.75")
def test_second_derivatives_of_projections(case):
    """The change of the Jacobian along a direction, as a central difference of mpmath's."""
    z, v = np.array([1.0, 0.7, 0.65, 0.2, -4.0]), np.array([0.5, -1.0, 2.0, 0.25, 1.0])

    def jacobian(step):
        b = mp.mpf(case.order) - 1
        logits = [mp.mpf(x) + step * mp.mpf(y) for x, y in zip(z, v, strict=True)]
        low, high = b * max(logits) - 1, b * max(logits)
        for _ in range(160):
            middle = (low + high) / 2
            above = mp.fsum(oracle.power(b * x - middle, 1 / b) for x in logits) > 1
            low, high = (middle, high) if above else (low, middle)
        s = [(b * x - low) ** (1 / b - 1) if b * x > low else mp.mpf(0) for x in logits]
        return mp.matrix([[(s[i] if i == j else 0) - s[i] * s[j] / mp.fsum(s) for j in range(5)] for i in range(5)])

    with mp.workdps(DIGITS):
        h = mp.mpf(10) ** -15
        exact = np.array(((jacobian(h) - jacobian(-h)) / (2 * h)).tolist(), float)
    got = compiled(_change_of_jacobian, case)(z.astype(np.float32), v.astype(np.float32))
    np.testing.assert_allclose(got, exact, rtol=64 * EPS, atol=64 * EPS)


@jax.jit
def _by_alpha(a, z, t):
    def project(a):
        return sparse.entmax(z, alpha=a)

    results = [jax.jacfwd(project)(a), jax.jacrev(project)(a)]
    for label in (t, 1):

        def loss(a, z=z, label=label):
            return sparse.entmax_loss(z, label, alpha=a)

        results += [jax.grad(loss)(a), jax.grad(jax.grad(loss))(a), jax.jacfwd(jax.grad(loss, 1))(a, z)]
    return results


@pytest.mark.parametrize("order", [1.0, 1 + EPS, 1.001, 1.25, 1.75])
def test_derivatives_by_alpha(order):
    """Of p and of the loss, first and second, against differences of mpmath's (one-sided at 1)."""
    z, t = np.array([1.0, 0.7, 0.65, 0.2, -4.0], np.float32), np.array([0.1, 0.4, 0.0, 0.3, 0.2], np.float32)
    with mp.workdps(DIGITS):
        h, at = mp.mpf(10) ** -12, mp.mpf(float(np.float32(order)))
        points = [at, at + h, at + 2 * h] if order == 1 else [at - h, at, at + h]
        weights = [mp.mpf(w) / h for w in ((-1.5, 2, -0.5) if order == 1 else (-0.5, 0, 0.5))]
        p = [oracle.entmax(z, x) for x in points]
        by_alpha = [float(mp.fdot(weights, column)) for column in zip(*p, strict=True)]
        losses = [[oracle.entmax_row(x, z, label)[0] for x in points] for label in (t, np.eye(5)[1])]
        slopes = [float(mp.fdot(weights, row)) for row in losses]
        bends = [float((row[0] - 2 * row[1] + row[2]) / h**2) for row in losses]

    forward, reverse, *rest = _by_alpha(np.float32(order), z, t)
    for got in (forward, reverse, rest[2], rest[5]):
        np.testing.assert_allclose(got, by_alpha, atol=32 * EPS)
    np.testing.assert_allclose(rest[::3], slopes, atol=32 * EPS)
    np.testing.assert_allclose(rest[1::3], bends, rtol=1e-5, atol=128 * EPS)


@cases(*FEW)
def test_derivatives_by_soft_labels(case):
    z, t = np.array([1.0, 0.7, 0.65, 0.2, -2.0], np.float32), np.array([0.2, 0.8, 0.5, 0.7, 0.3], np.float32)
    h = 1e-6
    steps = [
        (oracle.entmax_row(case.order, z, t + h * e)[0], oracle.entmax_row(case.order, z, t - h * e)[0])
        for e in np.eye(5)
    ]
    exact = [float((above - below) / (2 * h)) for above, below in steps]
    got, mixed = jax.jit(lambda t: (jax.grad(case.loss, 1)(z, t), jax.jacfwd(jax.grad(case.loss), 1)(z, t)))(t)
    np.testing.assert_allclose(got, exact, atol=16 * EPS)
    total = t.sum()
    np.testing.assert_allclose(mixed, -(np.eye(5) - np.outer(t, np.ones(5)) / total) / total, atol=8 * EPS)


def test_numbers_of_optax(rng):
    z, ids = rng.normal(size=(64, 6)).astype(np.float32), rng.integers(0, 6, 64)
    labels = np.broadcast_to(ids[:, None] > 2, z.shape)
    theirs = jax.jit(lambda: (optax.losses.multiclass_sparsemax_loss(z, ids), optax.losses.sparsemax_loss(z, labels)))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        multiclass, binary = theirs()
    np.testing.assert_allclose(sparse.multiclass_sparsemax_loss(z, ids), multiclass, rtol=8 * EPS, atol=8 * EPS)
    np.testing.assert_allclose(sparse.sparsemax_loss(z, labels), binary, rtol=2 * EPS, atol=2 * EPS)


def test_published_entmax_package(rng):
    torch, entmax = pytest.importorskip("torch"), pytest.importorskip("entmax")
    z, ids, weights = rng.normal(size=(16, 8)), rng.integers(0, 8, 16), rng.normal(size=(16, 8))
    logits, cotangent = jnp.asarray(z, jnp.float32), jnp.asarray(weights, jnp.float32)
    theirs = {
        "sparsemax": (entmax.sparsemax, entmax.sparsemax_loss),
        "entmax15": (entmax.entmax15, entmax.entmax15_loss),
        "alpha 1.25": (partial(entmax.entmax_bisect, alpha=1.25), partial(entmax.entmax_bisect_loss, alpha=1.25)),
        "alpha 1.75": (partial(entmax.entmax_bisect, alpha=1.75), partial(entmax.entmax_bisect_loss, alpha=1.75)),
    }
    for name, (project, loss) in theirs.items():
        x = torch.tensor(z, requires_grad=True)
        p = project(x)
        (p * torch.tensor(weights)).sum().backward()
        got, pullback = jax.vjp(CASES[name].project, logits)
        np.testing.assert_allclose(got, p.detach(), atol=8 * EPS, err_msg=name)
        np.testing.assert_allclose(pullback(cotangent)[0], x.grad, atol=32 * EPS, err_msg=name)
        x = torch.tensor(z, requires_grad=True)
        values = loss(x, torch.tensor(ids))
        values.sum().backward()
        value, gradient, *_ = everything(CASES[name])(logits, ids)
        np.testing.assert_allclose(value, values.detach(), rtol=8 * EPS, atol=8 * EPS, err_msg=name)
        np.testing.assert_allclose(gradient, x.grad, atol=8 * EPS, err_msg=name)
    alpha = torch.tensor(1.4, dtype=torch.float64, requires_grad=True)
    (entmax.entmax_bisect(torch.tensor(z), alpha=alpha) * torch.tensor(weights)).sum().backward()
    by_alpha = jax.grad(lambda a: jnp.vdot(sparse.entmax(logits, alpha=a), cotangent))(1.4)
    np.testing.assert_allclose(by_alpha, alpha.grad, rtol=1e-5)


def test_members_of_the_family_meet(rng):
    z, ids = rng.normal(size=(32, 7)).astype(np.float32), rng.integers(0, 7, 32)
    soft = rng.dirichlet(np.ones(7), 32).astype(np.float32)
    np.testing.assert_allclose(compiled(_project, CASES["alpha 1"])(z), jax.nn.softmax(z), rtol=8 * EPS)
    np.testing.assert_array_equal(sparse.entmax(z), sparse.entmax15(z))
    np.testing.assert_array_equal(sparse.entmax(z, alpha=1.5), sparse.entmax15(z))
    for t in (ids, soft):
        entropy = 0 if t.ndim == 1 else -np.sum(t * np.log(t), -1)
        value, gradient, hessian, _ = everything(CASES["alpha 1"])(z, t)
        expected = jax.jit(jaxloss.per_example_value_grad_hess(jaxloss.softmax_cross_entropy))(z, t)
        np.testing.assert_allclose(value, expected[0] - entropy, rtol=16 * EPS, atol=8 * EPS)
        np.testing.assert_allclose(gradient, expected[1], atol=4 * EPS)
        np.testing.assert_allclose(hessian, expected[2], atol=4 * EPS)
        for traced, static in (("alpha 2", "sparsemax"), ("alpha 1.5", "entmax15")):
            for a, b in zip(everything(CASES[traced])(z, t), everything(CASES[static])(z, t), strict=True):
                np.testing.assert_allclose(a, b, rtol=8 * EPS, atol=4 * EPS)


@jax.jit
def of_two_classes(z, t):
    return jaxloss.per_example_value_grad_hess(sparse.sparsemax_loss)(z, t)


def test_binary_is_two_classes(rng):
    z, t = rng.normal(size=32).astype(np.float32), rng.uniform(size=32).astype(np.float32)
    two, ids = np.stack([np.zeros_like(z), z], -1), (t > 0.5).astype(np.int32)
    for rows_, labels in ((ids, ids), (np.stack([1 - t, t], -1), t)):
        value, gradient, hessian, _ = everything(CASES["sparsemax"])(two, rows_)
        expected = of_two_classes(z, labels)
        for a, b in zip((value, gradient[:, 1], hessian[:, 1]), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=4 * EPS, atol=2 * EPS)
    for label, sign in ((1, -1), (0, 1)):
        value = of_two_classes(z, np.full_like(z, label))[0]
        np.testing.assert_allclose(value, jax.nn.sparse_plus(sign * z), atol=2 * EPS)


def _derivative_along(case, z, labels):
    return jax.jvp(lambda z: case.loss(z, labels), (z,), (z,))[1]


@cases("entmax15", "alpha 1.25")
def test_kinds_of_labels_agree(case, rng):
    z, ids = (rng.normal(size=(6, 5)) * 2).astype(np.float32), rng.integers(0, 5, 6)
    run = everything(case)
    expected, onehot = run(z, ids), np.eye(5, dtype=np.float32)[ids]
    for labels in (onehot, onehot.astype(bool), onehot * 3):
        jax.tree.map(np.testing.assert_array_equal, run(z, labels), expected)
    multi = np.array([[0.0, 1.0, 1.0, 0.0, 1.0]] * 6, np.float32)
    for got, wanted in zip(run(z, multi), run(z, multi / 3), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=16 * EPS, atol=2 * EPS)
    with jax.debug_nans(True):
        for got in (*run(z, multi * 0)[:3], compiled(_derivative_along, case)(z, multi * 0)):
            np.testing.assert_array_equal(got, np.zeros_like(got))


def _by_weights(case, z, labels, weights):
    return jax.grad(lambda w: jnp.sum(case.loss(z, labels, class_weights=w)))(weights)


@cases("entmax15", "alpha 1.25")
def test_class_weights_weigh_the_row(case, rng):
    z, ids = rng.normal(size=(6, 5)).astype(np.float32), rng.integers(0, 5, 6)
    soft, onehot = rng.dirichlet(np.ones(5), 6).astype(np.float32), np.eye(5, dtype=np.float32)[ids]
    weights = np.array([0.5, 2.0, 0.0, 1.0, 4.0], np.float32)
    for labels, row in ((ids, weights[ids]), (soft, soft @ weights)):
        plain = everything(case)(z, labels)[:3]
        for got, expected in zip(everything(case)(z, labels, class_weights=weights), plain, strict=False):
            by_row = row.reshape(-1, *[1] * (expected.ndim - 1))
            np.testing.assert_allclose(got, expected * by_row, rtol=8 * EPS, atol=EPS)
        for got, expected in zip(everything(case)(z, labels, class_weights=np.ones_like(weights)), plain, strict=False):
            np.testing.assert_array_equal(got, expected)
    slope = compiled(_by_weights, case)(z, ids, weights)
    np.testing.assert_allclose(slope, onehot.T @ everything(case)(z, ids)[0], rtol=8 * EPS)


def _derivatives_at_infinity(case, z):
    order = jnp.asarray(case.order, jnp.float32)
    jacobians = [jax.jacfwd(case.project)(z), jax.jacrev(case.project)(z), jax.hessian(case.loss)(z, 2)]
    by_alpha = jax.jacfwd(lambda a: sparse.entmax(z, alpha=a))(order)
    by_alpha += jax.grad(lambda a: sparse.entmax_loss(z, 2, alpha=a))(order)
    return jacobians, [jax.jacfwd(case.loss)(z, 2), jax.grad(case.loss)(z, 2)], by_alpha


@cases(*TWO_PROGRAMS)
def test_infinite_logits_in_every_mode(case):
    z, rest = np.array([-np.inf, 0.0, 0.5, -np.inf, 0.75], np.float32), np.array([1, 2, 4])
    with jax.debug_nans(True):
        value, _, diagonal, p = everything(case)(z, 2)
        jacobians, gradients, by_alpha = compiled(_derivatives_at_infinity, case)(z)
        masked = compiled(_project, case)(np.maximum(z, -100), where=z > -np.inf)
    alone = everything(case)(z[rest], 1)
    np.testing.assert_allclose(value, alone[0], rtol=4 * EPS)
    np.testing.assert_allclose(p[rest], alone[3], atol=EPS)
    np.testing.assert_array_equal(masked, p)
    np.testing.assert_array_equal(p[[0, 3]], [0, 0])
    expected = np.zeros((5, 5))
    expected[np.ix_(rest, rest)] = exact_jacobian(oracle.entmax(z[rest], case.order), case.order)
    for jacobian in jacobians:
        np.testing.assert_allclose(jacobian, expected, atol=4 * EPS)
    np.testing.assert_allclose(diagonal, np.diag(expected), atol=4 * EPS)
    for slope in gradients:
        np.testing.assert_allclose(slope, p - np.eye(5)[2], atol=2 * EPS)
        np.testing.assert_array_equal(slope[[0, 3]], [0, 0])
    assert np.isfinite(by_alpha).all()


def _forward(case, z, labels):
    return jax.jacfwd(case.loss)(z, labels)


@cases(*TWO_PROGRAMS)
def test_label_on_a_class_that_does_not_exist(case):
    z = np.array([-np.inf, 0.0, 0.25], np.float32)
    assert everything(case)(z, 0, class_weights=np.zeros(3, np.float32))[0] == 0
    for labels, share in ((0, [1, 0, 0]), (np.array([0.5, 0.5, 0], np.float32), [0.5, 0.5, 0])):
        with jax.debug_nans(True):
            value, gradient, _, p = everything(case)(z, labels)
            forward = compiled(_forward, case)(z, labels)
        assert value == np.inf
        np.testing.assert_allclose(gradient, p - share, atol=2 * EPS)
        np.testing.assert_array_equal(forward, gradient)


@cases("alpha 1", "alpha 2", *FEW)
def test_ties(case):
    p = compiled(_project, case)(np.zeros(1000, np.float32))
    np.testing.assert_allclose(p, np.full(1000, 1e-3), rtol=8 * EPS)
    p = compiled(_project, case)(np.array([2.0, 5.0, 5.0, -90.0], np.float32))
    assert p[1] == p[2]
    # At the edge of the support: the margin is 1 / (alpha - 1).
    z = np.array([1 / (max(case.order, 1.25) - 1), 0.0, 0.0], np.float32)
    with jax.debug_nans(True):
        value, gradient, _, p, hessian, _ = edge(case)(z, 0)
    if case.order > 1:
        np.testing.assert_array_equal(p, [1, 0, 0])
        np.testing.assert_array_equal(gradient, [0, 0, 0])
        np.testing.assert_array_equal(hessian, np.zeros((3, 3)))
        assert value == 0


@cases(*TWO_PROGRAMS)
def test_one_class_one_that_exists_and_none(case):
    with jax.debug_nans(True):
        for row, label in (([3.0], 0), ([-np.inf, 3.0, -np.inf], 1)):
            value, gradient, diagonal, p, *derivatives = edge(case)(np.array(row, np.float32), label)
            for got in (value, gradient, diagonal, *derivatives):
                np.testing.assert_array_equal(got, np.zeros_like(got))
            np.testing.assert_array_equal(p, np.array(row) > -np.inf)
        nothing = np.full(3, -np.inf, np.float32)
        for got in everything(case)(nothing, np.zeros(3, np.float32)):
            np.testing.assert_array_equal(got, np.zeros_like(got))
        for label in (0, 2):
            value, *_, jacobian = edge(case)(nothing, label)
            assert value == np.inf
            np.testing.assert_array_equal(jacobian, np.zeros((3, 3)))
    assert case.project(np.zeros((0, 5), np.float32)).shape == (0, 5)


@cases("sparsemax", "alpha 1.25")
def test_projections_of_half_precision(case, rng):
    cotangent = rng.normal(size=(6, 5)).astype(np.float32)
    run = jax.jit(lambda z: (case.project(z), jax.vjp(case.project, z)[1](cotangent)[0]))
    for half in (jnp.bfloat16, jnp.float16):
        z = rng.normal(size=(6, 5)).astype(half)
        p, pulled = map(np.asarray, run(z))
        wide, wide_pulled = map(np.asarray, run(z.astype(np.float32)))
        assert (p.dtype, pulled.dtype) == (jnp.float32, half)
        np.testing.assert_array_equal(p, wide)
        np.testing.assert_array_equal(pulled, wide_pulled.astype(half))


@cases("sparsemax", "alpha 1.25")
def test_projections_of_rows_left_out(case, rng):
    z, where = rng.normal(size=(6, 5)).astype(np.float32), np.array([True, False, True, True, False, True])
    project = partial(case.project, where=where)

    @jax.jit
    def run(z):
        return project(z), jax.jvp(project, (z,), (jnp.ones((6, 5)),))[1], jax.vjp(project, z)[1](jnp.cos(z))[0]

    for rubbish in (np.nan, np.inf, -np.inf):
        dirty = np.where(where[:, None], z, np.float32(rubbish))
        found = list(map(np.asarray, run(dirty)))
        with jax.debug_nans(not np.isnan(rubbish)):
            np.testing.assert_array_equal(compiled(_project, case)(dirty, where=where), found[0])
        np.testing.assert_array_equal(found[0][where], compiled(_project, case)(z)[where])
        for a in found:
            np.testing.assert_array_equal(a[~where], np.zeros((2, 5)))


def test_projections_along_any_axis(rng):
    z = rng.normal(size=(3, 4, 5)).astype(np.float32)
    for axis in (0, -2, (0, 2), None):
        axes = tuple(range(3)) if axis is None else axis if isinstance(axis, tuple) else (axis % 3,)
        last = np.moveaxis(z, axes, range(-len(axes), 0))
        flat = sparse.entmax15(last.reshape(*last.shape[: 3 - len(axes)], -1))
        back = np.moveaxis(np.asarray(flat).reshape(last.shape), range(-len(axes), 0), axes)
        np.testing.assert_allclose(sparse.entmax15(z, axis), back, rtol=8 * EPS, atol=8 * EPS)


def _project(case, z, **options):
    return case.project(z, **options)


def _loss(case, z, labels):
    return case.loss(z, labels)


def _value_and_grad(case, z, labels):
    return jaxloss.per_example_value_and_grad(case.loss)(z, labels)


@cases("alpha 1", *FEW)
def test_never_negative_at_the_projection_itself(case, rng):
    """Labels equal to the projection with its rounding, in 80,000 rows: the loss is 0 but for that."""
    z = (rng.normal(size=(80_000, 6)) * np.repeat([0.3, 4.0], 40_000)[:, None]).astype(np.float32)
    value = compiled(_loss, case)(z, compiled(_project, case)(z))
    assert not np.signbit(value).any()
    np.testing.assert_allclose(value, np.zeros(len(z)), atol=(8 * EPS) ** 2)


def test_binary_values_and_derivatives():
    z = np.array([-np.inf, -1e30, -3.0, -1.0, -0.999, -0.3, 0.0, 1e-6, 0.7, 1.0, 1.5, 1e30, np.inf], np.float32)
    by_labels = jax.jit(jax.grad(lambda t: jnp.sum(sparse.sparsemax_loss(z, t))))
    for t in (0.0, 0.3, 1.0):
        labels = np.full(z.shape, t, np.float32)
        with jax.debug_nans(True):
            value, gradient, hessian = of_two_classes(z, labels)
            by_label = np.asarray(by_labels(labels))[1:-1]
        wide, t = z.astype(np.float64), float(np.float32(t))
        p = np.clip((1 + wide) / 2, 0, 1)
        with np.errstate(invalid="ignore", over="ignore"):
            exact = t * (t - 1) + np.where(wide > 1, wide, np.where(wide < -1, 0, (1 + wide) ** 2 / 4)) - t * wide
        exact = np.where(np.isfinite(wide), exact, np.where(p == t, 0, np.inf))
        np.testing.assert_allclose(value, exact, rtol=4 * EPS, atol=EPS)
        np.testing.assert_allclose(gradient, p - t, rtol=2 * EPS, atol=EPS)
        np.testing.assert_array_equal(hessian, np.where(np.abs(wide) < 1, 0.5, 0))
        np.testing.assert_allclose(by_label, 2 * t - 1 - wide[1:-1], rtol=4 * EPS, atol=4 * EPS)
    near = jnp.array([1 - 2.0**-20, 1 - 2.0**-24])
    np.testing.assert_array_equal(sparse.sparsemax_loss(near, jnp.ones(2)), [2.0**-42, 2.0**-50])


@cases("sparsemax", "alpha 1.25")
def test_projections_under_transformations(case, rng):
    z, ids = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), jnp.asarray(rng.integers(0, 5, 6))

    def total(z):
        return jnp.sum(case.project(z) ** 2)

    @jax.jit
    def gradients(z):
        by_entry = jax.vmap(lambda v: jax.jvp(total, (z,), (v,))[1])(jnp.eye(30).reshape(30, 6, 5))
        return jax.grad(total)(z), jax.vmap(jax.grad(total))(z), by_entry.reshape(6, 5)

    gradient, by_row, by_entry = gradients(z)
    np.testing.assert_allclose(by_row, gradient, rtol=16 * EPS, atol=8 * EPS)
    np.testing.assert_allclose(by_entry, gradient, rtol=16 * EPS, atol=8 * EPS)
    program = jax.make_jaxpr(jax.value_and_grad(lambda z: total(z) + jnp.sum(case.loss(z, ids))))(z)
    names = {equation.primitive.name for equation in jaxprs.equations(program)}
    assert not names & {"sort", "scatter", "scatter-add", "gather", "pure_callback", "io_callback", "while"}, names
    # The equation for w is solved once, for the loss and the gradient together.
    step = jax.make_jaxpr(jax.value_and_grad(lambda z: jnp.sum(case.loss(z, ids))))(z)
    assert sum(equation.primitive.name == "scan" for equation in jaxprs.equations(step)) == 1


def test_alpha_may_be_swept(rng):
    z, ids, orders = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32), jnp.arange(4), jnp.array([1.0, 1.3, 1.5, 2.0])
    swept = jax.vmap(lambda a: sparse.entmax(z, alpha=a))(orders)
    by_row = jax.vmap(lambda z, a: sparse.entmax(z, alpha=a))(z, orders)
    losses = jax.vmap(lambda a: jax.grad(lambda z: jnp.sum(sparse.entmax_loss(z, ids, alpha=a)))(z))(orders)
    sparse.entmax(z, alpha=1.1)
    compilations = []

    def record(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compilations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(record)
    try:
        each = [sparse.entmax(z, alpha=float(a)) for a in (1.0, 1.3, 1.7, 2.0)]
        assert not compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(record)
    for i in (0, 1, 3):
        np.testing.assert_allclose(swept[i], each[i], atol=2 * EPS)
        np.testing.assert_allclose(by_row[i], each[i][i], atol=2 * EPS)
        np.testing.assert_allclose(losses[i], each[i] - jax.nn.one_hot(ids, 5), atol=4 * EPS)


@cases("sparsemax", "alpha 1.25")
def test_projections_with_sharded_classes(case, rng):
    """There is no sort: nothing but sums and a maximum crosses the devices."""
    z = jnp.asarray(rng.normal(size=(8, 12)), jnp.float32).at[:, 5].set(-jnp.inf)
    cotangent, both = jnp.asarray(rng.normal(size=(8, 12)), jnp.float32), P("data", "model")

    def run(project, z):
        p, pullback = jax.vjp(project, z)
        return p, pullback(cotangent)[0]

    expected = run(case.project, z)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
        placed, project = jax.device_put(z, NamedSharding(mesh, both)), case.project
        if kind == AxisType.Auto:
            local = partial(project, axis_name="model")
            project = jax.shard_map(local, mesh=mesh, in_specs=both, out_specs=both)
        compiled_run = jax.jit(partial(run, project)).lower(placed).compile()
        for got, wanted in zip(compiled_run(placed), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=8 * EPS, atol=8 * EPS)
        assert "all-gather" not in compiled_run.as_text()
        assert "all-to-all" not in compiled_run.as_text()


def test_debug_checks_of_alpha():
    z, ids = jnp.zeros((8, 10)), jnp.zeros(8, jnp.int32)
    for function in (lambda a: sparse.entmax(z, alpha=a), lambda a: sparse.entmax_loss(z, ids, alpha=a)):
        for alpha in (2.0, 2.5):
            checked = checkify.checkify(jax.jit(function), errors=checkify.user_checks)
            found = checked(jnp.float32(alpha))[0].get()
            assert (found is None) == (alpha == 2)
        assert "`alpha` must be in [1, 2]; got 2.5" in found
