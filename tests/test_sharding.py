"""Meshes: automatic, explicit, and classes sharded inside shard_map; 8 host devices, against one."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from tests import cases

pytestmark = pytest.mark.usefixtures("form")

ROWS, SIZE = 8, 12


def mesh(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))


def batch(rng, kind: str, size: int = SIZE):
    logits = jnp.asarray(rng.normal(size=(ROWS, size)) * 3, jnp.float32)
    if kind == "ids":
        return logits, jnp.asarray(rng.integers(0, size, ROWS), jnp.int32)
    return logits, jnp.asarray(rng.dirichlet(np.ones(size), ROWS), jnp.float32)


def close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=64 * 2.0**-23, atol=2.0**-22), got, expected)


OPTIONS = {
    "plain": {},
    "all": {"class_weights": np.linspace(0.5, 2, SIZE).astype(np.float32), "label_smoothing": 0.1, "z_loss": 0.01},
}


MARGINS = np.linspace(-0.5, 1, SIZE).astype(np.float32)


def optional(case, options: str) -> dict:
    margins = {"label_margins": MARGINS} if options == "all" and "label_margins" in case.options else {}
    return case.takes(**OPTIONS[options]) | margins


def parametrize(some: list[cases.Case]):
    """Each case with all options that it takes; where ids have a program of their own without any, so, too."""
    plain = [*cases.SOFTMAX, *cases.PROBABILITIES, cases.COSTS[0]]
    pairs = [(case, "all") for case in some] + [(case, "plain") for case in some if case in plain]
    return pytest.mark.parametrize(("case", "options"), pairs, ids=lambda x: x if isinstance(x, str) else x.name)


def on_meshes(some: list[cases.Case]):
    """All of `parametrize` on explicit meshes; on automatic ones, where JAX types nothing, what sums over a row."""
    [pairs] = parametrize(some).args[1:]
    rows = [*cases.CLASSES, *cases.RANKING, *cases.PROBABILITIES]
    every = [(AxisType.Explicit, *pair) for pair in pairs]
    every += [(AxisType.Auto, *pair) for pair in pairs if pair[0] in rows]
    return pytest.mark.parametrize(("kind", "case", "options"), every, ids=lambda x: getattr(x, "name", x))


@on_meshes([case for case in cases.ALL if not case.name.endswith("focal_half")])
@pytest.mark.parametrize("labels", ["ids", "soft"])
def test_logits_sharded_over_both_axes(case, labels, options, kind, rng):
    """optax's loss for integer labels raises ShardingTypeError on the explicit mesh."""
    logits, given = batch(rng, labels)
    logits, given = case.link(logits), given if case.soft or labels == "ids" else (given > 0.1).astype(jnp.float32)
    options = optional(case, options)
    brought = brings_together(case, labels, options)

    @jax.jit
    def program(z, t):
        loss = partial(case.call, **options)
        return jaxloss.per_example_value_and_grad(loss)(z, t), jax.jvp(lambda z: loss(z, t), (z,), (jnp.cos(z),))[1]

    expected = program(logits, given)
    devices, spec = mesh(kind), P("data", "model")
    logits = jax.device_put(logits, NamedSharding(devices, spec))
    given = jax.device_put(given, NamedSharding(devices, P("data") if labels == "ids" else spec))
    compiled = program.lower(logits, given).compile()
    close(compiled(logits, given), expected)
    assert brought or not gathers(compiled.as_text())
    if kind == AxisType.Explicit:  # types of second derivatives
        gradient = jax.grad(lambda z: jnp.sum(case.call(z, given)))
        assert jax.eval_shape(lambda z: jax.vjp(gradient, z)[1](z)[0], logits).shape == logits.shape


def brings_together(case, labels: str, options: dict) -> bool:
    """The classes of a row: by a sort, or labels that are distributions, for their product with a table."""
    table = case.loss is jaxloss.expected_cost_loss and (labels == "soft" or "label_smoothing" in options)
    return table or case.loss is jaxloss.pairwise_ranking_loss


