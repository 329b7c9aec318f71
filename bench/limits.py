"""What the machine can do, measured in the same run: copying, exp in place, and matrix products, by dtype.

Rates are those of XLA's own programs: what another library, or a step that stays in cache, does can be above the limit.
Each is a loop inside one program over an array that it was given to keep (a donated argument), so that neither the
start of a program nor page faults of fresh memory are timed.
"""

import jax
import jax.numpy as jnp
from jax import lax

from bench.measure import interleaved, percentiles

DTYPES = ("float32", "bfloat16")
BYTES = {"cpu": 2**28, "gpu": 2**30, "tpu": 2**30}
WIDTH = {"cpu": 1536, "gpu": 8192, "tpu": 8192}
TURNS = 4


def measure(seconds: float) -> dict[str, dict[str, float]]:
    """Rates by dtype; a copy counts the bytes read and the bytes written."""
    platform = jax.devices()[0].platform
    rates = {}
    for dtype in DTYPES:
        elements = BYTES[platform] // jnp.dtype(dtype).itemsize
        width = WIDTH[platform]
        calls = [
            _repeated(lambda a: -a, jnp.full(elements, 0.5, dtype)),
            _repeated(lambda a: jnp.exp(-a), jnp.full(elements, 0.5, dtype)),
            _repeated(lambda a: a @ a, jnp.eye(width, dtype=dtype)),
        ]
        copy, exp, product = (percentiles(times)["p50"] / 1e3 / TURNS for times in interleaved(calls, seconds))
        rates[dtype] = {
            "copy_bytes_per_s": 2 * BYTES[platform] / copy,
            "exp_per_s": elements / exp,
            "product_flops_per_s": 2 * width**3 / product,
        }
    return rates


def describe(rates: dict[str, dict[str, float]]) -> str:
    return "\n".join(
        f"limits, {dtype}: copy {rate['copy_bytes_per_s'] / 1e9:.1f} GB/s, exp in place "
        f"{rate['exp_per_s'] / 1e9:.2f} G/s, matrix product {rate['product_flops_per_s'] / 1e12:.2f} TFLOP/s"
        for dtype, rate in rates.items()
    )


def _repeated(function, array):
    """A call that applies `function` in place, several times, to an array kept from call to call."""
    program = jax.jit(lambda a: lax.fori_loop(0, TURNS, lambda _, a: function(a), a), donate_argnums=0)
    kept = [array]

    def call():
        kept[0] = program(kept[0])
        return kept[0]

    return call
