"""What does the last layer of a language model cost, with its logits and without, against its matrix products alone?

Value and gradients by hidden states and kernel, which every provider writes.
"""

from collections.abc import Iterator

from bench.layer import Layer, case
from bench.measure import Case

QUICK = [(1024, 256, 32000)]
FULL = [(4096, 512, 32000)]


def cases(scale: str) -> Iterator[Case]:
    full = scale == "full"
    for rows, width, classes in FULL if full else QUICK:
        for dtype in ("float32", "bfloat16"):
            layer = Layer(rows, width, classes, dtype, head=True)
            yield case("linear", layer, ["cross-entropy"], scale, seconds=30 if full else 4)
