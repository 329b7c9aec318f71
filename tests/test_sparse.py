"""Sparsemax, entmax and their losses against mpmath and the published packages, and every promise for each of them.

The oracle knows the textbook alone: p_j = [b z_j - tau]_+^(1/b) with tau by bisection, and the Fenchel-Young loss
Omega(t) - Omega(p) - <z, t - p>, in 50 digits.
"""

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
from tests import jaxprs

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


@cache
def program(function: Callable, case: Case | None) -> Callable:
    """The compiled function of a case and arguments; one program for every alpha that is an array."""
    if case is None:
        given = lambda alpha, *args, **options: function(entmax_of(alpha), *args, **options)  # noqa: E731
    else:
        given = lambda *args, **options: function(case, *args, **options)  # noqa: E731
    return jax.jit(given, static_argnames="axis")


def compiled(function: Callable, case: Case) -> Callable:
    return partial(program(function, None), jnp.float32(case.order)) if case.traced else program(function, case)


def _everything(case, z, labels, axis=-1, **options):
    run = jaxloss.per_example_value_grad_hess(case.loss)
    given = {key: options[key] for key in options if key == "where"}
    return (*run(z, labels, axis, **options), case.project(z, axis, **given))


def everything(case: Case) -> Callable:
    """Value, gradient and diagonal of the Hessian of the loss, and the projection, in one program."""
    return compiled(_everything, case)


def power(x, exponent):
    return x**exponent if x > 0 else mp.mpf(0)


def exact_projection(z, alpha) -> list:
    """Probabilities as mpmath numbers; -inf logits are left out."""
    return _exact_projection(tuple(map(float, z)), alpha)


