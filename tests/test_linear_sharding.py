"""Losses of a linear layer on a mesh of 2 x 4 devices, rows and classes split: one device's numbers, no gathers."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss

BATCH, TIME, WIDTH, SIZE, CHUNK = 4, 6, 8, 20, 4
CE = jaxloss.softmax_cross_entropy
KERNEL = P(None, "model")
KINDS = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


def mesh(kind):
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))


def close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), got, expected)


def focal(logits, labels, gamma, axis_name=None):
    options = {"label_smoothing": 0.1, "z_loss": 1e-2, "axis_name": axis_name}
    return jaxloss.softmax_focal_loss(logits, labels, gamma=gamma, **options)


EXPECTED = {}


class Problem:
    """Arguments of a loss by everything that can be differentiated, on one device and on a mesh."""

    def __init__(self, rng, size=SIZE, soft=False):
        self.where = rng.uniform(size=(BATCH, TIME)) < 0.8
        ids = rng.integers(0, size, (BATCH, TIME)).astype(np.int32)
        distributions = rng.dirichlet(np.ones(size), (BATCH, TIME)).astype(np.float32)
        self.labels = distributions if soft else ids
        hidden = rng.normal(size=(BATCH, TIME, WIDTH))
        kernel, bias, weights = rng.normal(size=(WIDTH, size)), rng.normal(size=size), rng.uniform(size=(BATCH, TIME))
        self.x = tuple(np.asarray(a, np.float32) for a in (hidden, kernel, bias, weights, 1.5))
        self.t = tuple(np.cos(3 * a) for a in self.x)

    def loss(self, hidden, kernel, bias, weights, gamma, function=focal, labels=None, **options):
        labels = self.labels if labels is None else labels
        rest = {"bias": bias, "where": self.where, "weights": weights, "loss_args": (gamma,), "chunk_rows": CHUNK}
        return jaxloss.linear_loss(function, hidden, kernel, labels, **rest, **options).mean()

    def whole(self, hidden, kernel, bias, weights, gamma):
        """The same of all logits, on one device."""
        logits = hidden @ kernel if bias is None else hidden @ kernel + bias[None, None]
        return jaxloss.LossSum.of(focal(logits, self.labels, gamma), self.where, weights).mean()

    def expected(self, name, function=None):
        """Of all logits, or by `function`: once for equal problems, all derivatives but the gradient by one program."""
        names = [other for other in TRANSFORMS if (other == GRADIENT) == (name == GRADIENT)]
        key = name == GRADIENT, *(np.asarray(a).tobytes() for a in (*self.x, self.where, self.labels))
        if key not in EXPECTED:
            EXPECTED[key] = jax.jit(
                lambda x, t: {name: TRANSFORMS[name](function or self.whole, x, t) for name in names}
            )(self.x, self.t)
        return EXPECTED[key][name]

    def placed(self, devices, x, kernel=KERNEL):
        specs = (P("data"), kernel, P("model"), P("data"), P())
        return tuple(jax.device_put(a, NamedSharding(devices, s)) for a, s in zip(x, specs, strict=True))


BY_ALL = tuple(range(5))
GRADIENT = "value and gradient"
TRANSFORMS = {
    GRADIENT: lambda f, x, t: jax.value_and_grad(f, BY_ALL)(*x),
    "jvp": lambda f, x, t: jax.jvp(f, x, t),
    "forward over reverse": lambda f, x, t: jax.jvp(jax.grad(f, BY_ALL), x, t)[1],
    "reverse over forward": lambda f, x, t: jax.grad(lambda x: jax.jvp(f, x, t)[1])(x),
    "one side": lambda f, x, t: jax.grad(f, 1)(*x),
}
NAMES = {"batch_spec": "data", "axis_name": "model"}


@KINDS
@pytest.mark.parametrize("soft", [False, True], ids=["ids", "soft"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_rows_and_classes_split(name, soft, kind, rng):
    problem, devices = Problem(rng, soft=soft), mesh(kind)
    labels = jax.device_put(
        problem.labels, NamedSharding(devices, P("data", None, "model") if soft else P("data", None))
    )
    names = NAMES | {"labels_spec": P("data", None, "model") if soft else None} if kind == AxisType.Auto else {}
    loss = partial(problem.loss, function=partial(focal, axis_name="model"), labels=labels, **names)
    x, t = problem.placed(devices, problem.x), problem.placed(devices, problem.t)
    with jax.set_mesh(devices):
        got = jax.jit(partial(TRANSFORMS[name], loss))(x, t)
    close(got, problem.expected(name))


def collectives(text: str) -> list[tuple[bool, str, int]]:
    """Every collective of a compiled program: whether it stands in a loop, its kind, and how many numbers it moves."""
    bodies, current, calls, found = set(re.findall(r"body=%?([\w.\-]+)", text)), "", {}, []
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            current = head[1]
        calls.setdefault(current, set()).update(re.findall(r"(?:calls|to_apply|body)=%?([\w.\-]+)", line))
        match = re.search(r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)\(", line)
        if match:
            sizes = [np.prod([int(n) for n in dims.split(",") if n]) for dims in re.findall(r"\[([\d,]*)\]", match[1])]
            found.append((current, match[2], int(sum(sizes))))
    inside, front = set(), set(bodies)
    while front:
        inside |= front
        front = {c for name in front for c in calls.get(name, ())} - inside
    return [(where in inside, kind, size) for where, kind, size in found]


@KINDS
def test_collectives_of_the_compiled_program(kind, rng):
    """In the loop only the rows' statistics; gradients are reduced once, after it; nothing is gathered."""
    problem, devices = Problem(rng), mesh(kind)
    names = NAMES if kind == AxisType.Auto else {}
    labels = jax.device_put(problem.labels, NamedSharding(devices, P("data")))

    def loss(hidden, kernel):
        function = partial(CE, axis_name="model")
        return jaxloss.linear_loss(function, hidden, kernel, labels, chunk_rows=CHUNK, **names).mean()

    x = problem.placed(devices, problem.x)[:2]
    with jax.set_mesh(devices):
        text = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*x).compile().as_text()
    found = collectives(text)
    assert {kind for _, kind, _ in found} == {"all-reduce"}, found
    assert [size for inside, _, size in found if inside] == [3 * 4 * CHUNK], found  # three, of each shard
    after = sum(size for inside, _, size in found if not inside)
    local = WIDTH * SIZE // 4 + BATCH * TIME * WIDTH // 2
    assert local <= after <= local + 4, found


