"""Objectives, metrics and starting scores for gradient-boosted trees: XGBoost, LightGBM and CatBoost.

Each is made of a loss of jaxloss and handed over as it is. Which library calls is told from the arguments of the call;
none of them is imported. docs/guide/boosting.md explains scores, probabilities and curvatures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np

from jaxloss._core import boosting as programs
from jaxloss._core.annotations import ArrayLike
from jaxloss._core.boosting_arguments import ABSENT, CATBOOST, LIGHTGBM, XGBOOST, Call, checked, given, read
from jaxloss._core.options import explained, unwrapped
from jaxloss.sigmoid import sigmoid_binary_cross_entropy
from jaxloss.softmax import softmax_cross_entropy, softmax_cross_entropy_with_integer_labels

__all__ = ["Metric", "Objective", "initial_score", "metric", "objective"]

CROSS_ENTROPIES = (softmax_cross_entropy, softmax_cross_entropy_with_integer_labels, sigmoid_binary_cross_entropy)


class _OfLoss:
    """What is made of a loss: copied and pickled with it, and called as libraries call it.

    Of the parameters of `__call__`, XGBoost looks for `sample_weight`; LightGBM counts them: of four, the third is the
    weight.
    """

    def __init__(self, loss: Callable[..., jax.Array], **settings: Any):
        self._name = f"boosting.{type(self).__name__.lower()}"
        self._loss, self._settings, self._given = loss, settings, given(self._name, loss)
        self.__name__ = unwrapped(loss)[0].__name__

    def __reduce__(self):
        return functools.partial(type(self), **self._settings), (self._loss,)

    def __deepcopy__(self, _: dict) -> Self:
        return self  # nothing in it changes; and CatBoost's estimators, cloned, must hold the same object

    def __repr__(self) -> str:
        settings = "".join(f", {key}={value!r}" for key, value in self._settings.items() if value is not None)
        function, options = unwrapped(self._loss)
        shown = ", ".join([function.__name__, *(f"{key}={value}" for key, value in options.items())])
        return f"{self._name}({f'partial({shown})' if options else shown}{settings})"


class Objective(_OfLoss):
    """A loss as boosting libraries call it; `jaxloss.boosting.objective` makes it."""

    def __init__(self, loss: Callable[..., jax.Array], curvature: str | None = None, factor: float | None = None):
        super().__init__(loss, curvature=curvature, factor=factor)
        if curvature not in (None, *programs.CURVATURES):
            admitted = ", ".join(map(repr, programs.CURVATURES))
            raise ValueError(f"{self._name}: `curvature` must be one of {admitted} or None; got {curvature!r}.")
        if factor is not None and not (isinstance(factor, int | float) and not isinstance(factor, bool) and factor > 0):
            raise ValueError(f"{self._name}: `factor` must be a number > 0 or None; got {factor!r}.")

    def __call__(
        self, first: Any, second: Any, weight: Any = ABSENT, sample_weight: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and curvature for each score, of (scores, data) or of (labels, scores, weights)."""
        return self._derivatives(read(self._name, first, second, weight, sample_weight))

    def calc_ders_range(self, approxes: Any, targets: Any, weights: Any) -> np.ndarray:
        """CatBoost: minus gradient and minus curvature, [rows, 2], of scores of two classes."""
        both = self._derivatives(checked(self._name, CATBOOST, approxes, targets, weights))
        return -np.stack(both, -1).astype(np.float64)

    def calc_ders_multi(self, approxes: Any, target: Any, weight: float) -> tuple[np.ndarray, np.ndarray]:
        """CatBoost: minus gradient and minus the matrix of curvature of one row of several classes."""
        call = checked(self._name, CATBOOST, np.reshape(approxes, (1, -1)), np.reshape(target, (1, -1)), [weight])
        found = programs.row_derivatives(self._name, self._given, call, self._curvature, self._factor(call))
        return -found[0], -found[1:]

    @property
    def _curvature(self) -> str:
        return self._settings["curvature"] or ("diagonal" if self._given.function in CROSS_ENTROPIES else "gradient")

    def _factor(self, call: Call) -> float:
        if self._settings["factor"] is not None:
            return float(self._settings["factor"])
        if self._curvature == "gradient" or not self._given.by_row or call.scores.ndim == 1:
            return 1.0
        classes = call.scores.shape[1]
        return {XGBOOST: 2.0, LIGHTGBM: classes / (classes - 1), CATBOOST: 1.0}[call.library]

    def _derivatives(self, call: Call) -> tuple[np.ndarray, np.ndarray]:
        return programs.derivatives(self._name, self._given, call, self._curvature, self._factor(call))