@cache
def _exact_projection(z, alpha) -> list:
    with mp.workdps(DIGITS):
        b = mp.mpf(alpha) - 1
        alive = [mp.mpf(x) for x in z if x > -np.inf]
        top = max(alive)

        def probability(x, tau):
            return mp.exp(x - tau) if b == 0 else power(b * (x - top) - tau, 1 / b)

        low, high = (top, top + len(alive)) if b == 0 else (mp.mpf(-1), mp.mpf(0))
        for _ in range(DIGITS * 10 // 3):
            middle = (low + high) / 2
            above = mp.fsum(probability(x, middle) for x in alive) > 1
            low, high = (middle, high) if above else (low, middle)
        return [mp.mpf(0) if x == -np.inf else probability(mp.mpf(x), low) for x in z]


def omega(p, alpha):
    a = mp.mpf(alpha)
    if a == 1:
        return mp.fsum(x * mp.log(x) for x in p if x > 0)
    return mp.fsum((power(x, a) - x) / (a * (a - 1)) for x in p)


def exact_loss(z, t, alpha):
    """Loss of a label that is divided by its sum."""
    with mp.workdps(DIGITS):
        t = [mp.mpf(float(x)) for x in t]
        t = [x / mp.fsum(t) for x in t]
        p = exact_projection(z, alpha)
        product = mp.fsum(mp.mpf(float(x)) * (a - b) for x, a, b in zip(z, t, p, strict=True) if x > -np.inf)
        return omega(t, alpha) - omega(p, alpha) - product


def exact_jacobian(p, alpha) -> np.ndarray:
    s = np.array([float(power(x, 2 - mp.mpf(alpha))) for x in p])
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
        exact = np.array(exact_projection(row, case.order), float)
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
            exact = float(exact_loss(row, t, case.order))
            assert abs(v - exact) <= 4 * EPS * (2 * exact + np.sqrt(exact)), (kind, row, v, exact)
            p = np.array(exact_projection(row, case.order), float)
            np.testing.assert_allclose(g, p - t / t.sum(), rtol=8 * EPS, atol=4 * EPS, err_msg=kind)


def test_confident_rows_keep_their_digits():
    """p - 1 and Omega(t) - Omega(p) lose all of them."""
    for order in (1, 1.01, 1.1):
        run = compiled(_value_and_grad, entmax_of(order))
        for z in ([8.0, 0.0, -1.0], [9.0, 0.5, 0.0], [20.0, 0.0, 2.0]):
            exact = float(exact_loss(z, [1, 0, 0], float(np.float32(order))))
            value, gradient = run(jnp.array(z), 0)
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


@cases(*FEW)
def test_float64(case, x64, rng):
    z, ids = rng.normal(size=(3, 5)), np.array([0, 3, 2])
    value, gradient, _, p = everything(case)(z, ids)
    assert value.dtype == gradient.dtype == p.dtype == jnp.float64
    for row, y, v, q in zip(z, ids, value, p, strict=True):
        np.testing.assert_allclose(q, np.array(exact_projection(row, case.order), float), atol=4 * 2.0**-52)
        np.testing.assert_allclose(v, float(exact_loss(row, np.eye(5)[y], case.order)), rtol=16 * 2.0**-52)


def _first_derivatives(case, z, tangent, soft):
    jacobians = [jax.jacfwd(case.project)(z), jax.jacrev(case.project)(z)]
    product = jax.jvp(jax.grad(lambda z: case.loss(z, 1)), (z,), (tangent,))[1]
    return jacobians + [jax.hessian(case.loss)(z, t) for t in (3, soft)], product


@cases("alpha 1", "alpha 2", *FEW)
def test_first_derivatives(case):
    z, tangent = jnp.array([1.0, 0.7, 0.65, -0.1, -3.0]), jnp.array([0.5, -1.0, 2.0, 0.25, 1.0])
    soft = jnp.array([0.1, 0.2, 0.0, 0.3, 0.4])
    jacobian = exact_jacobian(exact_projection(z, case.order), case.order)
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
            above = mp.fsum(power(b * x - middle, 1 / b) for x in logits) > 1
            low, high = (middle, high) if above else (low, middle)
        s = [(b * x - low) ** (1 / b - 1) if b * x > low else mp.mpf(0) for x in logits]
        return mp.matrix([[(s[i] if i == j else 0) - s[i] * s[j] / mp.fsum(s) for j in range(5)] for i in range(5)])

    with mp.workdps(DIGITS):
        h = mp.mpf(10) ** -15
        exact = np.array(((jacobian(h) - jacobian(-h)) / (2 * h)).tolist(), float)
    got = compiled(_change_of_jacobian, case)(jnp.asarray(z, jnp.float32), jnp.asarray(v, jnp.float32))
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
        p = [exact_projection(z, x) for x in points]
        by_alpha = [float(mp.fdot(weights, column)) for column in zip(*p, strict=True)]
        losses = [[exact_loss(z, label, x) for x in points] for label in (t, np.eye(5)[1])]
        slopes = [float(mp.fdot(weights, row)) for row in losses]
        bends = [float((row[0] - 2 * row[1] + row[2]) / h**2) for row in losses]

    forward, reverse, *rest = _by_alpha(jnp.float32(order), z, t)
    for got in (forward, reverse, rest[2], rest[5]):
        np.testing.assert_allclose(got, by_alpha, atol=32 * EPS)
    np.testing.assert_allclose(rest[::3], slopes, atol=32 * EPS)
    np.testing.assert_allclose(rest[1::3], bends, rtol=1e-5, atol=128 * EPS)


@cases(*FEW)
def test_derivatives_by_soft_labels(case):
    z, t = np.array([1.0, 0.7, 0.65, 0.2, -2.0], np.float32), np.array([0.2, 0.8, 0.5, 0.7, 0.3], np.float32)
    h = 1e-6
    steps = [(exact_loss(z, t + h * e, case.order), exact_loss(z, t - h * e, case.order)) for e in np.eye(5)]
    exact = [float((above - below) / (2 * h)) for above, below in steps]
    got, mixed = jax.jit(lambda t: (jax.grad(case.loss, 1)(z, t), jax.jacfwd(jax.grad(case.loss), 1)(z, t)))(t)
    np.testing.assert_allclose(got, exact, atol=16 * EPS)
    total = t.sum()
    np.testing.assert_allclose(mixed, -(np.eye(5) - np.outer(t, np.ones(5)) / total) / total, atol=8 * EPS)


def test_numbers_of_optax(rng):
    z, ids = jnp.asarray(rng.normal(size=(64, 6)), jnp.float32), jnp.asarray(rng.integers(0, 6, 64))
    labels = jnp.broadcast_to(ids[:, None] > 2, z.shape)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        multiclass, binary = optax.losses.multiclass_sparsemax_loss(z, ids), optax.losses.sparsemax_loss(z, labels)
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
    z, ids = jnp.asarray(rng.normal(size=(32, 7)), jnp.float32), jnp.asarray(rng.integers(0, 7, 32))
    soft = jnp.asarray(rng.dirichlet(np.ones(7), 32), jnp.float32)
    np.testing.assert_allclose(sparse.entmax(z, alpha=1), jax.nn.softmax(z), rtol=8 * EPS)
    np.testing.assert_array_equal(sparse.entmax(z), sparse.entmax15(z))
    np.testing.assert_array_equal(sparse.entmax(z, alpha=1.5), sparse.entmax15(z))
    for t in (ids, soft):
        entropy = 0 if t.ndim == 1 else -jnp.sum(t * jnp.log(t), -1)
        value, gradient, hessian, _ = everything(CASES["alpha 1"])(z, t)
        expected = jax.jit(jaxloss.per_example_value_grad_hess(jaxloss.softmax_cross_entropy))(z, t)
        np.testing.assert_allclose(value, expected[0] - entropy, rtol=16 * EPS, atol=8 * EPS)
        np.testing.assert_allclose(gradient, expected[1], atol=4 * EPS)
        np.testing.assert_allclose(hessian, expected[2], atol=4 * EPS)
        for traced, static in (("alpha 2", "sparsemax"), ("alpha 1.5", "entmax15")):
            for a, b in zip(everything(CASES[traced])(z, t), everything(CASES[static])(z, t), strict=True):
                np.testing.assert_allclose(a, b, rtol=8 * EPS, atol=4 * EPS)


def test_binary_is_two_classes(rng):
    z, t = jnp.asarray(rng.normal(size=32), jnp.float32), jnp.asarray(rng.uniform(size=32), jnp.float32)
    ids = jnp.asarray(t > 0.5, jnp.int32)
    two = jnp.stack([jnp.zeros(32), z], -1)
    for rows_, labels in ((ids, ids), (jnp.stack([1 - t, t], -1), t)):
        value, gradient, hessian, _ = everything(CASES["sparsemax"])(two, rows_)
        expected = jaxloss.per_example_value_grad_hess(sparse.sparsemax_loss)(z, labels)
        for a, b in zip((value, gradient[:, 1], hessian[:, 1]), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=4 * EPS, atol=2 * EPS)
    np.testing.assert_allclose(sparse.sparsemax_loss(z, jnp.ones(32)), jax.nn.sparse_plus(-z), atol=2 * EPS)
    np.testing.assert_allclose(sparse.sparsemax_loss(z, jnp.zeros(32)), jax.nn.sparse_plus(z), atol=2 * EPS)


@cases(*FEW)
def test_kinds_of_labels_agree(case, rng):
    z, ids = jnp.asarray(rng.normal(size=(6, 5)) * 2, jnp.float32), jnp.asarray(rng.integers(0, 5, 6))
    run = everything(case)
    expected, onehot = run(z, ids), jax.nn.one_hot(ids, 5)
    for labels in (onehot, onehot.astype(bool), onehot * 3):
        jax.tree.map(np.testing.assert_array_equal, run(z, labels), expected)
    multi = jnp.array([[0.0, 1.0, 1.0, 0.0, 1.0]] * 6)
    for got, wanted in zip(run(z, multi), run(z, multi / 3), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=16 * EPS, atol=2 * EPS)
    with jax.debug_nans(True):
        for got in (*run(z, multi * 0)[:3], jax.jvp(lambda z: case.loss(z, multi * 0), (z,), (z,))[1]):
            np.testing.assert_array_equal(got, np.zeros_like(got))


@cases(*FEW)
def test_class_weights_weigh_the_row(case, rng):
    z, ids = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), jnp.asarray(rng.integers(0, 5, 6))
    soft = jnp.asarray(rng.dirichlet(np.ones(5), 6), jnp.float32)
    weights = jnp.array([0.5, 2.0, 0.0, 1.0, 4.0])
    for labels, row in ((ids, weights[ids]), (soft, soft @ weights)):
        plain = everything(case)(z, labels)[:3]
        for got, expected in zip(everything(case)(z, labels, class_weights=weights), plain, strict=False):
            by_row = row.reshape(-1, *[1] * (expected.ndim - 1))
            np.testing.assert_allclose(got, expected * by_row, rtol=8 * EPS, atol=EPS)
        for got, expected in zip(everything(case)(z, labels, class_weights=jnp.ones(5)), plain, strict=False):
            np.testing.assert_array_equal(got, expected)
    slope = jax.grad(lambda w: jnp.sum(case.loss(z, ids, class_weights=w)))(weights)
    np.testing.assert_allclose(slope, jax.nn.one_hot(ids, 5).T @ case.loss(z, ids), rtol=8 * EPS)


