"""Walking the equations of a traced program."""

from collections.abc import Iterator

import jax


def equations(program) -> Iterator:
    """Every equation, those of inner programs included."""
    for equation in program.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)
