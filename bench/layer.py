"""The step that losses are timed in: a linear layer, a loss on its logits, the gradient contracted back.

logits = x @ w ([R, H] @ [H, C]), the sum of the losses, its gradient by the logits, and from that the one by w: nothing
of the size of the logits enters or leaves the timed program (but for distributions that are given as labels), and no
fresh [R, C] output is timed, only work in temporary buffers, whose pages `bench.memory` keeps. Of torch the same step
is timed; its eager mode allocates those buffers while it runs. With H = 8 the products cost little. A `head` is the
last layer of a language model: H is large, both gradients are wanted, and logits come in float32. The floor is the same
step with exp in place of the loss (a head: with nothing in its place, the three products alone).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from bench.measure import FLOOR, Case, Program
from bench.offer import LABELS, Offer
from bench.peers import offers
from bench.peers_torch import to_torch, torch_call, torch_device

PASSES = {"forward": 2, "gradient": 4, "jvp": 4}
"""Over arrays of the size of the logits: written by the product, read once; for a gradient read once more, and written;
for a jvp a tangent, likewise."""


@dataclass(frozen=True)
class Layer:
    rows: int
    width: int
    classes: int
    dtype: str = "float32"
    mode: str = "gradient"
    head: bool = False
    sharded: bool = False
    """Classes over all devices; rows and labels on each."""

    @cached_property
    def operands(self) -> list[jax.Array]:
        """x and w, and a tangent of w for a jvp: another array of the same numbers, so that no work is shared."""

        @partial(jax.jit, static_argnums=(0, 1))
        def normal(shape, scale, key):
            return (jax.random.normal(key, shape, jnp.float32) * scale).astype(self.dtype)

        keys = jax.random.split(jax.random.key(0))
        x = normal((self.rows, self.width), 1.0, keys[0])
        w = normal((self.width, self.classes), self.width**-0.5 if self.head else 1.0, keys[1])
        arrays = [(x, P()), (w, P(None, "classes"))] + [(w.copy(), P(None, "classes"))] * (self.mode == "jvp")
        return [self._place(a, spec) for a, spec in arrays]

    def labels(self, kind: str) -> Any:
        rng = np.random.default_rng(1)
        ids = jnp.asarray(rng.integers(0, self.classes, self.rows), jnp.int32)
        match kind:
            case "ids":
                return self._place(ids, P())
            case "one-hot":
                return jax.nn.one_hot(ids, self.classes, dtype=self.dtype)
            case "multi-hot":
                return jnp.asarray(rng.random((self.rows, self.classes)) < 0.05, self.dtype)
            case "ids, weights, mask":
                weights = jnp.asarray(rng.uniform(0.5, 2, self.classes), jnp.float32)
                return ids, weights, jnp.asarray(rng.random(self.rows) < 0.9)
        raise ValueError(kind)

    def _place(self, array: jax.Array, spec: P) -> jax.Array:
        if not self.sharded:
            return array
        mesh = jax.make_mesh((jax.device_count(),), ("classes",), axis_types=(jax.sharding.AxisType.Auto,))
        return jax.device_put(array, NamedSharding(mesh, spec))

    @property
    def precise(self) -> Any:
        return jnp.float32 if self.head else None

    @property
    def traffic(self) -> float:
        return PASSES[self.mode] * self.rows * self.classes * jnp.dtype(self.dtype).itemsize

    @property
    def flops(self) -> float:
        products = {"forward": 1, "gradient": 3 if self.head else 2, "jvp": 2}[self.mode]
        return 2 * products * self.rows * self.width * self.classes


def case(question: str, layer: Layer, losses: list[str], scale: str, only: tuple[str, ...] = (), **options) -> Case:
    """The losses of all providers, or of those in `only`, in the step of a layer."""
    shape = f"[{layer.rows}, {layer.classes}]"
    if layer.head:
        shape = f"[{layer.rows}, {layer.width}] @ [{layer.width}, {layer.classes}]"
    elif layer.sharded:
        shape = f"[{layer.rows}, {layer.classes} / {jax.device_count()}]"
    return Case(
        question,
        shape,
        layer.rows,
        layer.classes,
        layer.dtype,
        layer.mode,
        lambda: programs(layer, losses, scale, only),
        layer.traffic,
        layer.flops,
        **options,
    )


def programs(layer: Layer, losses: list[str], scale: str, only: tuple[str, ...] = ()) -> list[Program]:
    labels = {loss: layer.labels(LABELS[loss]) for loss in losses}
    result = jax_program(layer, FLOOR, "exp" if not layer.head else "products", floor(layer), labels[losses[0]])
    for loss, provider, offer in offers(losses, scale, only):
        if offer.heads_only and not layer.head:
            continue
        if offer.framework == "jax":
            step = jax_step(layer, offer.losses[loss], offer.whole)
            result += jax_program(layer, loss, provider, step, labels[loss])
        elif layer.mode != "jvp":
            call = _torch_call(layer, offer, loss, labels[loss])
            result.append(Program(loss, provider, call, label_bytes=_bytes(labels[loss])))
    return result


def _bytes(labels: Any) -> int:
    return sum(a.nbytes for a in jax.tree.leaves(labels))


def jax_program(layer: Layer, loss: str, provider: str, step: Callable, labels: Any) -> list[Program]:
    """The program, or none and a line where the device has not the memory for it."""
    arguments = (labels, *layer.operands)
    try:
        compiled = jax.jit(step).lower(*arguments).compile()
        jax.block_until_ready(compiled(*arguments))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        tqdm.write(f"skipped: {provider}, {loss} of [{layer.rows}, {layer.classes}] (out of memory)")
        return []
    return [Program(loss, provider, partial(compiled, *arguments), compiled, _bytes(labels))]


def jax_step(layer: Layer, loss: Callable, whole: bool) -> Callable:
    """Of a loss (logits, labels) -> losses or, if `whole`, (x, w, labels) -> their sum."""

    def summed(z, labels):
        return jnp.sum(loss(z, labels).astype(jnp.float32))

    def total(x, w, labels):
        return loss(x, w, labels) if whole else summed(jnp.dot(x, w, preferred_element_type=layer.precise), labels)

    def gradient(labels, x, w):
        if layer.head:
            return jax.value_and_grad(total, (0, 1))(x, w, labels)
        if whole:
            return jax.value_and_grad(total, 1)(x, w, labels)
        value, pullback = jax.vjp(lambda z: summed(z, labels), x @ w)
        return value, x.T @ pullback(jnp.float32(1))[0]

    steps = {
        "forward": lambda labels, x, w: (total(x, w, labels), None),
        "gradient": gradient,
        "jvp": lambda labels, x, w, tangent: jax.jvp(lambda w: total(x, w, labels), (w,), (tangent,)),
    }
    return steps[layer.mode]


def floor(layer: Layer) -> Callable:
    def gradient(labels, x, w):
        z = jnp.dot(x, w, preferred_element_type=layer.precise)
        e = z.astype(x.dtype) if layer.head else jnp.exp(z)
        by_w = jnp.dot(x.T, e, preferred_element_type=layer.precise)
        by_x = jnp.dot(e, w.T, preferred_element_type=layer.precise) if layer.head else None
        return jnp.sum(e[:, 0].astype(jnp.float32)), by_x, by_w

    return gradient if layer.mode == "gradient" else jax_step(layer, lambda z, _: jnp.exp(z), False)


def _torch_call(layer: Layer, offer: Offer, loss: str, labels: Any) -> Callable:
    device = torch_device()
    x, w = (to_torch(a, device) for a in layer.operands)
    labels = jax.tree.map(lambda a: to_torch(a, device), labels)
    row_losses = offer.losses[loss]
    total = row_losses if offer.whole else lambda x, w, labels: row_losses(x @ w, labels).float().sum()
    wanted = [x, w] if layer.head else [w]
    return torch_call(total, (x, w, labels), wanted, offer.compiled, layer.mode == "gradient")