def _derivatives_at_infinity(case, z):
    order = jnp.asarray(case.order, jnp.float32)
    jacobians = [jax.jacfwd(case.project)(z), jax.jacrev(case.project)(z), jax.hessian(case.loss)(z, 2)]
    by_alpha = jax.jacfwd(lambda a: sparse.entmax(z, alpha=a))(order)
    by_alpha += jax.grad(lambda a: sparse.entmax_loss(z, 2, alpha=a))(order)
    return jacobians, [jax.jacfwd(case.loss)(z, 2), jax.grad(case.loss)(z, 2)], by_alpha


@cases("alpha 1", *FEW)
def test_infinite_logits_in_every_mode(case):
    z, rest = jnp.array([-jnp.inf, 0.0, 0.5, -jnp.inf, 0.75]), jnp.array([1, 2, 4])
    with jax.debug_nans(True):
        value, _, diagonal, p = everything(case)(z, 2)
        jacobians, gradients, by_alpha = compiled(_derivatives_at_infinity, case)(z)
        masked = case.project(jnp.where(z == -jnp.inf, 100.0, z), where=z > -jnp.inf)
    alone = everything(case)(z[rest], 1)
    np.testing.assert_allclose(value, alone[0], rtol=4 * EPS)
    np.testing.assert_allclose(p[rest], alone[3], atol=EPS)
    np.testing.assert_array_equal(masked, p)
    np.testing.assert_array_equal(p[jnp.array([0, 3])], [0, 0])
    expected = np.zeros((5, 5))
    expected[np.ix_(rest, rest)] = exact_jacobian(exact_projection(z[rest], case.order), case.order)
    for jacobian in jacobians:
        np.testing.assert_allclose(jacobian, expected, atol=4 * EPS)
    np.testing.assert_allclose(diagonal, np.diag(expected), atol=4 * EPS)
    for slope in gradients:
        np.testing.assert_allclose(slope, p - np.eye(5)[2], atol=2 * EPS)
        np.testing.assert_array_equal(np.asarray(slope)[[0, 3]], [0, 0])
    assert np.isfinite(by_alpha).all()


