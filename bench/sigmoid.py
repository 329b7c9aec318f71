"""What do elementwise losses cost at the size of a detector's output, 100,000 anchors of 80 classes?"""

from collections.abc import Iterator

from bench.layer import Layer, case
from bench.measure import Case

ROWS, CLASSES = 100_000, 80
LOSSES = ["sigmoid cross-entropy", "sigmoid focal"]


def cases(scale: str) -> Iterator[Case]:
    full = scale == "full"
    for dtype in ("float32", "bfloat16") if full else ("float32",):
        for mode in ("gradient", "forward", "jvp") if full else ("gradient",):
            yield case("sigmoid", Layer(ROWS, 8, CLASSES, dtype, mode), LOSSES, scale, seconds=5 if full else 2)