def losses_of(problem) -> np.ndarray:
    """Cross-entropy of each row of ids, without bias."""
    z = np.asarray(problem.x[0], np.float64) @ problem.x[1]
    return np.log(np.sum(np.exp(z), -1)) - np.take_along_axis(z, problem.labels[..., None], -1)[..., 0]


FSDP = {
    "width": P("data", "model"),
    "classes": P(None, ("model", "data")),
    "classes, the other way round": P(None, ("data", "model")),  # parts of a shard are no neighbours
}


@KINDS
@pytest.mark.parametrize("split", FSDP)
def test_a_kernel_split_over_the_batch_as_well(split, kind, rng):
    """It is gathered once, and its gradient reduced and scattered once, where the layout lets them."""
    problem, devices, spec = Problem(rng, size=24), mesh(kind), FSDP[split]
    names = NAMES | {"kernel_spec": spec} if kind == AxisType.Auto else {}
    loss = partial(problem.loss, function=partial(focal, axis_name="model"), **names)
    x = problem.placed(devices, problem.x, kernel=spec)
    by_all = jax.value_and_grad(loss, BY_ALL)

    def derivative_and_losses(x, t):
        rest = {"chunk_rows": CHUNK, **names}
        losses = jaxloss.map_linear_logits(partial(CE, axis_name="model"), *x[:2], problem.labels, **rest)
        return TRANSFORMS["forward over reverse"](loss, x, t), losses

    out = None
    if kind == AxisType.Auto:  # or XLA chooses
        out = (NamedSharding(devices, P()), tuple(a.sharding for a in x))
    with jax.set_mesh(devices):
        program = jax.jit(lambda *x: by_all(*x), out_shardings=out).lower(*x).compile()
        got = program(*x)
        found = collectives(program.as_text())
        moved, losses = jax.jit(derivative_and_losses)(x, problem.placed(devices, problem.t, kernel=spec))
    close(got, problem.expected(GRADIENT))
    close(moved, problem.expected("forward over reverse"))
    close(losses, losses_of(problem))
    assert got[1][1].sharding.spec == spec
    shard = WIDTH * 24 // 4
    if "other way" not in split:
        assert [(inside, size) for inside, kind, size in found if kind == "all-gather"] == [(False, shard)]
        assert [(inside, size) for inside, kind, size in found if kind == "reduce-scatter"] == [(False, shard // 2)]
        assert max(size for _, kind, size in found if kind == "all-reduce") <= BATCH * TIME * WIDTH // 2 + SIZE


@KINDS
@pytest.mark.parametrize("split", [KERNEL, FSDP["width"]], ids=["classes", "both"])
def test_gradients_are_summed_over_devices_in_float32_and_rounded_once(split, kind, rng):
    problem, devices = Problem(rng), mesh(kind)
    names = NAMES | {"kernel_spec": split} if kind == AxisType.Auto else {}
    loss = partial(problem.loss, function=partial(focal, axis_name="model"), **names)
    narrow = [a.astype(jnp.bfloat16) for a in problem.x[:3]]
    problem.x = (*narrow, *problem.x[3:])
    with jax.set_mesh(devices):
        placed = problem.placed(devices, problem.x, kernel=split)
        program = jax.jit(lambda *x: jax.value_and_grad(loss, BY_ALL)(*x)).lower(*placed)
        got = program.compile()(*placed)
    sums = re.findall(
        r'"stablehlo\.(all_reduce|reduce_scatter|all_gather)".*?\}[)>] : \(tensor<([^>]*)>', program.as_text(), re.S
    )
    assert {kind for kind, _ in sums} == {"all_reduce"} | (
        {"reduce_scatter", "all_gather"} if split != KERNEL else set()
    )
    for kind_of, array in sums:
        assert array.endswith("bf16") == (kind_of == "all_gather"), (kind_of, array)
    one = problem.expected(GRADIENT, problem.loss)
    # Sums in another order differ by a rounding of float32, which flips one of bfloat16 now and then.
    for a, b in zip(got[1][:3], one[1][:3], strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.mean(np.asarray(a) != np.asarray(b)) < 0.02


@pytest.mark.parametrize(("size", "soft"), [(18, False), (21, False), (21, True), (23, True)])
def test_classes_that_do_not_divide_are_filled_up(size, soft, rng):
    """Megatron#737: smoothing over the classes that exist. Columns of zeros would each add 1 to the sum (tokamax)."""
    problem = Problem(rng, size, soft)
    names = NAMES | {"labels_spec": P("data", None, "model") if soft else None, "class_fill": 0}
    loss = partial(problem.loss, function=partial(focal, axis_name="model"), **names)

    def with_and_without_bias(loss):
        return jax.jit(
            lambda h, k, *rest: (
                jax.value_and_grad(loss, BY_ALL)(h, k, *rest),
                jax.value_and_grad(lambda h, k: loss(h, k, None, *rest[1:]), (0, 1))(h, k),
            )
        )(*problem.x)

    with jax.set_mesh(mesh(AxisType.Auto)):
        got = with_and_without_bias(loss)
    close(got, with_and_without_bias(problem.whole))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inside_a_shard_map_of_the_user(name, rng):
    problem = Problem(rng)

    def loss(hidden, kernel, bias, weights, gamma):
        def shard(hidden, kernel, bias, weights, gamma, labels, where):
            rest = {"bias": bias, "where": where, "weights": weights, "loss_args": (gamma,), "chunk_rows": CHUNK}
            total = jaxloss.linear_loss(partial(focal, axis_name="model"), hidden, kernel, labels, **rest)
            return lax.psum(total, "data").mean()

        specs = (P("data"), P(None, "model"), P("model"), P("data"), P(), P("data"), P("data"))
        sharded = jax.shard_map(shard, mesh=mesh(AxisType.Auto), in_specs=specs, out_specs=P())
        return sharded(hidden, kernel, bias, weights, gamma, problem.labels, problem.where)

    got = jax.jit(partial(TRANSFORMS[name], loss))(problem.x, problem.t)
    close(got, problem.expected(name))


@KINDS
def test_rows_alone_or_classes_alone(kind, rng):
    problem, devices = Problem(rng), mesh(kind)
    plain = problem.expected(GRADIENT)
    both = {"axis_name": "model"}, partial(focal, axis_name="model"), (P(), P(None, "model"), P("model"), P(), P())
    rows = {"batch_spec": P("data", None)}, focal, (P("data"), P(), P(), P("data"), P())
    time = {"batch_spec": P(None, "data")}, focal, (P(None, "data"), P(), P(), P(None, "data"), P())
    for names, function, specs in (both, rows, time):
        x = tuple(jax.device_put(a, NamedSharding(devices, s)) for a, s in zip(problem.x, specs, strict=True))
        loss = partial(problem.loss, function=function, **(names if kind == AxisType.Auto else {}))
        with jax.set_mesh(devices):
            close(jax.jit(jax.value_and_grad(loss, BY_ALL))(*x), plain)


@KINDS
def test_auxiliary_results_tables_and_results_by_row(kind, rng):
    problem, devices = Problem(rng), mesh(kind)
    hidden, kernel = problem.x[:2]

    def results(logits, labels, axis_name=None):
        row = jaxloss.softmax_statistics(logits, labels, axis_name=axis_name)
        return row.negative_log_probability, {"right": row.accuracy == 1, "entropy": row.entropy}

    def whole(table):
        return results(hidden @ table.T, problem.labels)

    expected = jax.jit(whole)(kernel.T)
    sharded, names = partial(results, axis_name="model"), NAMES if kind == AxisType.Auto else {}
    x, table, labels = (
        jax.device_put(a, NamedSharding(devices, s))
        for a, s in ((hidden, P("data")), (kernel.T, P("model")), (problem.labels, P("data")))
    )

    @jax.jit
    def run(x, table, labels):
        rest = {"axis": 0, "chunk_rows": CHUNK, **names}

        def of_squares(table):
            by_row = jaxloss.map_linear_logits(sharded, x, table, labels, **rest)
            return jnp.sum(by_row[0] ** 2), by_row

        summed = jaxloss.linear_loss(sharded, x, table, labels, has_aux=True, **rest)
        return summed, *jax.grad(of_squares, has_aux=True)(table)

    with jax.set_mesh(devices):
        (total, extra), by_table, by_row = run(x, table, labels)
    close(total.total, np.sum(expected[0]))
    close(extra, expected[1])
    close(by_row, expected)
    close(by_table, jax.jit(jax.grad(lambda t: jnp.sum(whole(t)[0] ** 2)))(kernel.T))


@pytest.mark.usefixtures("standard_promotion")
def test_a_train_step_on_an_explicit_mesh(rng):
    problem, devices = Problem(rng), mesh(AxisType.Explicit)
    optimizer = optax.adamw(0.1)

    @partial(jax.jit, static_argnames="function")
    def step(kernel, hidden, labels, function):
        def loss(kernel):
            return jaxloss.linear_loss(function, hidden, kernel, labels, chunk_rows=CHUNK).mean()

        value, gradient = jax.value_and_grad(loss)(kernel)
        updates, state = optimizer.update(gradient, optimizer.init(kernel), kernel)
        return optax.apply_updates(kernel, updates), state, value

    hidden, kernel = problem.x[:2]
    expected = step(kernel, hidden, problem.labels, CE)
    with jax.set_mesh(devices):
        x = problem.placed(devices, problem.x)
        labels = jax.device_put(problem.labels, NamedSharding(devices, P("data")))
        got = step(x[1], x[0], labels, partial(CE, axis_name="model"))
    close(got[0], expected[0])
    close(got[2], expected[2])
    assert got[0].sharding.spec == P(None, "model")


def test_errors_say_which_spec_does_not_fit(rng):
    problem, devices = Problem(rng), mesh(AxisType.Auto)
    hidden, kernel = problem.x[:2]
    loss = partial(jaxloss.linear_loss, CE, hidden, kernel, problem.labels)

    def error(match, call=loss, **options):
        with jax.set_mesh(devices), pytest.raises(ValueError, match=match):
            jax.jit(lambda: call(**options))()

    error(r"mesh has no axis 'rows'; it has 'data', 'model'", batch_spec="rows")
    error(r"different mesh axes; both are given \['data'\]", batch_spec="data", axis_name="data")
    error(r"must combine.*mesh axis 'model'.*functools\.partial\(loss, axis_name='model'\)", axis_name="model")
    error(r"6 rows of `hidden` float32\[4,6,8\] do not divide over the 4 devices", batch_spec=P(None, "model"))
    error(r"at most an entry for each batch axis", batch_spec=P("data", None, "model"))
    error(
        r"`kernel_spec` must name axes of `batch_spec` and `axis_name` alone;.*with 'model'",
        batch_spec="data",
        kernel_spec=P("data", "model"),
    )
    with pytest.raises(ValueError, match=r"there is none here.*mesh=mesh"):
        loss(batch_spec="data")
    partial_loss = partial(CE, axis_name="model")
    named = jax.jit(
        lambda: jaxloss.linear_loss(partial_loss, hidden, kernel, problem.labels, mesh=devices, **NAMES).mean()
    )
    close(named(), loss().mean())

    def inside(hidden):
        return lax.psum(jaxloss.linear_loss(CE, hidden, kernel, problem.labels[:2], batch_spec="data").total, "data")

    with pytest.raises(ValueError, match=r"inside jax\.shard_map over 'data' the arguments are shards already"):
        jax.shard_map(inside, mesh=devices, in_specs=P("data"), out_specs=P())(hidden)

    def closing(hidden, labels, gamma):
        def enclosing(logits, labels):
            return jaxloss.softmax_focal_loss(logits, labels, gamma=gamma)

        return lax.psum(jaxloss.linear_loss(enclosing, hidden, kernel, labels, chunk_rows=2).total, "data")

    sharded = jax.shard_map(closing, mesh=devices, in_specs=(P("data"), P("data"), P()), out_specs=P())
    with pytest.raises(ValueError, match=r"closes over a traced float32\[\].*\['data'\]\. Pass it in `loss_args`"):
        jax.jit(sharded)(hidden, problem.labels, jnp.float32(2))
    explicit = mesh(AxisType.Explicit)
    split_width = jax.device_put(hidden, NamedSharding(explicit, P(None, None, "model")))
    with jax.set_mesh(explicit), pytest.raises(ValueError, match=r"last axis of `hidden` must be whole"):
        jax.jit(lambda h: jaxloss.linear_loss(CE, h, kernel, problem.labels).mean())(split_width)


def test_the_loss_names_the_axes_that_split_the_classes(rng):
    """Of rows, of the hidden width, or of nothing: the sum over the others would count classes twice."""
    hidden, kernel = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((8, 8), (8, 16)))
    labels, auto, explicit = jnp.arange(8), mesh(AxisType.Auto), mesh(AxisType.Explicit)
    loss = partial(jaxloss.softmax_cross_entropy, axis_name="data")
    message = r"`loss` must name the mesh axes over which the classes are split; got axis_name='data'"
    with pytest.raises(ValueError, match=message):
        jaxloss.linear_loss(loss, hidden, kernel, labels, batch_spec="data", mesh=auto)
    with jax.set_mesh(explicit):
        split = jax.device_put(kernel, P("data", None))
    for rows in (P("data"), P()):
        with jax.set_mesh(explicit):
            given = jax.device_put(hidden, rows)
        with pytest.raises(ValueError, match=message):
            jaxloss.linear_loss(loss, given, split, labels)
    with pytest.raises(ValueError, match=r"`fn` must name the mesh axes"):
        jaxloss.map_linear_logits(loss, given, split, labels)


@pytest.mark.parametrize("spec", [P(None, "model"), P("data", "model"), P("data", None)])
def test_explicit_types_are_enough_without_a_mesh_that_is_set(spec, rng):
    hidden, kernel = (rng.normal(size=size).astype(np.float32) for size in ((8, 8), (8, 16)))
    explicit = mesh(AxisType.Explicit)
    labels = jax.device_put(np.arange(8, dtype=np.int32), NamedSharding(explicit, P()))
    split = jax.device_put(kernel, NamedSharding(explicit, spec))
    names = {"axis_name": "model"} if "model" in spec else {}
    run = partial(jaxloss.linear_loss, partial(jaxloss.softmax_cross_entropy, **names))
    expected = jax.jit(lambda h, k: jaxloss.softmax_cross_entropy(h @ k, np.arange(8)).mean())(hidden, kernel)
    program = jax.jit(lambda *x: run(*x).mean())
    for rows in (P(), P("data")):
        given = jax.device_put(hidden, NamedSharding(explicit, rows))
        np.testing.assert_allclose(program(given, split, labels), expected, rtol=1e-6)
    np.testing.assert_allclose(run(given, split, labels).mean(), expected, rtol=1e-6)