def _forward(case, z, labels):
    return jax.jacfwd(case.loss)(z, labels)


@cases("alpha 1", *FEW)
def test_label_on_a_class_that_does_not_exist(case):
    z = jnp.array([-jnp.inf, 0.0, 0.25, 0.5])
    assert everything(case)(z, 0, class_weights=jnp.zeros(4))[0] == 0
    for labels in (jnp.array(0), jnp.array([0.5, 0.5, 0, 0])):
        with jax.debug_nans(True):
            value, gradient, _, p = everything(case)(z, labels)
            forward = compiled(_forward, case)(z, labels)
        assert value == np.inf
        np.testing.assert_allclose(gradient, p - (jnp.eye(4)[0] if labels.ndim == 0 else labels), atol=2 * EPS)
        np.testing.assert_array_equal(forward, gradient)


def _hessian(case, z, labels):
    return jax.hessian(case.loss)(z, labels)


@cases("alpha 1", "alpha 2", *FEW)
def test_ties(case):
    np.testing.assert_allclose(compiled(_project, case)(jnp.zeros(1000)), np.full(1000, 1e-3), rtol=8 * EPS)
    p = compiled(_project, case)(jnp.array([2.0, 5.0, 5.0, -90.0]))
    assert p[1] == p[2]
    # At the edge of the support: the margin is 1 / (alpha - 1).
    z = jnp.array([1 / (max(case.order, 1.25) - 1), 0.0, 0.0])
    with jax.debug_nans(True):
        value, gradient, _, p = everything(case)(z, 0)
        hessian = compiled(_hessian, case)(z, 0)
    if case.order > 1:
        np.testing.assert_array_equal(p, [1, 0, 0])
        np.testing.assert_array_equal(gradient, [0, 0, 0])
        np.testing.assert_array_equal(hessian, np.zeros((3, 3)))
        assert value == 0


def _jacobian(case, z):
    return jax.jacrev(case.project)(z)


