"""Types of arguments, under the names that signatures show."""

from collections.abc import Sequence

import jax.typing

Entry = jax.typing.ArrayLike
ArrayLike = Entry | Sequence[Entry] | Sequence[Sequence[Entry]] | Sequence[Sequence[Sequence[Entry]]]
Axis = int | tuple[int, ...] | None
AxisName = str | tuple[str, ...] | None
