"""Walking the equations of a traced program, and tracing it for another platform."""

from collections.abc import Iterator

import jax


def equations(program) -> Iterator:
    """Every equation, those of inner programs included."""
    for equation in program.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def choose(monkeypatch, platform: str) -> None:
    """Has programs traced from now on take the form for that platform. Those that are cached keep theirs."""

    def chosen(*args, default, **forms):
        return forms.get(platform, default)(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)