@cases("alpha 1", *FEW)
def test_one_class_one_that_exists_none_and_no_rows(case):
    with jax.debug_nans(True):
        for row, label in (([3.0], 0), ([-np.inf, 3.0, -np.inf], 1)):
            z = jnp.array(row)
            *zeros, p = everything(case)(z, label)
            for got in (*zeros, compiled(_hessian, case)(z, label), compiled(_jacobian, case)(z)):
                np.testing.assert_array_equal(got, np.zeros_like(got))
            np.testing.assert_array_equal(p, z > -jnp.inf)
        nothing = jnp.full((2, 3), -jnp.inf)
        for got in everything(case)(nothing, jnp.zeros((2, 3))):
            np.testing.assert_array_equal(got, np.zeros_like(got))
        np.testing.assert_array_equal(compiled(_jacobian, case)(nothing), np.zeros((2, 3, 2, 3)))
        assert (everything(case)(nothing, jnp.array([0, 2]))[0] == np.inf).all()
    value, gradient, _, p = everything(case)(jnp.zeros((0, 5)), jnp.zeros((0,), jnp.int32))
    assert value.shape == (0,)
    assert gradient.shape == p.shape == (0, 5)


@cases(*FEW)
def test_half_precision_is_computed_in_float32(case, rng):
    ids, cotangent = jnp.asarray(rng.integers(0, 5, 6)), jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    pull = jax.jit(lambda z: jax.vjp(case.project, z)[1](cotangent)[0])
    for half in (jnp.bfloat16, jnp.float16):
        z = jnp.asarray(rng.normal(size=(6, 5)), half)
        wide = z.astype(jnp.float32)
        value, gradient, hessian, p = everything(case)(z, ids)
        expected = everything(case)(wide, ids)
        assert value.dtype == p.dtype == jnp.float32
        assert gradient.dtype == hessian.dtype == half
        np.testing.assert_array_equal(value, expected[0])
        np.testing.assert_array_equal(gradient, expected[1].astype(half))
        np.testing.assert_array_equal(hessian, expected[2].astype(half))
        np.testing.assert_array_equal(p, expected[3])
        np.testing.assert_array_equal(pull(z), pull(wide).astype(half))


@cases(*FEW)
def test_no_float64_for_float32_inputs(case, x64, rng):
    z, ids = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), jnp.arange(6) % 5

    def total(z):
        return jnp.sum(case.loss(z, ids, class_weights=np.ones(5))) + jnp.sum(case.project(z) * jnp.cos(z))

    program = jax.make_jaxpr(jax.value_and_grad(total))(z)
    # Weights given as float64 [C] are cast at once.
    wide = [e for e in jaxprs.equations(program) for v in e.outvars if v.aval.dtype == jnp.float64 and v.aval.ndim > 1]
    assert not wide, wide
    assert case.loss(z, ids).dtype == case.project(z).dtype == jnp.float32


@cases(*FEW)
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_rows_left_out_may_hold_anything(case, kind, rng):
    z, where = rng.normal(size=(6, 5)).astype(np.float32), np.array([True, False, True, True, False, True])
    labels = rng.integers(0, 5, 6) if kind == "ids" else rng.dirichlet(np.ones(5), 6).astype(np.float32)
    project = partial(case.project, where=where)
    linear = jax.jit(lambda z: (jax.jvp(project, (z,), (jnp.ones((6, 5)),))[1], jax.vjp(project, z)[1](jnp.cos(z))[0]))
    plain = everything(case)(z, labels)
    for rubbish in (np.nan, np.inf, -np.inf):
        dirty, dirty_labels = z.copy(), labels.copy()
        dirty[~where], dirty_labels[~where] = rubbish, -100 if kind == "ids" else rubbish
        with jax.debug_nans(not np.isnan(rubbish)):
            got = everything(case)(dirty, dirty_labels, where=where)
        for a, b in zip(got, plain, strict=True):
            np.testing.assert_array_equal(a[where], b[where])
            np.testing.assert_array_equal(a[~where], np.zeros_like(a[~where]))
        for a in linear(dirty):
            np.testing.assert_array_equal(a[~where], np.zeros((2, 5)))


