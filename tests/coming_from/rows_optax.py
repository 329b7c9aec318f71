"""optax beside jaxloss."""

import warnings

from tests.coming_from.table import Numbers, Row, in_one_program

NAME, PAGE = "optax.losses", "optax.md"

TABLES = {
    "same": [
        Row("softmax_cross_entropy(z, t)", "softmax_cross_entropy(z, t)"),
        Row("softmax_cross_entropy(z.T, t.T, axis=0)", "softmax_cross_entropy(z.T, t.T, axis=0)"),
        Row("softmax_cross_entropy(z, t, -1, t > 0.2)", "softmax_cross_entropy(z, t, -1, t > 0.2)"),
        Row(
            "softmax_cross_entropy_with_integer_labels(z, y)",
            "softmax_cross_entropy_with_integer_labels(z, y)",
        ),
        Row("poly_loss_cross_entropy(z, t, epsilon=1.5)", "poly_loss_cross_entropy(z, t, epsilon=1.5)"),
        Row("sigmoid_binary_cross_entropy(z, b)", "sigmoid_binary_cross_entropy(z, b)"),
        Row("sigmoid_focal_loss(z, b)", "sigmoid_focal_loss(z, b)"),
        Row(
            "sigmoid_focal_loss(z, b, alpha=0.25, gamma=1.5)",
            "sigmoid_focal_loss(z, b, alpha=0.25, gamma=1.5)",
        ),
        Row("multiclass_sparsemax_loss(z, y)", "multiclass_sparsemax_loss(z, y)"),
        Row("multiclass_hinge_loss(z, y)", "multiclass_hinge_loss(z, y)"),
        Row("sparsemax_loss(z[:, 0], b[:, 0])", "sparsemax_loss(z[:, 0], b[:, 0])"),
        Row("huber_loss(f, g, delta=0.5)", "huber_loss(f, g, delta=0.5)", "f"),
    ],
    "other": [
        Row("safe_softmax_cross_entropy(z, one_hot)", "softmax_cross_entropy(z, y)", note="logits of -inf are legal"),
        Row(
            "softmax_cross_entropy(z, smooth_labels(one_hot, 0.1))",
            "softmax_cross_entropy(z, y, label_smoothing=0.1)",
            note="no one-hot array is made",
        ),
        Row(
            "hinge_loss(z, sign)",
            "multiclass_hinge_loss(jnp.stack([0 * z, z], -1), b.astype(int))",
            note="`sign` is -1 where `b` is 0; the hinge of the scores 0 and `z`",
        ),
        Row(
            "perceptron_loss(z, sign)",
            "multiclass_hinge_loss(jnp.stack([0 * z, z], -1), b.astype(int), margin=0.0)",
        ),
        Row("multiclass_perceptron_loss(z, y)", "multiclass_hinge_loss(z, y, margin=0.0)"),
        Row("kl_divergence(jax.nn.log_softmax(z), t)", "softmax_kl_divergence(z, jnp.log(t))"),
        Row("convex_kl_divergence(jax.nn.log_softmax(z), t)", "softmax_kl_divergence(z, jnp.log(t))"),
        Row(
            "kl_divergence_with_log_targets(jax.nn.log_softmax(z), jax.nn.log_softmax(u))",
            "softmax_kl_divergence(z, u)",
        ),
        Row(
            "generalized_kl_divergence(jax.nn.log_softmax(z), t)",
            "softmax_kl_divergence(z, jnp.log(t))",
        ),
        Row(
            "ranking_softmax_loss(z, b)",
            "mean(softmax_cross_entropy(z, b))",
            note="relevances as labels, which need not sum to 1",
        ),
        Row(
            "ranking_softmax_loss(z, b, where=t > 0.2)",
            "mean(softmax_cross_entropy(z, b, where=t > 0.2))",
            note="items left out are classes left out",
        ),
        Row(
            "ranking_softmax_loss(z, b, weights=t, reduce_fn=None)",
            "softmax_cross_entropy(z, b * t)",
            note="weights of items",
        ),
        Row(
            "jax.vmap(make_fenchel_young_loss(jax.nn.logsumexp))(z, one_hot)",
            "softmax_cross_entropy(z, one_hot)",
            note="other functions than logsumexp: write them with `softmax_statistics` or plain JAX",
        ),
    ],
}
ABSENT = {
    "`dice_loss`, `binary_dice_loss`, `multiclass_generalized_dice_loss`": "ratios over a whole image, not losses of "
    "an example; they can be added to a loss from here",
    "`ctc_loss`, `ctc_loss_with_forward_probs`": "losses of sequences",
    "`cosine_distance`, `cosine_similarity`, `ntxent`, `triplet_margin_loss`": "losses of embeddings, not of scores of "
    "classes",
    "`l2_loss`, `squared_error`, `log_cosh`": "regression; `huber_loss` is here for its use on scores",
}


def names() -> list[str]:
    """The losses of optax.losses."""
    import optax

    return sorted(
        name for name in dir(optax.losses) if not name.startswith("_") and callable(getattr(optax.losses, name))
    )


def theirs(table: list[Row]) -> Numbers:
    """Values and gradients in float32."""
    import optax

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of names that are still there
        return in_one_program([(row.theirs, row.by) for row in table], vars(optax.losses))
