"""Losses with their derivatives per example, as boosting libraries and second-order methods take them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxloss._core.options import KNOWN, explained, known, required, unwrapped


@explained
def per_example_value_and_grad(loss: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """A function that returns the losses and, for each, its gradient with respect to its own logits.

    d loss_i / d z_i for every example i in one pass, not reduced: `jax.grad` of the sum, since no loss depends on the
    logits of another example.

    Args:
      loss: any function (logits, labels, ...) -> losses whose examples do not depend on each other.

    Returns:
      A function of the same arguments that returns (losses, gradient of the shape and dtype of the logits).

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> f = jaxloss.per_example_value_and_grad(jaxloss.sigmoid_binary_cross_entropy)
      >>> print(*f(jnp.array([0.0, 20.0]), jnp.array([1, 1])))
      [6.9314718e-01 2.0611537e-09] [-5.0000000e-01 -2.0611537e-09]
    """
    if not callable(loss):
        raise TypeError(
            f"per_example_value_and_grad: `loss` must be a function of (logits, labels); got {type(loss).__name__}. "
            "Pass the function itself, then call what is returned."
        )
    return _ValueAndGrad(loss)


class _Derivatives:
    """A function of a loss that can be pickled if the loss can, and documents itself as that."""

    def __init__(self, loss: Callable):
        self._loss = loss
        wrapper: Any = self
        functools.update_wrapper(wrapper, unwrapped(loss)[0], updated=())
        self.__wrapped__ = loss

    def __reduce__(self):
        return type(self), (self._loss,)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._loss == self._loss

    def __hash__(self) -> int:
        return hash((type(self), self._loss))


class _ValueAndGrad(_Derivatives):
    def __call__(self, logits, *args, **kwargs):
        logits = required("per_example_value_and_grad", "logits", logits)
        values, pullback = jax.vjp(lambda z: self._loss(z, *args, **kwargs), logits)
        return values, pullback(jnp.ones_like(values))[0]


class _ValueGradHess(_Derivatives):
    def __call__(self, logits, *args, **kwargs):
        function, options = unwrapped(self._loss)
        hessian, kwargs = KNOWN[function].hessian, options | kwargs
        assert hessian is not None
        logits = required("per_example_value_grad_hess", "logits", logits)
        values, gradient = _ValueAndGrad(function)(logits, *args, **kwargs)
        return values, gradient, hessian(logits, *args, **kwargs)


@explained
def per_example_value_grad_hess(
    loss: Callable[..., jax.Array],
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """A function that returns losses, gradients and the diagonals of their Hessians, in closed form.

    For softmax losses d2 loss_i / d z_ij^2 follows from phi' and phi'' (`jaxloss/_core/hessians.py` has the formulas)
    at the cost of a few passes over the row; boosting libraries take (gradient, Hessian) as a custom objective. Of
    losses that are not convex, such as focal loss and generalized cross-entropy, entries may be 0 or negative. For
    boosting do not clip those at a small number: a leaf then steps by its gradient over almost 0, and the logits run
    away. `boosting.objective` takes `jnp.abs(gradient) + 1e-6` in their place.

    Args:
      loss: a loss of jaxloss on logits, or `functools.partial` of one with keyword options.

    Returns:
      A function of the same arguments that returns (losses, gradient, diagonal of the Hessian), the last two of the
      shape and dtype of the logits.

    Raises:
      TypeError: for any other function; `jax.vmap(lambda z, y: jnp.diag(jax.hessian(loss)(z, y)))` serves there.

    Example:
      >>> import functools, jax.numpy as jnp, jaxloss
      >>> focal = functools.partial(jaxloss.softmax_focal_loss, gamma=2.0)
      >>> focal_with_derivatives = jaxloss.per_example_value_grad_hess(focal)
      >>> _, gradient, hessian = focal_with_derivatives(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([2]))
      >>> print(gradient[0, 2], hessian[0, 2])
      -0.098288 0.185294
    """
    found = known(loss)
    if found is None or found.hessian is None:
        raise TypeError(
            "per_example_value_grad_hess: `loss` must be a loss of jaxloss on logits, or functools.partial of one with "
            f"keyword options; got {loss!r}. For other functions use jax.hessian."
        )

    return _ValueGradHess(loss)
