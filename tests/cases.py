"""The registry: every loss with its oracle. A property is tested once, over all that its mathematics admits."""

import contextlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss._core.options import KNOWN
from tests import oracle


@dataclass(frozen=True, eq=False)
class Case:
    """A loss with options, its oracle, and what its mathematics admits."""

    name: str
    loss: Callable
    options: dict[str, Any]
    row: Callable  # (logits [C], label: id or [C]) -> loss, or losses [C], and gradient, in mpmath
    phi: Any = None  # of a softmax loss: scalar function of p
    element: Any = None  # of an elementwise loss: (logit, label) -> loss and derivative
    soft: bool = True  # takes soft labels
    multilabel: bool = False  # each label stands alone: `where` names those that are known
    shift_invariant: bool = True
    sparse: bool = False  # exact zeros: errors are absolute
    link: Callable = jnp.asarray  # from logits to what the loss takes
    lost: Callable = lambda label: np.inf  # the loss of a label where another class has all of the probability
    sized: Callable | None = None  # the loss with what an option must have of the number of classes

    @property
    def call(self) -> Callable:
        """The loss with its options set."""
        return partial(self.sized or self.loss, **self.options)

    @cached_property
    def run(self) -> Callable:
        """(logits, labels, **arrays) -> losses and gradient, compiled once for each kind of arguments."""
        return jax.jit(jaxloss.per_example_value_and_grad(self.call))

    @cached_property
    def run_twice(self) -> Callable:
        """The same with the diagonal of the Hessian; `axis` is a third argument."""
        return jax.jit(jaxloss.per_example_value_grad_hess(self.call), static_argnums=2)

    @property
    def parameter(self) -> str | None:
        """The option of a softmax loss's scalar function."""
        return next(iter(self.options), None)

    @property
    def value(self) -> float | None:
        return next(iter(self.options.values()), None)

    @property
    def exponent(self) -> float:
        """Of the power of a probability that the loss holds."""
        return max((value for key, value in self.options.items() if "gamma" in key or key == "q"), default=0)

    def takes(self, **options) -> dict:
        """Those of the options that the loss has."""
        return {key: value for key, value in options.items() if key in inspect.signature(self.loss).parameters}


def _softmax(name: str, loss: Callable, phi: oracle.Phi, **options) -> Case:
    def row(logits, label):
        shares = oracle.shares(label, len(logits))
        return oracle.softmax_row(logits, shares, phi, next(iter(options.values()), None))[:2]

    return Case(name, loss, options, row, phi=phi, lost=lambda label: 1 / options["q"] if "q" in options else np.inf)


def _elements(name: str, loss: Callable, element: Callable, sparse: bool = False, **options) -> Case:
    element = partial(element, **options)
    row = partial(oracle.elements, element)
    return Case(name, loss, options, row, None, element, multilabel=True, shift_invariant=False, sparse=sparse)


def _ranking(name: str, loss: Callable, soft: bool = False, shift_invariant: bool = True, **options) -> Case:
    return Case(
        name,
        loss,
        options,
        partial(oracle.ranking_row, name),
        soft=soft,
        multilabel=True,
        shift_invariant=shift_invariant,
    )


def _sparse(name: str, loss: Callable, order: float, **options) -> Case:
    return Case(name, loss, options, partial(oracle.entmax_row, order), sparse=True)


def _cost(true: int, predicted: int) -> float:
    """The same for each pair of classes, whatever their order; `test_cost` has others."""
    return 0 if true == predicted else 1.25


def _with_costs(function: Callable) -> Callable:
    """A function of the loss's arguments, with the table of as many classes as the logits have."""

    @wraps(function)
    def priced(logits, labels, axis: Any = -1, where=None, *, axis_name=None, **options):
        shape, devices, first = np.shape(logits), 1, 0
        axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        fits = all(isinstance(x, int) and -len(shape) <= x < len(shape) for x in axes)
        size = math.prod(shape[x] for x in axes) if fits else 1
        if axis_name is not None:
            with contextlib.suppress(NameError):
                devices, first = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name) * size
        true, predicted = jnp.arange(size * devices)[:, None], jnp.arange(size)[None] + first
        costs = jnp.where(true == predicted, 0, jnp.float32(1.25))
        return function(logits, labels, axis, where, costs=costs, axis_name=axis_name, **options)

    return priced


