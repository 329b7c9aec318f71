"""What does a loss on logits cost inside a train step, against other libraries and against no loss at all?

The step is that of `bench.layer`; `linear_loss` does products and loss of the same step in one.
"""

from collections.abc import Iterator

from bench.layer import Layer, case
from bench.measure import Case

MAIN = ["cross-entropy", "focal"]
ALL = [
    "cross-entropy",
    "focal",
    "cross-entropy, one-hot",
    "cross-entropy, one-hot of ids",
    "cross-entropy, all options",
]
QUICK = [
    (65536, 10, "float32", "gradient", MAIN),
    (4096, 1000, "float32", "gradient", ALL),
    (4096, 1000, "float32", "forward", MAIN),
    (4096, 1000, "float32", "jvp", MAIN),
    (1024, 32768, "float32", "gradient", MAIN),
    (1024, 32768, "bfloat16", "gradient", MAIN),
    (256, 131072, "float32", "gradient", MAIN),
]
SHAPES = [(65536, 10), (4096, 1000), (1024, 32768), (256, 131072)]
FULL = [
    (*shape, dtype, mode, ALL if mode == "gradient" else MAIN)
    for dtype in ("float32", "bfloat16")
    for shape in SHAPES
    for mode in ("gradient", "forward", "jvp")
]
SWEEPS = {
    "classes": [(256, classes) for classes in (256, 1024, 4096, 16384, 65536, 262144)],
    "rows": [(rows, 4096) for rows in (64, 256, 1024, 4096, 16384)],
}
SWEPT = ("jaxloss", "jaxloss linear_loss", "optax", "plain JAX", "torch eager")


def cases(scale: str) -> Iterator[Case]:
    for rows, classes, dtype, mode, losses in FULL if scale == "full" else QUICK:
        seconds = 5 if scale == "full" else 1.5
        yield case("dense", Layer(rows, 8, classes, dtype, mode), losses, scale, seconds=seconds)
    for sweep, shapes in SWEEPS.items() if scale == "full" else ():
        for rows, classes in shapes:
            layer = Layer(rows, 8, classes)
            yield case("dense", layer, ["cross-entropy"], scale, SWEPT, seconds=2, sweep=sweep)
