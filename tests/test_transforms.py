"""Promise 9 on one device: the same numbers under every transformation, one trace, nothing forbidden in the program."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxloss
from tests import cases, jaxprs

pytestmark = pytest.mark.usefixtures("form")

FORBIDDEN = {"scatter", "scatter-add", "scatter_add", "pure_callback", "io_callback", "debug_callback", "infeed"}


def arguments(case, rng, kind="ids"):
    return cases.logits_for(case, rng), cases.labels_for(case, rng, kind)


def close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=64 * 2.0**-23, atol=2.0**-22), got, expected)


@pytest.mark.thin
@cases.all_cases
def test_the_same_numbers_under_every_transformation(case, rng):
    logits, labels = arguments(case, rng)

    def total(z, t):
        return jnp.sum(case.call(z, t))

    value, gradient = map(np.asarray, case.run(logits, labels))
    tangent = rng.normal(size=logits.shape).astype(np.float32)
    cotangent = rng.normal(size=value.shape).astype(np.float32)  # one for each loss (Liger#968)

    @jax.jit  # one program of all, for it is the tracing that differs
    def found(z, t):
        def of_logits(z):
            return case.call(z, t)

        return {
            "grad": jax.grad(total)(z, t),
            "jit of grad": jax.jit(jax.grad(total))(z, t),
            "vmap": jax.vmap(case.call)(z, t),
            "vmap of grad": jax.vmap(jax.grad(total))(z, t),
            "checkpoint": jax.grad(jax.checkpoint(total))(z, t),
            "scan": jax.lax.scan(lambda c, x: (c, jax.value_and_grad(total)(*x)[1]), 0, (z, t))[1],
            "map": jax.lax.map(lambda x: case.call(*x), (z, t)),
            "jvp": jax.jvp(lambda z: total(z, t), (z,), (tangent,))[1],
            "linearize": jnp.sum(jax.linearize(of_logits, z)[1](tangent)),
            "vjp": jax.vjp(of_logits, z)[1](cotangent)[0],
        }

    forward = np.sum(gradient * tangent)
    expected = dict.fromkeys(("grad", "jit of grad", "vmap of grad", "checkpoint", "scan"), gradient)
    expected |= {"vmap": value, "map": value, "jvp": forward, "linearize": forward}
    expected |= {"vjp": gradient * cotangent.reshape(cotangent.shape + (1,) * (logits.ndim - value.ndim))}
    close(found(logits, labels), expected)
    close(jax.grad(total)(logits, labels), gradient)


@pytest.mark.thin
@cases.all_cases
def test_without_jit_at_all(case, rng):
    """Of every loss, in `test_eager`."""
    logits, labels = arguments(case, rng)
    expected = case.run(logits, labels)
    with jax.disable_jit():
        close(jaxloss.per_example_value_and_grad(case.call)(logits, labels), expected)


@pytest.mark.thin
@cases.all_cases
def test_one_trace_for_all_numbers(case, rng):
    logits, labels = arguments(case, rng)

    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def step(z, t, smoothing):
        return jax.grad(lambda z: jnp.sum(case.call(z, t, **case.takes(label_smoothing=smoothing))))(z)

    step = jax.jit(step)
    for smoothing in (0.0, 0.1, 0.2):
        step(logits, labels, smoothing)


def test_eager_calls_with_other_numbers_share_a_program(rng):
    logits, ids = arguments(None, rng)
    jaxloss.softmax_focal_loss(logits, ids, gamma=1.25)
    compilations = []

    def record(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compilations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(record)
    try:
        for gamma in (1.5, 1.75, 2.5):
            jaxloss.softmax_focal_loss(logits, ids, gamma=gamma)
        assert not compilations
        jaxloss.softmax_focal_loss(logits[:-1], ids[:-1])
        assert compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(record)


@cases.all_cases
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_nothing_forbidden_in_the_program(case, kind, rng):
    logits, labels = arguments(case, rng, kind)
    options = case.takes(label_smoothing=jnp.float32(0.1), class_weights=jnp.ones(5))
    program = jax.make_jaxpr(jax.value_and_grad(lambda z, options: jnp.sum(case.call(z, labels, **options)), (0, 1)))(
        logits, options
    )
    names = {equation.primitive.name for equation in jaxprs.equations(program)}
    assert not names & FORBIDDEN, names & FORBIDDEN
    compiled = jax.jit(jax.grad(lambda z: jnp.sum(case.call(z, labels)))).lower(logits).compile().as_text()
    for word in ("scatter", "custom-call", "f64["):
        assert word not in compiled, word


def separable(rng):
    x, kernel = (rng.normal(size=size).astype(np.float32) for size in ((128, 4), (4, 3)))
    return x, np.argmax(x @ kernel, -1)


OPTIMIZERS = {
    "adamw": optax.adamw(0.1),
    "multi_steps": optax.MultiSteps(optax.adamw(0.1), every_k_schedule=2),
    "sam": optax.contrib.sam(optax.sgd(0.5), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), sync_period=2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.usefixtures("standard_promotion")
def test_trains_with_optax(name, rng):
    x, y = separable(rng)
    optimizer = OPTIMIZERS[name]

    def loss(w):
        return jaxloss.mean(jaxloss.softmax_focal_loss(x @ w, y, gamma=1.0))

    @jax.jit
    def step(w, state):
        updates, state = optimizer.update(jax.grad(loss)(w), state, w)
        return optax.apply_updates(w, updates), state

    w = jnp.zeros((4, 3))
    state = optimizer.init(w)
    for _ in range(80):
        w, state = step(w, state)
    assert loss(w) < 0.3 * loss(jnp.zeros((4, 3)))


@pytest.mark.usefixtures("standard_promotion")
def test_trains_with_lbfgs(rng):
    x, y = separable(rng)
    optimizer = optax.lbfgs()

    def loss(w):
        return jaxloss.mean(jaxloss.softmax_cross_entropy(x @ w, y)) + 1e-3 * jnp.sum(w * w)

    @jax.jit
    def step(w, state):
        value, gradient = optax.value_and_grad_from_state(loss)(w, state=state)
        updates, state = optimizer.update(gradient, state, w, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(w, updates), state

    w = jnp.zeros((4, 3))
    state = optimizer.init(w)
    for _ in range(40):
        w, state = step(w, state)
    # The rounding of sums over 128 rows, not of the loss, bounds how near to 0 the gradient comes.
    np.testing.assert_allclose(jax.grad(loss)(w), np.zeros((4, 3)), atol=2e-5)
