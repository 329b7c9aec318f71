"""Classification losses for JAX: accurate everywhere, one contract for every loss."""

from jaxloss import boosting, metrics
from jaxloss._core.labels import TopK
from jaxloss.cost import expected_cost_loss
from jaxloss.derivatives import per_example_value_and_grad, per_example_value_grad_hess
from jaxloss.divergence import softmax_js_divergence, softmax_kl_divergence
from jaxloss.focal import generalized_cross_entropy, poly_loss_cross_entropy, softmax_focal_loss
from jaxloss.linear import linear_loss, map_linear_logits
from jaxloss.margin import huber_loss, modified_huber_loss, multiclass_hinge_loss, squared_hinge_loss
from jaxloss.ordinal import ordered_logistic_loss
from jaxloss.probability import binary_cross_entropy, cross_entropy, negative_log_likelihood
from jaxloss.ranking import (
    log_sum_exp_pairwise_loss,
    pairwise_ranking_loss,
    soft_hamming_loss,
    zlpr_loss,
)
from jaxloss.reduction import LossSum, masked_loss, mean
from jaxloss.sigmoid import asymmetric_loss, sigmoid_binary_cross_entropy, sigmoid_focal_loss
from jaxloss.softmax import softmax_cross_entropy, softmax_cross_entropy_with_integer_labels
from jaxloss.sparse import entmax, entmax15, entmax_loss, multiclass_sparsemax_loss, sparsemax, sparsemax_loss
from jaxloss.statistics import SoftmaxStatistics, softmax_statistics
from jaxloss.weighting import (
    balanced_class_weights,
    balanced_label_margins,
    balanced_pos_weight,
    effective_number_weights,
    logit_adjustments,
)

__version__ = "0.1.0"

__all__ = [
    "LossSum",
    "SoftmaxStatistics",
    "TopK",
    "asymmetric_loss",
    "balanced_class_weights",
    "balanced_label_margins",
    "balanced_pos_weight",
    "binary_cross_entropy",
    "boosting",
    "cross_entropy",
    "effective_number_weights",
    "entmax",
    "entmax15",
    "entmax_loss",
    "expected_cost_loss",
    "generalized_cross_entropy",
    "huber_loss",
    "linear_loss",
    "log_sum_exp_pairwise_loss",
    "logit_adjustments",
    "map_linear_logits",
    "masked_loss",
    "mean",
    "metrics",
    "modified_huber_loss",
    "multiclass_hinge_loss",
    "multiclass_sparsemax_loss",
    "negative_log_likelihood",
    "ordered_logistic_loss",
    "pairwise_ranking_loss",
    "per_example_value_and_grad",
    "per_example_value_grad_hess",
    "poly_loss_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "soft_hamming_loss",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_focal_loss",
    "softmax_js_divergence",
    "softmax_kl_divergence",
    "softmax_statistics",
    "sparsemax",
    "sparsemax_loss",
    "squared_hinge_loss",
    "zlpr_loss",
]


def __dir__() -> list[str]:
    """The public names, without the modules that they come from: what completion offers."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
