"""What a compiled program moves, launches and sends, read off the text of its instructions.

The bytes are those between kernels and the device's memory: a fusion reads its operands and writes its results once,
and what happens inside it costs nothing. XLA has a count of its own for TPU, `bytes accessed`, and none for GPU. This
one is used for both, because XLA's takes the body of a loop once however often it runs, and counts what goes to and
from on-chip memory as if it went to memory. On v5e, where a program has neither, they are close: cross-entropy of
distributions [8192, 32768] 7.00 (XLA: 7.00), softmax 4.00 (4.00), optax's loss of ids 4.03 (4.04), and 5.00 (5.33) at
[65536, 1000], where the gather comes to all logits. Else: a product of [8192, 4096] and [4096, 32768], one of them
prefetched, 13 (17); sparsemax, a loop, 29 (10); optax's loss of ids where a sparse core does the gather, v6e with
libtpu 0.0.50, 4.03 (6.04: the whole operand).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "add-dependency", "opt-barrier", "async-update",
    "call-update", "call-done",
}  # fmt: skip
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "PrepareAsyncCallStart", "PrepareAsyncCallDone")
"""Custom calls of the TPU compiler that move nothing."""
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
PRODUCTS = re.compile(r'custom_call_target="[^"]*(gemm|matmul)')
SLICES = ("slice", "dynamic-slice", "gather")
"""They read of their first operand only what they return."""
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""They write into their first operand, in place, an operand of this position."""
ALL = {"sort", "reduce-window", "reduce", "dot", "convolution", "custom-call", "while", "select-and-scatter", "scatter"}
"""An entry of their result needs many of an operand, even where the sizes are equal."""

_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)$")


@dataclass(frozen=True)
class Array:
    elements: int
    bits: int
    on_chip: bool

    @property
    def bytes(self) -> float:
        return 0 if self.on_chip else self.elements * self.bits / 8


@dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    root: bool = False

    @cached_property
    def arrays(self) -> list[Array]:
        """Of the result. A layout with a memory space, S(1) and so on, is not in the device's main memory."""
        return [
            Array(math.prod(int(n) for n in sizes.split(",") if n), int(bits or 8), "S(" in layout)
            for _, bits, sizes, layout in _ARRAY.findall(self.shape)
        ]

    @property
    def bytes(self) -> float:
        return sum(a.bytes for a in self.arrays)

    @property
    def elements(self) -> int:
        return sum(a.elements for a in self.arrays)

    def called(self, *words: str) -> list[str]:
        """Names of the computations that are called by one of the words."""
        found = re.search(rf"\b(?:{'|'.join(words)})=(\{{[^}}]*\}}|%?[\w.-]+)", self.rest)
        return re.findall(r"[\w.-]+", found[1]) if found else []


class Computation:
    """Instructions by name, and who uses them."""

    def __init__(self, name: str, entry: bool):
        self.name, self.entry = name, entry
        self.instructions: dict[str, Instruction] = {}
        self.users: dict[str, list[Instruction]] = {}

    def add(self, instruction: Instruction) -> None:
        self.instructions[instruction.name] = instruction
        for name in dict.fromkeys(instruction.operands):
            self.users.setdefault(name, []).append(instruction)

    @cached_property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.root)

    def parameter(self, number: int) -> Instruction:
        found = (i for i in self.instructions.values() if i.kind == "parameter" and i.operands == (str(number),))
        return next(found)

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]


