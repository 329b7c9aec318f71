"""Sphinx settings. `python -m sphinx -W -b html docs docs/_build` builds the site and needs no network."""

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

# What the kernels of the executed pages inherit.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")  # compiles in a third of the time
os.environ.pop("MPLBACKEND", None)  # the kernel's own, which shows figures in the page

# Settings of the kernels in place of the user's.
_folder = Path(tempfile.mkdtemp(prefix="jaxloss-docs-"))
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
os.environ["IPYTHONDIR"] = str(_folder)
(_folder / "profile_default").mkdir()
(_folder / "profile_default" / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 40\n")  # errors alone

import docstrings  # noqa: E402 (found by the path above)
import jaxloss  # noqa: E402

project = "jaxloss"
author = "the jaxloss authors"
copyright = author
version = release = jaxloss.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute", "_templates"]
templates_path = ["_templates"]
default_role = "py:obj"

# Pages with code are MyST notebooks: every build runs them anew.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_output_stderr = "remove-warn"  # what a cell says on stderr is a warning, and so an error of the build
nb_merge_streams = True
myst_enable_extensions = [
    "amsmath",
    "attrs_block",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
    "substitution",
]
myst_heading_anchors = 4

autosummary_generate = True
autosummary_context = {"neighbours": docstrings.neighbours()}
python_maximum_signature_line_length = 80
autodoc_typehints = "none"  # the docstrings say shape, dtype and domain
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Identities", "Reference"]

html_theme = "furo"
html_title = "jaxloss"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/icon.svg"
html_show_sourcelink = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = ">>> |\\.\\.\\. |\\$ "
copybutton_prompt_is_regexp = True

# MathJax as one file, of the package sphinx-mathjax-offline: pages read without a network.
_mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static/mathjax/tex-svg.js"
html_static_path.append(str(_mathjax))
mathjax_path = "tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}

# Inventories for links to other projects, made here: theirs would have to be downloaded.
_JAX = """Array checkpoint disable_jit enable_x64 grad hessian jacfwd jacrev jit jvp linearize make_mesh named_scope
named_call pmap shard_map value_and_grad vjp vmap nn.log_sigmoid nn.log_softmax nn.logsumexp nn.one_hot
nn.relu nn.sigmoid nn.softmax nn.softplus lax.map lax.pmean lax.psum lax.scan lax.stop_gradient lax.top_k
numpy.argmax numpy.argsort numpy.array numpy.asarray numpy.bincount numpy.clip numpy.expand_dims
numpy.float32 numpy.int32 numpy.maximum numpy.mean numpy.minimum numpy.ones numpy.squeeze numpy.sum
numpy.take numpy.take_along_axis numpy.where numpy.zeros random.key random.normal random.permutation
random.split tree.map tree_util.Partial"""
_TORCH = """nn.BCELoss nn.BCEWithLogitsLoss nn.CosineEmbeddingLoss nn.CrossEntropyLoss nn.GaussianNLLLoss
nn.HingeEmbeddingLoss nn.HuberLoss nn.KLDivLoss nn.L1Loss nn.MSELoss nn.MarginRankingLoss
nn.MultiLabelMarginLoss nn.MultiLabelSoftMarginLoss nn.MultiMarginLoss nn.NLLLoss nn.SmoothL1Loss
nn.SoftMarginLoss nn.TripletMarginLoss nn.functional.binary_cross_entropy
nn.functional.binary_cross_entropy_with_logits nn.functional.cross_entropy nn.functional.huber_loss
nn.functional.kl_div nn.functional.multi_margin_loss nn.functional.multilabel_margin_loss
nn.functional.multilabel_soft_margin_loss nn.functional.nll_loss nn.functional.soft_margin_loss"""
_SKLEARN = """datasets.load_digits datasets.load_wine datasets.make_classification
datasets.make_multilabel_classification
metrics.balanced_accuracy_score metrics.brier_score_loss metrics.hamming_loss metrics.hinge_loss
metrics.label_ranking_loss metrics.log_loss metrics.zero_one_loss model_selection.StratifiedKFold
model_selection.train_test_split utils.class_weight.compute_class_weight"""
_OPTAX = """convex_kl_divergence cosine_distance cosine_similarity ctc_loss ctc_loss_with_forward_probs dice_loss
hinge_loss huber_loss kl_divergence kl_divergence_with_log_targets l2_loss log_cosh make_fenchel_young_loss
multiclass_hinge_loss multiclass_perceptron_loss multiclass_sparsemax_loss ntxent perceptron_loss
poly_loss_cross_entropy ranking_softmax_loss safe_softmax_cross_entropy sigmoid_binary_cross_entropy
sigmoid_focal_loss smooth_labels softmax_cross_entropy softmax_cross_entropy_with_integer_labels
sparsemax_loss squared_error triplet_margin_loss"""
_PROJECTS = {
    "jax": ("https://docs.jax.dev/en/latest/", "_autosummary/jax.{}.html", "jax", _JAX),
    "optax": ("https://optax.readthedocs.io/en/latest/", "api/losses.html", "optax.losses", _OPTAX),
    "sklearn": ("https://scikit-learn.org/stable/", "modules/generated/sklearn.{}.html", "sklearn", _SKLEARN),
    "torch": ("https://docs.pytorch.org/docs/stable/", "generated/torch.{}.html", "torch", _TORCH),
}


def _inventory(name: str, page: str, prefix: str, words: str) -> Path:
    lines = []
    for word in words.split():
        kind = "class" if word.rpartition(".")[2][0].isupper() else "function"
        lines.append(f"{prefix}.{word} py:{kind} 1 {page.format(word)}#$ -\n")
    header = (
        f"# Sphinx inventory version 2\n# Project: {name}\n# Version: \n# The remainder is compressed using zlib.\n"
    )
    path = HERE / "api" / "generated" / f"{name}.inv"  # the same in every build, which would else begin anew
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(header.encode() + zlib.compress("".join(lines).encode()))
    return path


intersphinx_mapping = {name: (url, str(_inventory(name, *rest))) for name, (url, *rest) in _PROJECTS.items()}


def setup(app):
    app.connect("autodoc-process-docstring", docstrings.process, priority=100)  # before napoleon
    app.connect("doctree-read", docstrings.link_names)
    app.add_directive("options-table", docstrings.OptionsTable)
    return {"parallel_read_safe": True}
