"""Bad input of the functions of a linear layer: which argument, what was expected, what came, what to do."""

from functools import partial

import jax.numpy as jnp
import pytest

import jaxloss

CE = jaxloss.softmax_cross_entropy
H, W, Y = jnp.zeros((8, 4)), jnp.zeros((4, 10)), jnp.zeros(8, jnp.int32)
LINEAR = jaxloss.linear_loss
BAD = {
    "table": (lambda: LINEAR(CE, H, W.T, Y), r"\[H, C\] with axis=-1, H = 4.*got float32\[10,4\]\. Did you mean axis=0\?"),
    "no table": (lambda: LINEAR(CE, H, W, Y, axis=0), r"\[C, H\] with axis=0.*Did you mean axis=-1\?"),
    "width": (lambda: LINEAR(CE, H, jnp.zeros((5, 10)), Y), r"H = 4 being the last axis of `hidden` float32\[8,4\]"),
    "axis": (lambda: LINEAR(CE, H, W, Y, axis=2), r"`axis` must be the class axis of `kernel`.*got 2"),
    "ids": (lambda: LINEAR(CE, H, W, Y[:7]), r"`labels` must have shape \(8,\).*`hidden` float32\[8,4\]; got int32\[7\]"),
    "tree": (lambda: LINEAR(CE, H, W, {"a": Y[:7]}), r"`labels\['a'\]` must have shape \(8,\)"),
    "bias": (lambda: LINEAR(CE, H, W, Y, bias=jnp.zeros(9)), r"`bias` must have shape \(10,\), an entry for each class"),
    "where": (lambda: LINEAR(CE, H, W, Y, where=Y), r"`where` must be boolean; got int32\[8\]"),
    "where shape": (lambda: LINEAR(CE, H, W, Y, where=jnp.ones((8, 10), bool)), r"`where` must have shape \(8,\)"),
    "weights": (lambda: LINEAR(CE, H, W, Y, weights=jnp.ones(10)), r"`weights` must have shape \(8,\); got float32\[10\]"),
    "integer hidden": (lambda: LINEAR(CE, Y[:, None], W, Y), r"`hidden` must be floating point; got int32\[8,1\]"),
    "complex weights": (lambda: LINEAR(CE, H, W, Y, weights=Y.astype(jnp.complex64)), r"`weights` must be floating point"),
    "chunks": (lambda: LINEAR(CE, H, W, Y, chunk_rows=0), r"`chunk_rows` must be an int >= 1, or None; got 0"),
    "elements": (lambda: LINEAR(jaxloss.sigmoid_binary_cross_entropy, H, W, jnp.zeros((8, 10))), r"got float32\[8,10\]\. Losses by element are to be summed by row: .*\.sum\(-1\)"),
    "no axis": (lambda: LINEAR(partial(CE, axis_name="model"), H, W, Y), r"`axis_name` must be a mesh axis.*got 'model', which is none here.*linear_loss takes it as well as its loss"),
    "args": (lambda: LINEAR(CE, H, W, Y, loss_args=2.0), r"`loss_args` must be a tuple; got float\. For one pass \(x,\)"),
    "mean": (lambda: LINEAR(lambda z, y: jnp.mean(CE(z, y)), H, W, Y), r"one float for each row.*got float32\[\]\. Do not reduce"),
    "no sum": (lambda: LINEAR(lambda z, y: z, H, W, Y), r"one float for each row of its logits float32\[8,10\]; got float32\[8,10\]"),
    "aux": (lambda: LINEAR(CE, H, W, Y, has_aux=True), r"with has_aux, `loss` must return \(losses, auxiliary results\)"),
    "no aux": (lambda: LINEAR(lambda z, y: (CE(z, y), y), H, W, Y), r"`loss` returned a tuple.*has_aux=True"),
    "no function": (lambda: LINEAR("ce", H, W, Y), r"`loss` must be a function of logits and rows; got str"),
    "mask": (lambda: LINEAR(partial(CE, where=Y == 0), H, W, Y), r"`loss` must not hold a mask.*Pass where= to linear_loss"),
    "mask of rows": (lambda: jaxloss.map_linear_logits(partial(CE, where=Y == 0), H, W, Y), r"one of `rows`"),
    "no mesh": (lambda: LINEAR(CE, H, W, Y, batch_spec="data"), r"there is none here.*jax\.set_mesh"),
    "rows": (lambda: jaxloss.map_linear_logits(CE, H, W, Y[:7]), r"map_linear_logits: `rows\[0\]` must have shape \(8,\)"),
    "sum of rows": (lambda: jaxloss.map_linear_logits(lambda z: jnp.sum(z), H, W), r"`fn` must return an entry for each row"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_errors_say_what_to_do(bad):
    call, message = BAD[bad]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