@cases(*FEW)
def test_labels_outside_poison_their_row_alone(case, rng):
    z, ids = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), np.array([-1, 5, -100, 0, 3, 2])
    inside = (ids >= 0) & (ids < 5)
    for options in ({}, {"class_weights": jnp.arange(1.0, 6.0)}):
        expected = everything(case)(z, np.where(inside, ids, 0), **options)[:3]
        for got, good in zip(everything(case)(z, ids, **options), expected, strict=False):
            assert np.isnan(got[:3]).all()
            np.testing.assert_array_equal(got[3:], good[3:])
        for got, good in zip(everything(case)(z, ids, where=inside, **options), expected, strict=False):
            np.testing.assert_array_equal(got[:3], np.zeros_like(got[:3]))
            np.testing.assert_array_equal(got[3:], good[3:])


def test_any_axis(rng):
    case, z = CASES["entmax15"], jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32)
    for axis in (0, -2, (0, 2), None):
        axes = tuple(range(3)) if axis is None else axis if isinstance(axis, tuple) else (axis % 3,)
        last = jnp.moveaxis(z, axes, range(-len(axes), 0))
        flat = last.reshape(*last.shape[: 3 - len(axes)], -1)
        ids = jnp.asarray(rng.integers(0, flat.shape[-1], flat.shape[:-1]))
        expected = everything(case)(flat, ids)
        got = everything(case)(z, ids, axis=axis)
        np.testing.assert_allclose(got[0], expected[0], rtol=8 * EPS)
        for a, b in zip(got[1:], expected[1:], strict=True):
            back = jnp.moveaxis(b.reshape(last.shape), range(-len(axes), 0), axes)
            np.testing.assert_allclose(a, back, rtol=8 * EPS, atol=8 * EPS)


@cases("alpha 1", *FEW)
def test_a_constant_added_to_the_row_changes_no_bit(case, rng):
    z, ids = np.round(rng.normal(size=(6, 5)) * 64).astype(np.float32) / 64, rng.integers(0, 5, 6)
    jax.tree.map(np.testing.assert_array_equal, everything(case)(z, ids), everything(case)(z + 1024, ids))


def _project(case, z):
    return case.project(z)


def _value_and_grad(case, z, labels):
    return jaxloss.per_example_value_and_grad(case.loss)(z, labels)


@cases("alpha 1", *FEW)
def test_never_negative_in_many_rows(case, rng):
    """Random labels, the best class, several labels, and the exact projection with its rounding."""
    for scale in (0.3, 4.0):
        z = jnp.asarray(rng.normal(size=(200_000, 6)) * scale, jnp.float32)
        p = compiled(_project, case)(z)
        ids, multi = jnp.asarray(rng.integers(0, 6, len(z))), jnp.asarray(rng.integers(0, 2, z.shape), jnp.float32)
        for labels in (ids, jnp.argmax(z, -1), p, multi):
            value, gradient = map(np.asarray, compiled(_value_and_grad, case)(z, labels))
            assert not np.signbit(value).any()
            if labels is p:
                np.testing.assert_allclose(value, np.zeros(len(z)), atol=(8 * EPS) ** 2)
            if labels.ndim == 1:
                onehot = np.eye(6, dtype=bool)[labels]
                assert (gradient[onehot] <= 0).all()
                assert (gradient[~onehot] >= 0).all()
                np.testing.assert_allclose(gradient.sum(1, dtype=np.float64), np.zeros(len(z)), atol=4 * EPS)


def test_binary_loss_never_negative(rng):
    z, t = (jnp.asarray(x, jnp.float32) for x in (rng.normal(size=200_000), rng.uniform(size=200_000)))
    for labels in (t, (t > 0.5).astype(jnp.float32), jnp.clip((1 + z) / 2, 0, 1)):
        assert not np.signbit(sparse.sparsemax_loss(z, labels)).any()


def test_binary_values_and_derivatives():
    z = np.array([-np.inf, -1e30, -3.0, -1.0, -0.999, -0.3, 0.0, 1e-6, 0.7, 1.0, 1.5, 1e30, np.inf], np.float32)
    for t in (0.0, 0.3, 1.0):
        labels = jnp.full(z.shape, t, jnp.float32)
        with jax.debug_nans(True):
            value, gradient, hessian = jaxloss.per_example_value_grad_hess(sparse.sparsemax_loss)(z, labels)
            by_label = jax.grad(lambda t: jnp.sum(sparse.sparsemax_loss(z, t)))(labels)[1:-1]
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