class Program:
    """A compiled program, from `compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        current = None
        for line in text.splitlines():
            if head := _HEAD.match(line):
                current = Computation(head[2], bool(head[1]))
                self.computations[current.name] = current
            elif current and (match := _LINE.match(line)):
                root, name, shape, kind, given, rest = match.groups()
                operands = [given] if kind in ("parameter", "constant") else re.findall(r"%([\w.-]+)", given)
                current.add(Instruction(name, shape, kind, tuple(operands), rest, bool(root)))
        [self.entry] = [c for c in self.computations.values() if c.entry]
        self.endless: list[str] = []
        """Loops whose number of turns is not in the program; they are taken once."""
        self.executed = list(self._walk(self.entry, 1))
        """Instructions that run, with their computation and how often: in the bodies of loops once a turn."""

    def _walk(self, computation: Computation, times: int) -> Iterator[tuple[Instruction, Computation, int]]:
        for i in computation.instructions.values():
            if i.kind == "while":
                [body] = i.called("body")
                yield from self._walk(self.computations[body], times * (self.turns(i) or 1))
                if self.turns(i) is None:
                    self.endless.append(i.name)
            elif i.kind in ("call", "call-start", "conditional"):  # of a conditional all branches: at most its cost
                names = i.called("to_apply") + i.called("branch_computations") + i.called("true_computation")
                for name in names + i.called("false_computation"):
                    yield from self._walk(self.computations[name], times)
            elif i.kind not in FREE and not any(f'"{name}"' in i.rest for name in FREE_CALLS):
                yield i, computation, times

    def turns(self, loop: Instruction) -> int | None:
        """How often a loop runs: XLA's note on GPU; on TPU the bound of its condition, as loops of JAX count from 0."""
        if noted := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
            return int(noted[1])
        [name] = loop.called("condition")
        condition = self.computations[name]
        bounds = [i for i in condition.instructions.values() if i.kind == "constant" and i.shape.startswith("s32[]")]
        if len(bounds) == 1 and "direction=LT" in condition.root.rest:
            return int(bounds[0].operands[0])
        return None

    def needed(self, i: Instruction, computation: Computation) -> int:
        """How many elements of what is made by `i`, inside a fusion, are needed; of a parameter: read from memory."""
        total = i.elements if i.root else 0
        for user in computation.users.get(i.name, ()):
            total += self._needed_by(user, i, computation)
        return min(total, i.elements)

    def _needed_by(self, user: Instruction, i: Instruction, computation: Computation) -> int:
        first = user.operands[0] == i.name
        others = user.operands[1:]
        if user.kind == "fusion":
            inner = self.computations[user.called("calls")[0]]
            numbers = [n for n, name in enumerate(user.operands) if name == i.name]
            return sum(self.needed(inner.parameter(n), inner) for n in numbers)
        if user.kind in SLICES and first and i.name not in others:
            return _tiles(user, i) if user.kind == "gather" else self.needed(user, computation)
        if user.kind in UPDATES and first and i.name not in others and self._in_place(user, computation):
            return 0
        if user.kind not in ALL and user.elements == i.elements:
            return self.needed(user, computation)
        return i.elements

    def _in_place(self, i: Instruction, computation: Computation) -> bool:
        users = computation.users.get(i.name, ())
        return i.root or (
            bool(users) and all(u.kind in ("bitcast", "tuple") and self._in_place(u, computation) for u in users)
        )

    def _written(self, i: Instruction, computation: Computation) -> list[int]:
        """Elements that the result `i` of a fusion writes, array by array: of one updated in place, the update."""
        if i.kind == "tuple":
            return [n for o in computation.operands(i) for n in self._written(o, computation)]
        if i.kind == "bitcast":
            return self._written(computation.operands(i)[0], computation)
        if i.kind in UPDATES and self._in_place(i, computation):
            return [computation.instructions[i.operands[UPDATES[i.kind]]].elements]
        return [a.elements for a in i.arrays]

    def moved(self, i: Instruction, computation: Computation) -> float:
        """Bytes that one run of an instruction reads and writes."""
        operands = computation.operands(i)
        kind = i.kind.removesuffix("-start")
        if i.kind.endswith("-done"):  # an asynchronous pair: the start reads, the end has written
            return i.bytes
        written = 0.0 if i.kind.endswith("-start") else i.bytes
        if calls := i.called("calls"):
            inner = self.computations[calls[0]]
            read = [_share(o, self.needed(inner.parameter(n), inner)) for n, o in enumerate(operands)]
            if written:
                sizes = self._written(inner.root, inner)
                written = sum(a.bytes * n / max(a.elements, 1) for a, n in zip(i.arrays, sizes, strict=True))
            return sum(read) + written
        if kind in SLICES:
            taken = i.arrays[1 if i.kind.endswith("-start") else 0].elements  # of (operands, result, state)
            taken = _tiles(i, operands[0]) if kind == "gather" else taken
            return _share(operands[0], taken) + sum(o.bytes for o in operands[1:]) + written
        if kind in UPDATES:
            update = operands[UPDATES[kind]]
            return sum(o.bytes for o in operands[1:]) + (_share(i, update.elements) if written else 0)
        if kind == "custom-call" and len(i.arrays) > 1:  # bytes beside other results are scratch, of no known use
            written = sum(a.bytes for a in i.arrays if a.bits > 8)
        return sum(o.bytes for o in operands) + written

    @property
    def bytes(self) -> float:
        """Read and written by all that runs."""
        return sum(times * self.moved(i, computation) for i, computation, times in self.executed)

    @property
    def kernels(self) -> int:
        """Launches; copies to on-chip memory beside the work are none."""
        return sum(times for i, _, times in self.executed if not i.kind.endswith("-done") and i.kind != "copy-start")

    @property
    def products(self) -> int:
        """Matrix products in the program, each once, wherever they are fused."""
        every = [i for c in self.computations.values() for i in c.instructions.values()]
        return sum(i.kind in ("dot", "convolution") or bool(PRODUCTS.search(i.rest)) for i in every)

    @property
    def collectives(self) -> list[str]:
        """What is sent between devices, each once."""
        return [f"{i.kind} {i.shape}" for i, _, _ in self.executed if i.kind.removesuffix("-start") in COLLECTIVES]

    @property
    def loops(self) -> int:
        return sum(i.kind == "while" for c in self.computations.values() for i in c.instructions.values())


def _tiles(gather: Instruction, operand: Instruction) -> int:
    """Elements that a gather reads: its slices; where the layout has tiles, as on TPU, one at the least for each."""
    size = math.prod(map(int, re.search(r"slice_sizes=\{([\d,]*)\}", gather.rest)[1].split(",")))
    tile = re.search(r":T\(([\d,]+)\)", operand.shape)
    return gather.elements // size * max(size, math.prod(map(int, tile[1].split(","))) if tile else 1)


def _share(i: Instruction, elements: int) -> float:
    return i.bytes * min(elements / max(i.elements, 1), 1)
