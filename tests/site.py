"""Where the built site is, and the public functions that it has a page for."""

import os
from pathlib import Path

import jaxloss

DOCS = Path(__file__).parent.parent / "docs"
SITE = Path(os.environ.get("JAXLOSS_SITE", DOCS / "_build"))
MODULES = {
    "boosting": ("initial_score", "metric", "objective"),
    "metrics": ("hamming_loss", "label_ranking_loss", "zero_one_loss"),
}
NAMES = [name for name in jaxloss.__all__ if name not in MODULES]
NAMES += [f"{module}.{name}" for module, names in MODULES.items() for name in names]
