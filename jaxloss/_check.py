"""What `python -m jaxloss` compares with: textbook formulas in NumPy on the host, in the widest floats that it has.

Nothing here knows how the library computes. Of an array of rows z and labels t of its shape, every formula returns the
losses, their gradient and its scale, whose last place is the unit of errors: the size of the gradient or, for soft
labels, that of the larger of the two numbers whose difference it is. Hard labels meet no difference of two nearly equal
numbers: 1 - p is the sum over the other classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss

CLASSES = 10
Wide = np.longdouble
Found = tuple[np.ndarray, np.ndarray, np.ndarray]


class Data(NamedTuple):
    """Rows of every regime, one after the other, so that one program serves them all."""

    regimes: np.ndarray
    logits: np.ndarray
    labels: dict[str, np.ndarray]


@cache
def data(dtype: str, classes: int = CLASSES, rows: int = 32) -> Data:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(rows, classes))
    ids = rng.integers(0, classes, rows)
    # The finest grid at 1e4 that is a power of two, of at least 1/64.
    step = max(2.0**-6, 2.0**13 * float(jnp.finfo(dtype).eps))
    offset = np.round(1e4 / step) * step + np.round(normal / min(step, 1)) * step
    masked, confident = normal.copy(), np.zeros_like(normal)
    masked[:, 3::2] = -np.inf
    confident[:, 0] = np.linspace(-20, 40, rows)
    confident[rows // 2 :, 2:] = -np.inf
    confident[-1, 0] = 20
    logits = np.concatenate([normal, normal * 20, normal * 20, offset, masked, confident])
    names = ["unit normal", "spread 20", "spread 20, right", "offset 1e4", "masked", "confident"]
    ids = np.concatenate([ids, ids, normal.argmax(-1), ids, ids // 2 * 2, 0 * ids])

    finite = logits > -np.inf
    soft = rng.dirichlet(np.full(classes, 0.5), len(logits)) * finite
    relevant = rng.integers(0, 2, logits.shape) * finite
    relevant[:, :2] = [1, 0]
    right = slice(2 * rows, 3 * rows)
    relevant[right] = logits[right] > 0
    onehot = ids[:, None] == np.arange(classes)
    labels = {"ids": ids.astype(np.int32)}
    labels |= {kind: x.astype(np.float32) for kind, x in (("one-hot", onehot), ("multi-hot", relevant), ("soft", soft))}
    return Data(np.repeat(names, rows), logits, labels)


def softmax_loss(phi: Callable, z: np.ndarray, t: np.ndarray) -> Found:
    """sum_c t_c phi_c, where `phi` gives (phi, p dphi/dp) of p, q = 1 - p and s = -log p."""
    best = np.arange(z.shape[-1]) == z.argmax(-1)[:, None]
    depth = z.max(-1, keepdims=True) - z
    e = np.exp(-depth)
    below = np.where(best, 0, e).sum(-1, keepdims=True)
    total = 1 + below
    values, slopes = phi(e / total, np.where(best, below, total - e) / total, np.log1p(below) + depth)
    values, slopes = (np.where(t > 0, t * x, 0) for x in (values, slopes))
    # sum_c slope_c ([c = j] - p_j), the own class apart from the others.
    every = slopes.sum(-1, keepdims=True)
    gradient = slopes * np.where(best, below, total - e) / total - (every - slopes) * e / total
    soft = np.sum(t > 0, -1, keepdims=True) > 1
    scale = np.where(soft, np.maximum(np.abs(slopes), np.abs(every) * e / total), np.abs(gradient))
    return values.sum(-1), gradient, scale


def cross_entropy(p, q, s):
    return s, -np.ones_like(s)


def focal(gamma, p, q, s):
    return q**gamma * s, -(q**gamma) - gamma * q ** (gamma - 1) * p * s


def poly(epsilon, p, q, s):
    return s + epsilon * q, -1 - epsilon * p


def generalized(k, p, q, s):
    return -np.expm1(-k * s) / k, -(p**k)


def elements(phi: Callable, z: np.ndarray, t: np.ndarray) -> Found:
    """phi(z) for positives, phi(-z) for negatives, where `phi` gives value and slope of a margin and its label."""
    value, slope = phi(np.where(t > 0, z, -z), t)
    gradient = np.where(t > 0, slope, -slope)
    return value, gradient, np.abs(gradient)


def binary_focal(weights: Sequence[float], gammas: Sequence[float], m, t):
    """Weight times q^gamma (-log p); weights and exponents of positives, then of negatives."""
    (a, b), (positive, negative) = weights, gammas
    a, gamma = np.where(t > 0, Wide(a), Wide(b)), np.where(t > 0, Wide(positive), Wide(negative))
    p, q, s = 1 / (1 + np.exp(-m)), 1 / (1 + np.exp(m)), np.logaddexp(0, -m)
    return a * q**gamma * s, -a * q**gamma * (q + gamma * p * s)


def modified_huber(m, _):
    short = np.maximum(1 - m, 0)
    return np.where(m < -1, -4 * m, short**2), -2 * np.minimum(short, 2)


def squared_hinge(m, _):
    short = np.maximum(1 - m, 0)
    return short**2, -2 * short


def binary_sparsemax(m, _):
    short = np.maximum(1 - m, 0)
    return np.where(m < -1, -m, short**2 / 4), -np.minimum(short / 2, 1)


def binary_probability(p, t) -> Found:
    right = np.where(t > 0, p, 1 - p)
    return -np.log(right), np.where(t > 0, -1, 1) / right, 1 / right


def probability(p, t) -> Found:
    gradient = np.where(t > 0, -t / p, 0)
    return np.where(t > 0, -t * np.log(p), 0).sum(-1), gradient, np.abs(gradient)


def log_probability(x, t) -> Found:
    return np.where(t > 0, -t * x, 0).sum(-1), -t, t


def pairs(surrogate: str, z: np.ndarray, t: np.ndarray) -> Found:
    """Losses of the differences d = z_j - z_i of every irrelevant j and relevant i, as arrays [rows, i, j]."""
    pair = (t[:, :, None] > 0) & (t[:, None, :] == 0)
    d = np.where(pair, z[:, None, :] - z[:, :, None], -np.inf)
    count = np.maximum(pair.sum((1, 2)), 1)
    if surrogate == "lsep":
        value = np.logaddexp(np.logaddexp.reduce(d.reshape(len(d), -1), -1), 0)
        slopes = np.exp(d - value[:, None, None])
    else:
        hinge = surrogate == "hinge"
        value = (np.maximum(1 + d, 0) if hinge else np.logaddexp(d, 0)).sum((1, 2)) / count
        slopes = (np.where(d > -1, Wide(1), 0) if hinge else 1 / (1 + np.exp(-d))) / count[:, None, None]
    gradient = slopes.sum(1) - slopes.sum(2)
    return value, gradient, np.abs(gradient)


def zlpr(z: np.ndarray, t: np.ndarray) -> Found:
    sides = [np.where(t > 0, -z, -np.inf), np.where(t > 0, -np.inf, z)]
    below, above = (np.logaddexp(np.logaddexp.reduce(x, -1, keepdims=True), 0) for x in sides)
    gradient = np.exp(sides[1] - above) - np.exp(sides[0] - below)
    return (below + above)[:, 0], gradient, np.abs(gradient)


def soft_hamming(z: np.ndarray, t: np.ndarray) -> Found:
    p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    return np.where(t > 0, q, p).mean(-1), (1 - 2 * t) * p * q / z.shape[-1], p * q / z.shape[-1]


def entmax(alpha: float, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [b z - tau]_+^(1/b) and b z - tau, b = alpha - 1; tau by bisection."""
    b = Wide(alpha) - 1
    scaled = b * (z - z.max(-1, keepdims=True))
    low = np.full_like(scaled[:, :1], -1)
    for power in range(1, 80):
        middle = low + Wide(0.5) ** power
        low = np.where((np.maximum(scaled - middle, 0) ** (1 / b)).sum(-1, keepdims=True) > 1, middle, low)
    return np.maximum(scaled - low, 0) ** (1 / b), scaled - low