PRICED = _with_costs(jaxloss.expected_cost_loss)
_known = KNOWN[jaxloss.expected_cost_loss]
assert _known.hessian is not None
KNOWN[PRICED] = _known._replace(hessian=_with_costs(_known.hessian))

SOFTMAX = [
    _softmax("cross_entropy", jaxloss.softmax_cross_entropy, oracle.cross_entropy),
    _softmax("margins", jaxloss.softmax_cross_entropy_with_integer_labels, oracle.margin, label_margins=0.75),
    _softmax("focal_half", jaxloss.softmax_focal_loss, partial(oracle.focal, epsilon=1), gamma=0.5, epsilon=1.0),
    _softmax("focal_2", jaxloss.softmax_focal_loss, oracle.focal, gamma=2.0),
    _softmax("poly", jaxloss.poly_loss_cross_entropy, oracle.poly, epsilon=2.0),
    _softmax("generalized", jaxloss.generalized_cross_entropy, oracle.generalized_cross_entropy, q=0.7),
]
SIGMOID = [
    _elements("binary", jaxloss.sigmoid_binary_cross_entropy, oracle.sigmoid_element),
    _elements("binary_pos_weight", jaxloss.sigmoid_binary_cross_entropy, oracle.sigmoid_element, pos_weight=3.0),
    _elements("binary_focal_half", jaxloss.sigmoid_focal_loss, oracle.sigmoid_element, gamma=0.5),
    _elements("binary_focal_2", jaxloss.sigmoid_focal_loss, oracle.sigmoid_element, gamma=2.0, alpha=0.25),
    _elements(
        "asymmetric",
        jaxloss.asymmetric_loss,
        oracle.asymmetric_element,
        gamma_positive=1.0,
        gamma_negative=4.0,
        clip=0.0,
    ),
    _elements("modified_huber", jaxloss.modified_huber_loss, oracle.modified_huber_element),
    _elements("squared_hinge", jaxloss.squared_hinge_loss, oracle.squared_hinge_element),
    _elements("binary_sparsemax", jaxloss.sparsemax_loss, oracle.sparse_sigmoid_element, sparse=True),
]
SPARSE = [
    _sparse("sparsemax", jaxloss.multiclass_sparsemax_loss, 2),
    _sparse("entmax15", jaxloss.entmax_loss, 1.5),
    _sparse("entmax", jaxloss.entmax_loss, 1.25, alpha=1.25),
]
COSTS = [
    Case(
        "costs",
        jaxloss.expected_cost_loss,
        {},
        partial(oracle.cost_row, _cost),
        lost=lambda label: 1.25,
        sized=PRICED,
    ),
    Case("multiclass_hinge", jaxloss.multiclass_hinge_loss, {}, oracle.multiclass_hinge_row),
]
RANKING = [
    _ranking("logistic", jaxloss.pairwise_ranking_loss),
    _ranking("hinge", jaxloss.pairwise_ranking_loss, surrogate="hinge"),
    _ranking("lsep", jaxloss.log_sum_exp_pairwise_loss),
    _ranking("zlpr", jaxloss.zlpr_loss, shift_invariant=False),
    _ranking("hamming", jaxloss.soft_hamming_loss, soft=True, shift_invariant=False),
]
LOGITS = [*SOFTMAX, *SIGMOID, *SPARSE, *COSTS, *RANKING]
PROBABILITIES = [
    Case("probabilities", jaxloss.cross_entropy, {}, partial(oracle.probability_row, False), link=jax.nn.softmax),
    Case(
        "log_probabilities",
        jaxloss.negative_log_likelihood,
        {},
        partial(oracle.probability_row, True),
        link=jax.nn.log_softmax,
    ),
    Case(
        "binary_probabilities",
        jaxloss.binary_cross_entropy,
        {},
        partial(oracle.elements, oracle.probability_element),
        element=oracle.probability_element,
        multilabel=True,
        link=jax.nn.sigmoid,
    ),
]
ALL = [*LOGITS, *PROBABILITIES]
CLASSES = [*SOFTMAX, *SPARSE, *COSTS]  # of one class among C, with `axis_name`


