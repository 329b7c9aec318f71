"""What do losses of sparse projections cost, whose gradient has exact zeros?"""

from collections.abc import Iterator

from bench.layer import Layer, case
from bench.measure import Case

QUICK = [(4096, 1000)]
FULL = [(65536, 10), (4096, 1000), (256, 32768)]
LOSSES = ["sparsemax", "entmax15"]


def cases(scale: str) -> Iterator[Case]:
    full = scale == "full"
    for rows, classes in FULL if full else QUICK:
        yield case("sparse", Layer(rows, 8, classes), LOSSES, scale, seconds=5 if full else 2)