def gathers(text: str) -> list[str]:
    """Collectives that bring together more than a statistic of each row and shard of the classes; logits are more."""
    found = re.findall(r"= \(?(\w+\[[\d,]*\]).* (?:all-gather|all-to-all|collective-permute)\S*\(", text)
    shapes = [[int(n) for n in re.findall(r"\d+", shape.split("[")[1])] for shape in found]
    return [shape for shape in shapes if np.prod(shape) > ROWS // 2 * 4]


@pytest.mark.parametrize("labels", ["ids", "soft"])
@pytest.mark.usefixtures("standard_promotion")
def test_train_step_on_an_explicit_mesh(labels, rng):
    x, w = (rng.normal(size=size).astype(np.float32) for size in ((ROWS, 6), (6, SIZE)))
    _, given = batch(rng, labels)
    optimizer = optax.adamw(0.1)

    @jax.jit
    def step(w, x, given):
        def loss(w):
            logits = jnp.dot(x, w)
            return jaxloss.mean(jaxloss.softmax_focal_loss(logits, given, label_smoothing=0.1, z_loss=1e-3))

        value, gradient = jax.value_and_grad(loss)(w)
        updates, state = optimizer.update(gradient, optimizer.init(w), w)
        return optax.apply_updates(w, updates), state, value

    expected = step(w, x, given)
    devices = mesh(AxisType.Explicit)
    with jax.set_mesh(devices):
        sharded = jax.device_put(w, NamedSharding(devices, P(None, "model")))
        x = jax.device_put(x, NamedSharding(devices, P("data", None)))
        given = jax.device_put(given, NamedSharding(devices, P("data") if labels == "ids" else P("data", "model")))
        compiled = step.lower(sharded, x, given).compile()
        got = compiled(sharded, x, given)
        assert not gathers(compiled.as_text())
    close(got[0], expected[0])
    close(got[2], expected[2])


@parametrize(cases.CLASSES)
@pytest.mark.parametrize("labels", ["ids", "soft"])
def test_classes_sharded_inside_shard_map(case, labels, options, rng):
    """Megatron#737: smoothing counts all classes, not those of a shard; ids are global."""
    logits, given = batch(rng, labels)
    logits, given = np.array(logits), np.array(given)
    logits[:, 3] = -np.inf
    given = np.where(given == 3, 4, given) if labels == "ids" else given * (np.arange(SIZE) != 3).astype(np.float32)
    options = optional(case, options)
    expected = case.run(logits, given, **options)
    each = {"class_weights": np.ones(SIZE, np.float32)} | {key: x for key, x in options.items() if np.ndim(x)}
    rest = {key: value for key, value in options.items() if key not in each}

    def shard(z, t, each):
        return case.call(z, t, axis_name="model", **each, **rest)

    def inner(z, t, each):
        return jax.grad(lambda z: jnp.sum(shard(z, t, each)))(z)

    specs = (P("data", "model"), P("data") if labels == "ids" else P("data", "model"), P("model"))
    on_mesh = partial(jax.shard_map, mesh=mesh(AxisType.Auto), in_specs=specs)
    sharded, inside = on_mesh(shard, out_specs=P("data")), on_mesh(inner, out_specs=P("data", "model"))
    arguments = logits, given, each, rng.normal(size=logits.shape).astype(np.float32)

    @jax.jit
    def run(z, t, each, tangent):
        forward = jax.jvp(lambda z: jnp.sum(sharded(z, t, each)), (z,), (tangent,))[1]
        return jaxloss.per_example_value_and_grad(lambda z, t: sharded(z, t, each))(z, t), forward, inside(z, t, each)

    compiled = run.lower(*arguments).compile()
    close(compiled(*arguments), (expected, np.sum(expected[1] * arguments[-1]), expected[1]))
    assert brings_together(case, labels, options) or not gathers(compiled.as_text())


def test_second_order_with_sharded_classes(rng):
    logits, ids = batch(rng, "ids")

    def sharded(z):
        loss = jax.shard_map(
            lambda z, y: jaxloss.softmax_focal_loss(z, y, axis_name="model"),
            mesh=mesh(AxisType.Auto),
            in_specs=(P("data", "model"), P("data")),
            out_specs=P("data"),
        )
        return jnp.sum(loss(z, ids))

    def product(f):
        return lambda z: jax.jvp(jax.grad(f), (z,), (jnp.cos(z),))[1]

    whole = product(lambda z: jnp.sum(jaxloss.softmax_focal_loss(z, ids)))
    close(*jax.jit(lambda z: (product(sharded)(z), whole(z)))(logits))


def test_labels_outside_with_sharded_classes(rng):
    logits, _ = batch(rng, "ids")
    ids = np.array([-1, 0, SIZE, SIZE - 1, 3, -100, 5, 2**31 - 1], np.int32)
    sharded = jax.shard_map(
        lambda z, y: jaxloss.softmax_cross_entropy(z, y, axis_name="model"),
        mesh=mesh(AxisType.Auto),
        in_specs=(P("data", "model"), P("data")),
        out_specs=P("data"),
    )
    value, gradient = jax.jit(jaxloss.per_example_value_and_grad(sharded))(logits, ids)
    expected = cases.SOFTMAX[0].run(logits, ids)
    close((value, gradient), expected)
    np.testing.assert_array_equal(np.isnan(value), [True, False, True, False, False, True, False, True])


def test_divergence_with_sharded_classes(rng):
    logits, other = batch(rng, "ids")[0], batch(rng, "ids")[0]
    spec = P("data", "model")

    def divergences(z, u, **options):
        mixed = jaxloss.softmax_js_divergence(z, u, weight=0.25, **options)
        return jaxloss.softmax_kl_divergence(z, u, temperature=2.0, **options), mixed

    sharded = jax.shard_map(
        partial(divergences, axis_name="model"),
        mesh=mesh(AxisType.Auto),
        in_specs=(spec, spec),
        out_specs=P("data"),
    )
    got, expected = jax.jit(lambda z, u: (sharded(z, u), divergences(z, u)))(logits, other)
    close(got, expected)
    explicit = [jax.device_put(x, NamedSharding(mesh(AxisType.Explicit), spec)) for x in (logits, other)]
    close(jax.jit(divergences)(*explicit), expected)


@cases.parametrize([*cases.CLASSES, *cases.RANKING, *cases.PROBABILITIES, cases.SIGMOID[0]])
@pytest.mark.parametrize("varies", ["logits", "labels"])
def test_logits_and_labels_may_vary_over_different_axes(case, varies, rng):
    """Labels made inside, or shared by devices that each have logits: types of both forms agree."""
    logits, labels = batch(rng, "soft" if case.soft else "ids", 40)
    logits, labels = case.link(logits), labels if case.soft else np.eye(40, dtype=np.float32)[labels]
    given = (logits, labels[:1]) if varies == "logits" else (logits[:1], labels)
    smooth = case.takes(label_smoothing=0.1)

    def total(z, t):
        t = jnp.broadcast_to(t, (len(z), 40)) if varies == "logits" else t
        z = jnp.broadcast_to(z, (len(t), 40)) if varies == "labels" else z
        return jax.lax.psum(jnp.sum(case.call(z, t, **smooth)), "data")

    specs = tuple(P("data") if len(x) > 1 else P() for x in given)
    sharded = jax.shard_map(total, mesh=mesh(AxisType.Auto), in_specs=specs, out_specs=P())

    def whole(*given):
        return jnp.sum(case.call(*(jnp.broadcast_to(x, (ROWS, 40)) for x in given), **smooth))

    got, expected = jax.jit(lambda *given: (sharded(*given), whole(*given)))(*given)
    np.testing.assert_allclose(got, expected, rtol=64 * 2.0**-23)


@pytest.mark.thin
@cases.parametrize(cases.CLASSES)
def test_an_axis_that_does_not_split_the_classes_is_refused(case, rng):
    """Types tell where they are tracked; without that, and where `vmap` names the axis, nothing is refused."""
    logits, labels = batch(rng, "ids")
    loss = partial(case.call, axis_name="model")

    def sharded(spec, **options):
        return jax.shard_map(loss, mesh=mesh(AxisType.Auto), in_specs=(P(None, spec), P()), out_specs=P(), **options)(
            logits, labels
        )

    with pytest.raises(ValueError, match=r"`logits` must be split by class over mesh axis 'model'.*on each of its 4"):
        sharded(None)
    with pytest.raises(ValueError, match=r"`axis_name` must be a mesh axis inside jax\.shard_map; got 'model'"):
        loss(logits, labels)
    parts = jax.vmap(loss, in_axes=(1, None), axis_name="model")

    @jax.jit
    def everywhere(z, t):
        return sharded("model", check_vma=False), parts(z.reshape(ROWS, 4, -1), t)[0], case.call(z, t)

    found, by_parts, expected = everywhere(logits, labels)
    close((found, by_parts), (expected, expected))