def distinct(cases: list[Case]) -> list[Case]:
    """For what does not depend on numbers: no second case of the same function with another number, and no alias.

    `test_options.test_the_alias_is_the_same_program` is what the alias, which is the case of margins, has of its own.
    """
    return [case for case in cases if case.name not in ("margins", "focal_half", "binary_focal_half")]


def parametrize(cases: list[Case]):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


softmax_cases = parametrize(SOFTMAX)
sigmoid_cases = parametrize(SIGMOID)
logits_cases = parametrize(LOGITS)
probability_cases = parametrize(PROBABILITIES)
all_cases = parametrize(ALL)


def logits_for(case: Case | None, rng, rows: int = 6, size: int = 5, scale=3.0) -> jax.Array:
    """Logits [rows, size], or probabilities where a case takes those."""
    logits = jnp.asarray(rng.normal(size=(rows, size)) * scale, jnp.float32)
    return logits if case is None else case.link(logits)


def labels_for(case: Case | None, rng, kind: str = "ids", rows: int = 6, size: int = 5) -> jax.Array:
    """Labels of a kind: "ids", "onehot" (the same ids), "soft", or "multihot", which stands in where soft is not."""
    ids = rng.integers(0, size, rows)
    if kind == "ids":
        return jnp.asarray(ids, jnp.int32)
    if kind == "onehot":
        return jnp.asarray(np.eye(size)[ids], jnp.float32)
    if kind == "multihot" or (case is not None and not case.soft):
        return jnp.asarray(rng.integers(0, 2, (rows, size)), jnp.float32)
    return jnp.asarray(rng.dirichlet(np.ones(size), rows), jnp.float32)


def structured_rows(rng, size: int = 10, rows: int = 4) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logits and ids by regime: what training meets, and what breaks peers."""
    normal = rng.normal(size=(rows, size)).astype(np.float32)
    ids = rng.integers(0, size, rows)
    best = normal.argmax(1)
    huge = normal.copy()
    huge[:, 0] = 1e5
    masked = normal.copy()
    masked[:, 1::2] = -np.inf
    tied = np.repeat(np.round(normal[:, :1] * 4), size, 1).astype(np.float32)
    two_tied = normal.copy()
    two_tied[:, 0] = two_tied[:, 1] = 8.0
    return {
        "unit": (normal, ids),
        "spread 20, any label": (normal * 20, ids),
        "spread 20, right": (normal * 20, best),
        "spread 80, right": (normal * 80, best),
        "offset 1e4": (np.round(normal * 64) / 64 + np.float32(1e4), ids),
        "offset 1e6": (np.round(normal * 8) / 8 + np.float32(1e6), best),
        "all tied": (tied, ids),
        "two tied at the top": (two_tied, np.zeros(rows, int)),
        "one huge, right": (huge, np.zeros(rows, int)),
        "one huge, wrong": (huge, np.ones(rows, int)),
        "masked": (masked, np.zeros(rows, int)),
    }


def multilabel_rows(rng, size: int = 8, rows: int = 3) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logits and multi-hot labels by regime: what training of ranking losses meets, and what breaks formulas."""
    normal = rng.normal(size=(rows, size))
    labels = rng.integers(0, 2, (rows, size))
    labels[:, :2] = [0, 1]
    huge = normal.copy()
    huge[:, 3] = 1e5
    one = np.eye(size, dtype=int)[:rows]
    return {
        "unit": (normal, labels),
        "spread 20": (normal * 20, labels),
        "right": (normal + np.where(labels == 1, 12, -12), labels),
        "right, spread 20": (normal * 20 + np.where(labels == 1, 30, -30), labels),
        "wrong": (normal + np.where(labels == 1, -30, 30), labels),
        "offset 1e4": (np.round(normal * 64) / 64 + 1e4, labels),
        "all tied": (np.full_like(normal, 0.75), labels),
        "tied at 1e8": (np.full_like(normal, 1e8), labels),
        "at the hinge": (np.where(labels == 1, 1, 0) + normal * 1e-6, labels),
        "one huge": (huge, labels),
        "one relevant": (normal * 5, one),
        "one irrelevant": (normal * 5, 1 - one),
        "one relevant, right": (normal * 5 + 40 * one, one),
        "none relevant": (normal, np.zeros_like(labels)),
        "all relevant": (normal, np.ones_like(labels)),
        "spread 60": (normal * 60, labels),
    }