def entmax_loss(alpha: float, z: np.ndarray, t: np.ndarray) -> Found:
    """Omega(t) - Omega(p) - sum_j z_j (t_j - p_j), Omega(p) = sum_j (p_j^alpha - p_j) / (alpha (alpha - 1))."""
    t = t / t.sum(-1, keepdims=True)
    p, _ = entmax(alpha, z)
    depth = np.where(z == -np.inf, 0, z - z.max(-1, keepdims=True))
    omega = (t**alpha - t - p**alpha + p) / (Wide(alpha) * (alpha - 1))
    return (omega - depth * (t - p)).sum(-1), p - t, np.abs(p - t)


def projection(alpha: float, z: np.ndarray, v: np.ndarray) -> Found:
    """sum_j v_j p_j, with the derivative S_j (v_j - sum_k S_k v_k / sum_k S_k), S = p^(2 - alpha) where p > 0."""
    p, above = entmax(alpha, z)
    s = np.where(above > 0, p ** (2 - Wide(alpha)), 0)
    gradient = s * (v - (s * v).sum(-1, keepdims=True) / s.sum(-1, keepdims=True))
    # Sparsemax has two derivatives where z_j = tau: whatever the library gives there is right.
    scale = np.where((alpha == 2) & (np.abs(above) < 1e-5).any(-1, keepdims=True), np.inf, np.abs(gradient))
    return (v * p).sum(-1), gradient, scale


def projected(function: Callable[..., jax.Array], z: jax.Array, v: jax.Array, **options) -> jax.Array:
    """A projection as a loss: its product with a row in place of labels."""
    return jnp.sum(v * function(z, **options), -1)


def as_probabilities(z: np.ndarray) -> np.ndarray:
    """Away from 0 and 1, to which half precision would round them; classes that do not exist stay at 0."""
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.where(z > -np.inf, np.clip(e / e.sum(-1, keepdims=True), 2.0**-10, 1 - 2.0**-8), 0)


