"""Writes tests/keras.json, what Keras 3 on JAX returns: `python -m tests.data_keras`. The tests do not need Keras."""

import json
import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np

jax.config.update("jax_enable_x64", True)
keras.config.set_floatx("float64")


def main() -> None:
    rng = np.random.default_rng(6)
    probs = rng.dirichlet(np.ones(4) * 3, 6)
    ids = rng.integers(0, 4, 6)
    soft = rng.dirichlet(np.ones(4), 6)
    multi = rng.integers(0, 2, (6, 4)).astype(float)
    scores = rng.normal(size=(6, 4)) * 2
    losses = keras.losses
    reference = {
        "version": keras.__version__,
        "probs": probs,
        "ids": ids,
        "soft": soft,
        "multi": multi,
        "scores": scores,
        "sparse": losses.sparse_categorical_crossentropy(ids, probs),
        "categorical": losses.categorical_crossentropy(soft, probs),
        "categorical_smoothed": losses.categorical_crossentropy(soft, probs, label_smoothing=0.2),
        "binary": losses.binary_crossentropy(multi, 1 - probs),
        "binary_smoothed": losses.binary_crossentropy(multi, 1 - probs, label_smoothing=0.2),
        "squared_hinge": losses.squared_hinge(2 * multi - 1, scores),
        "huber": losses.huber(soft, scores, delta=0.5),
    }
    lists = {key: value if isinstance(value, str) else np.asarray(value).tolist() for key, value in reference.items()}
    Path(__file__).with_name("keras.json").write_text(json.dumps(lists, indent=1) + "\n")


if __name__ == "__main__":
    main()