class Metric(_OfLoss):
    """The mean of a loss as boosting libraries call it; `jaxloss.boosting.metric` makes it."""

    def __call__(self, first: Any, second: Any, weight: Any = ABSENT, sample_weight: Any = None) -> Any:
        """(name, mean), with False for LightGBM, as larger is worse; the mean alone for XGBoost's scikit-learn API."""
        call = read(self._name, first, second, weight, sample_weight)
        mean = self.get_final_error(*programs.total(self._name, self._given, call))
        if call.library == LIGHTGBM:
            return self.__name__, mean, False
        return (self.__name__, mean) if hasattr(second, "get_label") else mean

    def is_max_optimal(self) -> bool:
        """CatBoost: larger is worse."""
        return False

    def evaluate(self, approxes: Any, target: Any, weight: Any) -> tuple[float, float]:
        """CatBoost: the weighted sum of the losses, and that of the weights, of scores [classes, rows]."""
        scores = np.stack([np.asarray(x) for x in approxes], -1)
        return programs.total(self._name, self._given, checked(self._name, CATBOOST, scores, target, weight))

    def get_final_error(self, error: float, weight: float) -> float:
        """CatBoost: the mean."""
        return error / weight if weight else 0.0


@explained
def objective(
    loss: Callable[..., jax.Array], *, curvature: str | None = None, factor: float | None = None
) -> Objective:
    """A loss as the objective of XGBoost, LightGBM or CatBoost, each of which takes what is returned as it is.

    A leaf of a tree moves the scores of its rows by gradient over curvature, times the learning rate, with r the
    regularization:

      -(sum_i g_i) / (r + sum_i h_i)

    By default the curvature of cross-entropies is p (1 - p), times the factor of the library's own objective, so that
    the same trees grow. That of all other losses is the size of the gradient (plus 1e-6), for their second derivative
    vanishes or turns negative; a leaf then moves by at most the learning rate. docs/guide/boosting.md has the
    experiment that chose it.

    `xgboost.train` takes it as `obj`, `lightgbm.train` as "objective" among its parameters, their estimators by the
    keyword "objective", and CatBoost's as `loss_function`, beside an `eval_metric` and, for several classes,
    `classes_count`.

    Scores are [rows] for two classes, where a softmax loss takes them as the logits (0, score), or [rows, C]. Labels
    are class ids as floats, numbers in [0, 1] for two classes, or of the shape of the scores. Weights of the data
    multiply gradient and curvature once. Numbers of rows are padded to one of eight sizes between two powers of two,
    each a compiled program that equal losses share. All is computed in float32, on JAX's default device.

    Args:
      loss: a loss of jaxloss on logits, or `functools.partial` of one with keyword options; of several classes one by
        row or by element.
      curvature: "diagonal" of the Hessian or "gradient", its size; None as said above.
      factor: a number > 0 by which curvature is multiplied; None for that of the library's own objective where
        curvature is the diagonal of a softmax loss of several classes (2 for XGBoost, C / (C - 1) for LightGBM, none
        for CatBoost, which takes the whole matrix) and else for 1.

    Returns:
      A callable object (scores, data) or (labels, scores, weights) -> (gradient, curvature), NumPy float32 of the shape
      of the scores, with the methods of CatBoost's objectives. It can be pickled, and a model that holds it as well.

    Raises:
      TypeError, ValueError: for other losses and options; when called, for labels and shapes that are not as said here.

    Identities:
      Models of cross-entropy equal those of binary:logistic and multi:softprob (XGBoost), binary and multiclass
        (LightGBM), Logloss and MultiClass (CatBoost, with Newton's leaves), started from the same scores.

    Example:
      >>> import functools, numpy as np, jaxloss
      >>> focal = jaxloss.boosting.objective(functools.partial(jaxloss.sigmoid_focal_loss, gamma=2.0))
      >>> labels, scores = np.array([1.0, 1.0, 0.0]), np.array([3.0, -3.0, 0.0])
      >>> gradient, curvature = focal(labels, scores)  # as the scikit-learn interfaces call it
      >>> print(gradient)
      [-3.1487187e-04 -1.1267500e+00  2.9828680e-01]

    Reference:
      Friedman, Hastie and Tibshirani, Additive Logistic Regression (2000), section 4; Chen and Guestrin, XGBoost
      (2016), equations 3 to 5.
    """
    return Objective(loss, curvature=curvature, factor=factor)


