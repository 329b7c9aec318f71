"""Checks of what only the data can show: seen by `checkify.checkify`, and by nothing else.

`checkify.debug_check` marks the whole program as having an effect, and JAX dispatches such a program by its slow path:
31 us in place of 3 with one array, 2.6 ms in place of 0.3 with the 300 arrays of a model (jax 0.10.2, 2 CPU cores). So
the check is a primitive of its own: the identity on the value that it guards, which `checkify` alone treats otherwise.
"""

import jax
import jax.numpy as jnp
from jax.experimental import checkify
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

try:
    from jax._src.checkify import error_checks  # the rules of `checkify`, which has no public registry
except ImportError:
    error_checks: dict = {}

guard_p = Primitive("guard")


def guard(x: jax.Array, inside: jax.Array, message: str, bad: jax.Array) -> jax.Array:
    """`x`; under `checkify` an error unless all of `inside`, `message` with the value `bad` put in for {bad}."""
    valid = jnp.all(inside)
    if not error_checks:
        checkify.debug_check(valid, message, bad=bad)
        return x
    return guard_p.bind(x, valid, bad, message=message)


@guard_p.def_impl
def _identity(x, valid, bad, *, message):
    return x


guard_p.def_abstract_eval(_identity)
mlir.register_lowering(guard_p, lambda context, x, valid, bad, *, message: [x])


def _jvp(primals, tangents, *, message):
    return guard_p.bind(*primals, message=message), tangents[0]


def _batch(arguments, dimensions, *, message):
    x, valid, bad = arguments
    size = next(y.shape[axis] for y, axis in zip(arguments, dimensions, strict=True) if axis is not None)
    valid, bad = jnp.broadcast_to(valid, size), jnp.broadcast_to(bad, size)
    lowest = -jnp.inf if jnp.issubdtype(bad.dtype, jnp.floating) else jnp.iinfo(bad.dtype).min
    bad = jnp.max(bad, where=~valid, initial=lowest)
    return guard_p.bind(x, jnp.all(valid), bad, message=message), dimensions[0]


ad.primitive_jvps[guard_p] = _jvp
batching.primitive_batchers[guard_p] = _batch


def _check(*arguments, message):
    """As `checkify` has it for `debug_check`, which it is given in place of the guard."""
    *context, x, valid, bad = arguments
    program = jax.make_jaxpr(lambda valid, bad: checkify.debug_check(valid, message, bad=bad))(valid, bad)
    *before, check = program.eqns
    operands = ClosedJaxpr(program.jaxpr.replace(eqns=before, outvars=check.invars, effects=set()), program.consts)
    error, _ = error_checks[check.primitive](*context, *jaxpr_as_fun(operands)(valid, bad), **check.params)
    return error, x


if error_checks:
    error_checks[guard_p] = _check


def check_domain(name: str, key: str, values: jax.Array, inside: jax.Array, domain: str, advice: str = "") -> jax.Array:
    """`values`, guarded; of those outside, the error names the least."""
    worst = jnp.min(jax.lax.stop_gradient(values), where=~inside, initial=jnp.inf)
    return guard(values, inside, f"{name}: `{key}` must be {domain}; got {{bad}}{advice}", worst)
