"""The option `alpha` of the entmax family."""

import functools
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from jaxloss._core.options import KNOWN, Function


def ordered(function: Function) -> Function:
    """Checks `alpha` given as a Python number; the default 1.5 takes no part in the compiled program."""

    @functools.wraps(function)
    def wrapper(*args, alpha: Any = 1.5, **options):
        if isinstance(alpha, int | float | np.integer | np.floating):
            if not 1 <= alpha <= 2:
                raise ValueError(f"{function.__name__}: `alpha` must be in [1, 2]; got {alpha:g}.")
            alpha = None if alpha == 1.5 else jnp.asarray(float(alpha))
        return function(*args, alpha=alpha, **options)

    known = KNOWN[function]
    KNOWN[wrapper] = known._replace(hessian=known.hessian and ordered(known.hessian))
    return cast(Function, wrapper)