@explained
def metric(loss: Callable[..., jax.Array]) -> Metric:
    """The mean of a loss as evaluation metric of XGBoost, LightGBM or CatBoost, as each takes it.

      (sum_i w_i loss_i) / (sum_i w_i)

    `xgboost.train` takes it as `custom_metric`, `lightgbm.train` as `feval`, and estimators as `eval_metric`, in their
    constructor (XGBoost, CatBoost) or in `fit` (LightGBM).

    LightGBM's estimators watch a metric of their own beside it, which takes scores for probabilities and misleads early
    stopping: switch it off by `metric="None"` in the constructor. For `xgboost.train` the setting
    `disable_default_eval_metric` switches off the root mean square error.

    It takes scores, as libraries hand them over where the objective is one of one's own. With an objective of theirs
    XGBoost and LightGBM hand over probabilities, of which this would be wrong.

    Args:
      loss: a loss of jaxloss on logits, or `functools.partial` of one with keyword options.

    Returns:
      A callable object that returns what the library that calls expects: (name, mean), (name, mean, False) or the mean,
      smaller being better. Its name is that of the loss. It can be pickled.

    Raises:
      TypeError, ValueError: for other losses; when called, for labels and shapes that are not as said here.

    Identities:
      Of cross-entropies: logloss and mlogloss of XGBoost, binary_logloss and multi_logloss of LightGBM.

    Example:
      >>> import numpy as np, jaxloss
      >>> metric = jaxloss.boosting.metric(jaxloss.sigmoid_binary_cross_entropy)
      >>> print(metric(np.array([1.0, 0.0]), np.array([0.0, 0.0])))  # labels, scores
      0.693147
    """
    return Metric(loss)


@explained
def initial_score(
    loss: Callable[..., jax.Array], labels: ArrayLike, *, weights: ArrayLike | None = None, classes: int | None = None
) -> float | np.ndarray:
    """The constant score of least mean loss, which trees start from.

      log(n_1 / n_0)  for two classes,  log(n_c / n)  for several

    for cross-entropy, with n_c the sum of the weights of class c and n that of all. With options and for other losses
    it is found by Newton steps. XGBoost takes it as `base_score`, which an estimator
    of two classes reads as a probability; LightGBM takes it as `init_score` of each row.

    Args:
      loss: a loss of jaxloss on logits, or `functools.partial` of one with keyword options.
      labels: NumPy array [rows] of class ids, or of numbers in [0, 1] for two classes; or [rows, C], as `objective`
        takes them.
      weights: [rows], >= 0; None for ones.
      classes: how many scores a softmax loss has, for labels that lack the last class; None for a single score if no
        label is above 1, else for one more than the largest label.

    Returns:
      A float for two classes, else a NumPy array of a score for each class; log(1e-15) of a class without rows.

    Raises:
      TypeError, ValueError: for other losses, and labels and shapes that are not as said here.

    Identities:
      The sum of the gradients at it, by weight, is 0.

    Example:
      >>> import functools, numpy as np, jaxloss
      >>> labels = np.array([1, 0, 0, 0])
      >>> print(jaxloss.boosting.initial_score(jaxloss.sigmoid_binary_cross_entropy, labels))  # log(1 / 3)
      -1.098612
      >>> focal = functools.partial(jaxloss.sigmoid_focal_loss, gamma=2.0)
      >>> print(round(jaxloss.boosting.initial_score(focal, labels), 4))
      -0.4104
    """
    name = "boosting.initial_score"
    found = given(name, loss)
    exact = found.function in CROSS_ENTROPIES and not found.traced
    score = programs.constant(name, found, labels, weights, classes, exact)
    return score if score.ndim else float(score)