@dataclass(frozen=True, eq=False)
class Case:
    """A loss of `jaxloss` with its formula, the kinds of labels that it is checked with, and what is promised of it."""

    name: str
    formula: Callable[..., Found]
    kinds: tuple[str, ...] = ("ids", "one-hot", "soft")
    options: dict = field(default_factory=dict)
    power: float = 0
    """Of a probability, that the loss holds."""
    zero: bool = False
    """Whether 0 is the other side: a constant added to a row changes the loss."""
    absolute: bool = False
    """Whether errors are absolute, since the gradient has exact zeros."""
    adds: bool = False
    """Whether a gradient entry adds up terms of every size, of which XLA flushes those that are subnormal."""
    link: Callable[[np.ndarray], np.ndarray] | None = None
    """From logits to what the loss takes, if that is something else."""
    projects: bool = False

    @property
    def loss(self) -> Callable[..., jax.Array]:
        """Looked up when it is asked for, so that what is checked is what a user's program would call."""
        function = getattr(jaxloss, self.name)
        return partial(projected, function) if self.projects else partial(function, **self.options)

    def promise(self, z: np.ndarray) -> np.ndarray:
        """For each row the units that its errors may have, (1 + k) (4 + d)."""
        if self.link is not None:
            return np.full(len(z), 4.0)  # a probability is what it is: no logit is moved
        finite = np.where(np.isfinite(z), z, np.nan)
        finite = np.concatenate([finite, np.zeros_like(z[:, :1])], -1) if self.zero else finite
        return ((1 + self.power) * (4 + np.nanmax(finite, -1) - np.nanmin(finite, -1))).astype(float)

    def __str__(self) -> str:
        shown = ", ".join(v if isinstance(v, str) else format(v, "g") for v in self.options.values())
        return f"{self.name}({shown})" if shown else self.name


MULTI_HOT = ("multi-hot",)
ASYMMETRIC = {"gamma_positive": 1.0, "gamma_negative": 4.0, "clip": 0.0}
FOCAL = {"alpha": 0.25, "gamma": 2.0}
BINARY, BINARY_FOCAL, BINARY_ASYMMETRIC = (
    partial(elements, partial(binary_focal, weights, gammas))
    for weights, gammas in (((1, 1), (0, 0)), ((0.25, 0.75), (2, 2)), ((1, 1), (1, 4)))
)
SOFTMAX = [
    Case("softmax_cross_entropy", partial(softmax_loss, cross_entropy)),
    Case("softmax_focal_loss", partial(softmax_loss, partial(focal, 2)), options={"gamma": 2.0}, power=2),
    Case("poly_loss_cross_entropy", partial(softmax_loss, partial(poly, 2)), options={"epsilon": 2.0}),
    Case(
        "generalized_cross_entropy", partial(softmax_loss, partial(generalized, 0.75)), options={"q": 0.75}, power=0.75
    ),
]
SIGMOID = [
    Case("sigmoid_binary_cross_entropy", BINARY, ("ids", "multi-hot"), zero=True),
    Case("sigmoid_focal_loss", BINARY_FOCAL, MULTI_HOT, FOCAL, power=2, zero=True),
    Case("asymmetric_loss", BINARY_ASYMMETRIC, MULTI_HOT, ASYMMETRIC, power=4, zero=True),
    Case("modified_huber_loss", partial(elements, modified_huber), MULTI_HOT, zero=True),
    Case("squared_hinge_loss", partial(elements, squared_hinge), MULTI_HOT, zero=True),
    Case("sparsemax_loss", partial(elements, binary_sparsemax), MULTI_HOT, zero=True, absolute=True),
]
SPARSE = [
    Case("multiclass_sparsemax_loss", partial(entmax_loss, 2), absolute=True),
    Case("entmax_loss", partial(entmax_loss, 1.5), options={"alpha": 1.5}, absolute=True),
]
PROJECTIONS = [
    Case("sparsemax", partial(projection, 2), ("soft",), absolute=True, projects=True),
    Case("entmax15", partial(projection, 1.5), ("soft",), absolute=True, projects=True),
]
RANKING = [
    Case("pairwise_ranking_loss", partial(pairs, "logistic"), MULTI_HOT, {"surrogate": "logistic"}, adds=True),
    Case("pairwise_ranking_loss", partial(pairs, "hinge"), MULTI_HOT, {"surrogate": "hinge"}),
    Case("log_sum_exp_pairwise_loss", partial(pairs, "lsep"), MULTI_HOT),
    Case("zlpr_loss", zlpr, MULTI_HOT, zero=True),
    Case("soft_hamming_loss", soft_hamming, MULTI_HOT, zero=True),
]
PROBABILITIES = [
    Case("cross_entropy", probability, ("ids", "one-hot"), link=as_probabilities),
    Case("negative_log_likelihood", log_probability, ("ids", "one-hot"), link=lambda z: np.log(as_probabilities(z))),
    Case("binary_cross_entropy", binary_probability, MULTI_HOT, link=lambda z: as_probabilities(np.maximum(z, -1e3))),
]
CASES = [*SOFTMAX, *SIGMOID, *SPARSE, *PROJECTIONS, *RANKING, *PROBABILITIES]