def test_binary_options(rng):
    z, labels = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), jnp.asarray(rng.integers(0, 2, (6, 5)), jnp.float32)
    loss, weights, ids = sparse.sparsemax_loss, jnp.arange(1.0, 6.0), jnp.arange(6) % 5
    plain = loss(z, labels)
    np.testing.assert_allclose(loss(z, labels, class_weights=weights), plain * weights[None], rtol=2 * EPS)
    np.testing.assert_allclose(loss(z, labels, label_smoothing=0.2), loss(z, labels * 0.8 + 0.1), atol=4 * EPS)
    np.testing.assert_array_equal(loss(z, labels, label_smoothing=0.0, class_weights=jnp.ones(5)), plain)
    np.testing.assert_array_equal(loss(z, ids), loss(z, jax.nn.one_hot(ids, 5)))
    np.testing.assert_array_equal(np.isnan(loss(z, ids.at[2].set(5))).all(1), np.arange(6) == 2)
    known = jnp.asarray(rng.integers(0, 2, (6, 5)), bool)
    run = jaxloss.per_example_value_and_grad(loss)
    hidden = run(jnp.where(known, z, jnp.nan), jnp.where(known, labels, -1), where=known)
    for a, b in zip(hidden, run(z, labels), strict=True):
        np.testing.assert_array_equal(a, jnp.where(known, b, 0))
    half, gradient = run(z.astype(jnp.bfloat16), labels)
    assert (half.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)


@cases("sparsemax", "alpha 1.25")
def test_the_same_numbers_under_every_transformation(case, rng):
    z, ids = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), jnp.asarray(rng.integers(0, 5, 6))

    def total(z, t):
        return jnp.sum(case.loss(z, t) + jnp.sum(case.project(z) ** 2, -1))

    gradient = jax.grad(total)(z, ids)

    @jax.jit
    def transformed(z, ids):
        return {
            "jit": jax.grad(total)(z, ids),
            "vmap": jax.vmap(jax.grad(total))(z, ids),
            "remat": jax.grad(jax.checkpoint(total))(z, ids),
            "scan": jax.lax.scan(lambda c, x: (c, jax.grad(total)(*x)), 0, (z, ids))[1],
            "forward": jax.vmap(lambda v: jax.jvp(lambda z: total(z, ids), (z,), (v,))[1])(
                jnp.eye(30).reshape(30, 6, 5)
            ),
        }

    for name, got in transformed(z, ids).items():
        np.testing.assert_allclose(got.reshape(6, 5), gradient, rtol=16 * EPS, atol=8 * EPS, err_msg=name)
    np.testing.assert_allclose(jax.vmap(case.loss)(z, ids), case.loss(z, ids), rtol=4 * EPS)
    with jax.disable_jit(not case.traced):
        np.testing.assert_allclose(jax.grad(total)(z, ids), gradient, rtol=16 * EPS, atol=8 * EPS)
    program = jax.make_jaxpr(jax.value_and_grad(total))(z, ids)
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


MESHES = [(name, AxisType.Explicit) for name in FEW] + [("sparsemax", AxisType.Auto)]


@pytest.mark.parametrize(("name", "kind"), MESHES)
def test_meshes(name, kind, rng):
    """The classes may be sharded: there is no sort."""
    case, z = CASES[name], jnp.asarray(rng.normal(size=(8, 12)), jnp.float32)
    ids, soft = jnp.asarray(rng.integers(0, 12, 8)), jnp.asarray(rng.dirichlet(np.ones(12), 8), jnp.float32)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    spec = P("data", "model")
    placed = jax.device_put(z, NamedSharding(mesh, spec))

    @jax.jit
    def run(z, t):
        forward = jax.jvp(lambda z: case.loss(z, t), (z,), (jnp.cos(z),))[1]
        return (*jaxloss.per_example_value_grad_hess(case.loss)(z, t), case.project(z), forward)

    for labels, by in ((ids, P("data")), (soft, spec)):
        given = jax.device_put(labels, NamedSharding(mesh, by))
        for got, expected in zip(run(placed, given), run(z, labels), strict=True):
            np.testing.assert_allclose(got, expected, rtol=8 * EPS, atol=8 * EPS)
        text = run.lower(placed, given).compile().as_text()
        assert "all-gather" not in text
        assert "all-to-all" not in text


@pytest.mark.parametrize(("name", "kind"), [("sparsemax", "ids"), ("entmax15", "soft"), ("alpha 1.25", "ids")])
def test_classes_sharded_inside_shard_map(name, kind, rng):
    case, z = CASES[name], jnp.asarray(rng.normal(size=(8, 12)), jnp.float32).at[:, 5].set(-jnp.inf)
    soft = jnp.asarray(rng.dirichlet(np.ones(12), 8), jnp.float32).at[:, 5].set(0)
    labels = jnp.array([0, 1, 2, 3, 11, 10, 9, 8]) if kind == "ids" else soft
    weights, cotangent = jnp.linspace(0.5, 2, 12), jnp.asarray(rng.normal(size=(8, 12)), jnp.float32)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    both, by_label = P("data", "model"), P("data") if kind == "ids" else P("data", "model")

    def shard(z, t, w):
        return case.loss(z, t, axis_name="model", class_weights=w), case.project(z, axis_name="model")

    sharded = jax.shard_map(shard, mesh=mesh, in_specs=(both, by_label, P("model")), out_specs=(P("data"), both))

    def run(function, t):
        (values, p), pullback = jax.vjp(lambda z: function(z, t, weights), z)
        return values, p, pullback((jnp.ones(8), cotangent))[0]

    got = jax.jit(partial(run, sharded))(labels)
    expected = run(lambda z, t, w: (case.loss(z, t, class_weights=w), case.project(z)), labels)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=8 * EPS, atol=8 * EPS)
    if kind == "ids":
        outside = jax.jit(partial(run, sharded))(labels.at[3].set(12).at[6].set(-1))[0]
        np.testing.assert_array_equal(np.isnan(outside), [0, 0, 0, 1, 0, 0, 1, 0])


Z, IDS = jnp.zeros((8, 10)), jnp.zeros(8, jnp.int32)
BAD = {
    "alpha below 1": (lambda: sparse.entmax(Z, alpha=0.5), ValueError, r"entmax: `alpha`.* in \[1, 2\]; got 0\.5"),
    "alpha above 2": (
        lambda: sparse.entmax_loss(Z, IDS, alpha=3),
        ValueError,
        r"entmax_loss: `alpha`.*\[1, 2\]; got 3",
    ),
    "alpha NaN": (lambda: sparse.entmax(Z, alpha=float("nan")), ValueError, r"`alpha` must be in \[1, 2\]; got nan"),
    "alpha per row": (lambda: sparse.entmax(Z, alpha=jnp.ones(8)), ValueError, r"one number.*float32\[8\].*vmap"),
    "alpha text": (lambda: sparse.entmax(Z, alpha="1.5"), TypeError, r"`alpha` must be an array or a number; got str"),
    "alpha by position": (lambda: sparse.entmax(Z, 1.5), TypeError, r"`axis` must be an int"),
    "integer logits": (lambda: sparse.sparsemax(IDS), TypeError, r"sparsemax: `logits` must be floating.*int32\[8\]"),
    "no classes": (
        lambda: sparse.entmax15(jnp.zeros((8, 0))),
        ValueError,
        r"entmax15: `logits` must have at least one",
    ),
    "where": (lambda: sparse.sparsemax(Z, where=jnp.ones(10, bool)), ValueError, r"rows to keep.*classes that exist"),
    "float ids": (lambda: sparse.entmax_loss(Z, Z[:, 0]), TypeError, r"entmax_loss: `labels` must be integer ids"),
    "weights": (
        lambda: sparse.entmax_loss(Z, IDS, class_weights=jnp.ones(8)),
        ValueError,
        r"`class_weights`.*10 class",
    ),
    "binary": (lambda: sparse.sparsemax_loss(Z, IDS[:3]), ValueError, r"sparsemax_loss: `labels`.*Nothing is broad"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(bad):
    call, error, message = BAD[bad]
    with pytest.raises(error, match=message):
        call()
    with pytest.raises(error, match=message):
        jax.jit(call)()


def test_debug_checks():
    def message(function, *arguments):
        return checkify.checkify(jax.jit(function), errors=checkify.user_checks)(*arguments)[0].get()

    for function in (lambda a: sparse.entmax(Z, alpha=a), lambda a: sparse.entmax_loss(Z, IDS, alpha=a)):
        found = message(function, jnp.float32(2.5))
        assert found is not None
        assert "`alpha` must be in [1, 2]; got 2.5" in found
        assert message(function, jnp.float32(2)) is None
    found = message(sparse.multiclass_sparsemax_loss, Z, IDS.at[3].set(17))
    assert found is not None
    assert "multiclass_sparsemax_loss: `labels` must be class ids in [0, 10)" in found
