"""Do the tests bite? `python -m tests.mutants [WORD ...]` plants faults, one at a time, and prints which tests notice.

Each mutant is a change of one place in a temporary copy of the package; the test files that concern it run until the
first failure. WORDs choose mutants whose file, text or tests contain one of them. A mutant that survives needs a test,
or a reason in `EQUIVALENT`. The exit status is 1 if there is one without. An hour of one core for all of them.

`--sample N` plants N faults of the common kinds instead (`tests/operators.py`), drawn with `--seed` from the modules of
`CONCERNED`.
"""

import argparse
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests import operators

ROOT = Path(__file__).parent.parent
LIMIT = 400  # seconds of processor time for the tests of a mutant, in which those of the package as it is end


class Mutant(NamedTuple):
    file: str  # in jaxloss/
    old: str  # stands there once
    new: str
    tests: str  # arguments of pytest; those in front are the likeliest to fail
    drawn: operators.Fault | None = None  # then the texts above are the lines, which may stand there more than once

    @property
    def name(self) -> str:
        line = "" if self.drawn is None else f":{self.drawn.line}"
        return f"{self.file}{line}: {' '.join(self.old.split())} -> {' '.join(self.new.split()) or 'nothing'}"

    def applied(self, text: str) -> str:
        if self.drawn is not None:
            return self.drawn.applied(text)
        assert text.count(self.old) == 1, f"{self.name}: found {text.count(self.old)} times"
        return text.replace(self.old, self.new)


VALUES, OPTIONS, EDGES, SECOND = (f"tests/test_{x}.py" for x in ("values", "options", "edges", "second_derivatives"))
DERIVATIVES, RANKING, SPARSE = (f"tests/test_{x}.py" for x in ("derivatives", "ranking", "sparse"))
REDUCTION, METRICS, ELEMENTS = (f"tests/test_{x}.py" for x in ("reduction", "metrics", "elementwise"))
LINEAR, ACCURACY, MASKS = (f"tests/test_{x}.py" for x in ("linear", "accuracy", "class_masks"))
BOOSTING = "tests/test_boosting.py"
COST = "tests/test_cost.py"
TEACHERS = "tests/test_teachers.py"
ZERO, SHARDING, PLATFORMS = (f"tests/test_{x}.py" for x in ("zero_weights", "sharding", "linear_platforms"))

MUTANTS = [
    # The odds of a label among the other classes.
    Mutant("_core/label_odds.py", "gap - log_rest)", "gap + log_rest)", VALUES),
    Mutant("_core/label_odds.py", "jnp.where(best == -jnp.inf, 0, rest)", "rest", f"{EDGES} -k one_class"),
    Mutant("_core/label_odds.py", "a[2] + b[2]", "a[2]", f"{EDGES} -k read"),
    Mutant(
        "_core/label_odds.py",
        "jnp.exp(-gap) * jnp.where(first, b[1], a[1])",
        "jnp.where(first, b[1], a[1])",
        f"{EDGES} -k read",
    ),
    Mutant("_core/label_odds.py", "(label >= best)", "(label > best)", DERIVATIVES + " -k tied"),
    Mutant("_core/label_odds.py", "best + (log_rest + truth.nlc)", "label + truth.nll", VALUES + " -k logsumexp"),
    Mutant(
        "_core/label_odds.py",
        "single | (gap >= 0), label + truth.nll",
        "single, label + truth.nll",
        VALUES + " -k logsumexp",
    ),
    Mutant("_core/label_odds.py", "jnp.where(single & nothing, 0, logsumexp)", "logsumexp", f"{VALUES} -k without_any"),
    Mutant(
        "_core/label_odds.py",
        "major = (value.weights == 1) & classes.spread(value.rest < 2)",
        "major = (value.weights == 2) & classes.spread(value.rest < 2)",
        SECOND,
    ),
    Mutant(
        "_core/label_odds.py",
        "classes.spread(share) * tangent - classes.spread(mean_of_minor)",
        "classes.spread(share) * tangent + classes.spread(mean_of_minor)",
        SECOND,
    ),
    Mutant(
        "_core/label_odds.py",
        "value.odds.p * at_label + value.odds.q * mean",
        "value.odds.p * at_label",
        f"{DERIVATIVES} -k statistics",
    ),
    Mutant("_core/label_odds.py", "at_label - mean)", "at_label)", VALUES),
    Mutant("_core/label_odds.py", "ids - index * block", "ids - index", f"{VALUES} -k blocks"),
    Mutant(
        "_core/label_odds.py",
        "return best, every - jnp.exp(jnp.minimum(label - shift, 0)), label",
        "return best, every, label",
        f"{VALUES} -k many_classes",
    ),
    Mutant(
        "_core/label_odds.py",
        "jnp.clip(ids // block, 0, size // block - 1)",
        "jnp.clip(ids // block, 0, 1)",
        f"{VALUES} -k blocks",
    ),
    # Statistics of a row over all classes.
    Mutant(
        "_core/statistics.py",
        "rest + (1 + lower_rest) * jnp.exp(-gap)",
        "rest + lower_rest * jnp.exp(-gap)",
        f"{EDGES} -k read",
    ),
    Mutant(
        "_core/statistics.py",
        "jnp.where(everything < 2, below, everything - 1)",
        "everything - 1",
        f"{ACCURACY} -k one-hot",
    ),
    Mutant(
        "_core/statistics.py", "jnp.where(m == other, 0, jnp.abs(m - other))", "jnp.abs(m - other)", f"{EDGES} -k read"
    ),
    Mutant("_core/statistics.py", "jnp.where(lower == 0, 0, lower * gap)", "lower * gap", f"{EDGES} -k read"),
    Mutant(
        "_core/statistics.py",
        "truth.p * (classes.spread(total) - share) - share * truth.q",
        "truth.p * classes.spread(total) - share",
        f"{ACCURACY} -k one-hot",
    ),
    Mutant(
        "_core/statistics.py", "height + total * jnp.log1p(rest)", "height + jnp.log1p(rest)", f"{OPTIONS} -k oracle"
    ),
    Mutant("_core/statistics.py", "(truth.nll, change)", "(truth.nlc, change)", f"{DERIVATIVES} -k soft_labels"),
    Mutant(
        "_core/statistics.py",
        "complement = (1 - weights) + rest",
        "complement = (1 + rest) - weights",
        f"{ACCURACY} -k one-hot",
    ),
    Mutant(
        "_core/statistics.py", "(total - moved) - value.q * tangent", "total - tangent", f"{SECOND} -k confident_class"
    ),
    Mutant("_core/statistics.py", "classes.spread(row.rest < 1)", "classes.spread(row.rest < 0)", f"{VALUES} -k leads"),
    Mutant(
        "_core/statistics.py",
        "minor + other_minor, (a[1] + b[1]) + (major + other_major)",
        "minor + other_minor, major + other_major",
        f"{ACCURACY} -k 'read and one-hot'",
    ),
    Mutant(
        "_core/statistics.py",
        "over(tangents[0] - quotient * tangents[1], primals[1])",
        "over(tangents[0] + quotient * tangents[1], primals[1])",
        f"{SECOND} {DERIVATIVES}",
    ),
    Mutant("_core/statistics.py", "likely = p > 0.75", "likely = p > 0.4", f"{SPARSE} {SECOND}"),
    Mutant("_core/statistics.py", "jnp.where(likely, 0, p))), 1 - p)", "jnp.where(likely, 0, p))), 1 + p)", SPARSE),
    Mutant(
        "_core/statistics.py",
        "jnp.where(best == -jnp.inf, 0, nan_where((best == jnp.inf) & (rest > 0), rest))",
        "jnp.where(best == -jnp.inf, 0, rest)",
        f"{EDGES} -k plus",
    ),
    # Scalar functions.
    Mutant(
        "_core/log_odds.py",
        "Odds(-q * tangent, p * tangent, p * q * tangent, -p * q * tangent)",
        "Odds(-q * tangent, p * tangent, p * q * tangent, p * q * tangent)",
        f"{DERIVATIVES}",
    ),
    Mutant("_core/log_odds.py", "both + jnp.maximum(l, 0)", "both + jnp.maximum(-l, 0)", VALUES),
    Mutant(
        "_core/log_odds.py", "jnp.where(likely, e, 1) / (1 + e)", "1 - jnp.where(likely, 1, e) / (1 + e)", f"{ACCURACY}"
    ),
    Mutant("_core/log_odds.py", "-gamma * truth.nlc", "-gamma * truth.nll", f"{OPTIONS} -k focal"),
    Mutant("_core/log_odds.py", "truth.nll) - margin)", "truth.nll) + margin)", f"{VALUES} -k margins"),
    Mutant("_core/log_odds.py", "stays = truth.nll == jnp.inf", "stays = truth.nll == 0", f"{VALUES} -k impossible"),
    Mutant(
        "_core/log_odds.py", "truth.nlc) * poly(truth, epsilon)", "truth.nlc) * truth.nll", f"{SECOND} -k focal_half"
    ),
    Mutant("_core/log_odds.py", "epsilon * truth.q", "epsilon * truth.p", f"{OPTIONS} -k poly"),
    Mutant("_core/log_odds.py", "small = x < 0.5", "small = x < 5.0", f"{DERIVATIVES} -k by_q"),
    Mutant("_core/log_odds.py", "jnp.exp(-x) * ds - ", "jnp.exp(-x) * ds + ", f"{DERIVATIVES} -k q"),
    Mutant(
        "_core/log_odds.py", "(rest * truth.q - r * truth.p)", "(rest * truth.q + r * truth.p)", f"{VALUES} -k oracle"
    ),
    Mutant(
        "_core/log_odds.py",
        "(truth.q - truth.p) * jnp.exp(-value)",
        "(truth.p - truth.q) * jnp.exp(-value)",
        f"{DERIVATIVES} -k labels",
    ),
    Mutant(
        "_core/log_odds.py",
        "(coefficient == 0) & (jnp.abs(values) == jnp.inf)",
        "(coefficient == 1) & (values > 0)",
        f"{ZERO}",
    ),
    Mutant("_core/log_odds.py", "jnp.abs(x) < 0.25", "jnp.abs(x) < 0.0", f"{ACCURACY} -k probabilities"),
    Mutant(
        "_core/log_odds.py", "small = jnp.abs(delta) < 0.5", "small = jnp.abs(delta) < 0.0", f"{ACCURACY} -k divergence"
    ),
    # Divergences.
    Mutant(
        "_core/divergences.py",
        "near = x < 1\n    return jnp.where(near, base * bregman",
        "near = x < -1\n    return jnp.where(near, base * bregman",
        f"{ACCURACY} {EDGES} -k divergence",
    ),
    Mutant("_core/divergences.py", "(apart - logs) + residue", "apart - logs", f"{ACCURACY} -k divergence"),
    Mutant("_core/divergences.py", "log_of_sums() + shift)", "log_of_sums())", f"{ACCURACY} -k divergence"),
    Mutant("_core/divergences.py", "odds.q * x - minor, x - mean)", "x - mean, x - mean)", f"{ACCURACY} -k divergence"),
    Mutant("_core/divergences.py", "value - curvature * bregman(shift)", "value", f"{ACCURACY} -k divergence"),
    Mutant("_core/divergences.py", "return minor + shift *", "return minor - shift *", f"{ACCURACY} -k divergence"),
    Mutant("_core/divergences.py", "near = above > -0.5", "near = above > -1.0", f"{EDGES} -k between_two"),
    Mutant("_core/divergences.py", "jnp.where(d > FAR, d + over_p, over_t)", "over_t", f"{EDGES} -k between_two"),
    Mutant(
        "_core/divergences.py",
        "(found.target.mean - found.model.mean)",
        "(found.target.mean + found.model.mean)",
        f"{EDGES} -k between_two",
    ),
    Mutant("_core/hessians.py", "q * share - p * above_mean(share)", "q * share", f"{ACCURACY} -k divergence"),
    # Labels of k classes.
    Mutant("_core/events.py", "beside + each.spread(b_rest)", "beside", f"{TEACHERS} -k oracle"),
    Mutant("_core/events.py", "b_rest * found.rest.q) + gradient", "b_rest) + gradient", f"{TEACHERS} -k oracle"),
    Mutant("_core/events.py", "of_rest - of_listed))", "of_rest - mean))", f"{TEACHERS} -k both_arguments"),
    Mutant("_core/events.py", "return nan_where(events.wrong, total)", "return total", f"{TEACHERS} -k wrong_ids"),
    Mutant("_core/top_k.py", "jnp.any(again, -1)", "jnp.any(again & False, -1)", f"{TEACHERS} -k wrong_ids"),
    Mutant("_core/top_k.py", "named = shares != 0", "named = shares == shares", f"{TEACHERS} -k few_classes"),
    Mutant(
        "_core/top_k.py",
        "(0 if whole else 1))\n\n\ndef _reverse",
        "0)\n\n\ndef _reverse",
        f"{TEACHERS} -k both_arguments",
    ),
    Mutant("_core/top_k.py", "(p.p * p.q - s.p * s.q)", "p.p * p.q", f"{TEACHERS} -k hessian"),
    # Sums over the classes, options.
    Mutant(
        "_core/expectations.py", "[1 - self.smoothing, self.smoothing", "[1, self.smoothing", f"{OPTIONS} -k smoothing"
    ),
    Mutant("_core/expectations.py", "jnp.where(factor != 0, limit, 0)", "limit", f"{OPTIONS} -k smoothed_away"),
    Mutant("_core/expectations.py", "b * part.truth.q - part.truth.p", "b - part.truth.p", f"{OPTIONS} -k focal"),
    Mutant(
        "_core/expectations.py",
        "Odds(nll=-jnp.ones_like(p), nlc=over(p, q), p=p, q=-p)",
        "Odds(nll=-jnp.ones_like(p), nlc=p, p=p, q=-p)",
        f"{OPTIONS} -k focal",
    ),
    Mutant(
        "_core/compose.py",
        "z_loss * counted(z_loss, jnp.square(logsumexp))",
        "z_loss * jnp.square(logsumexp)",
        f"{ZERO}",
    ),
    Mutant("_core/compose.py", "(rows.logits != rows.excluded)", "(rows.logits == rows.logits)", f"{OPTIONS} {MASKS}"),
    Mutant(
        "_core/compose.py",
        "targets * (1 - smoothing) + smoothing / 2",
        "targets * (1 - smoothing) + smoothing",
        f"{VALUES} -k sigmoid",
    ),
    Mutant("_core/compose.py", "losses = counted(weights, losses) * weights", "losses = losses * weights", ZERO),
    Mutant("_core/compose.py", "(targets < 1)", "(targets < 0)", f"{EDGES} -k elementwise"),
    Mutant(
        "_core/compose.py",
        "losses if elements.keep is None else jnp.where(elements.keep, losses, 0)",
        "losses",
        f"{EDGES} -k hold",
    ),
    # Hessians.
    Mutant("_core/hessians.py", "curvature * others * others - slope", "curvature * others - slope", SECOND),
    Mutant("_core/hessians.py", "through_p = -p * q", "through_p = p * q", SECOND),
    Mutant("_core/hessians.py", "over(curvature + p * slope, q)", "over(curvature, q)", SECOND),
    Mutant(
        "_core/hessians.py",
        "2 * coefficient * (p * p + logsumexp",
        "2 * coefficient * (p + logsumexp",
        f"{DERIVATIVES} {OPTIONS} -k hess",
    ),
    Mutant("_core/hessians.py", "jnp.square(temperature)", "temperature", f"{ACCURACY} -k divergence_against"),
    # Ranking.
    Mutant("_core/surrogates.py", "scores - 1\n", "scores + 1\n", RANKING),
    Mutant("_core/surrogates.py", "(whole + rest) * weights", "whole * weights", f"{ACCURACY} -k hinge"),
    Mutant("_core/surrogates.py", "jnp.where(relevant, -sums, sums)", "sums", RANKING),
    Mutant("_core/surrogates.py", "start < used", "start < used - 1", RANKING),
    Mutant("_core/surrogates.py", "truth.p * truth.q)[1]", "truth.p)[1]", RANKING),
    Mutant("_core/pairs.py", "self.relevant & (self.scores != jnp.inf)", "self.relevant", RANKING),
    Mutant(
        "_core/pairs.py",
        "jnp.any(jnp.isnan(scores) | jnp.isnan(targets), -1)",
        "jnp.any(jnp.isnan(targets), -1)",
        RANKING,
    ),
    Mutant(
        "_core/pairs.py",
        "spread(side.p) * p * (q + spread(side.q) * p)",
        "spread(side.p) * p * (q + p)",
        f"{DERIVATIVES} -k hess",
    ),
    Mutant("_core/pairs.py", "jnp.where(second, size, 2 * size)", "jnp.where(second, 0, 2 * size)", METRICS),
    Mutant("_core/pairs.py", "jnp.where(order.second, below, 0)", "jnp.where(order.second, below - 1, 0)", METRICS),
    # Sparse losses.
    Mutant("_core/projection.py", "classes.spread(at) + d / n", "classes.spread(at) + d", SPARSE),
    Mutant("_core/projection.py", "slopes * (moved - classes.spread(mean))", "slopes * moved", SPARSE),
    Mutant("_core/projection.py", "p * (1 - t) - t * complement(classes, p)", "p - t", f"{ACCURACY} {SPARSE}"),
    Mutant(
        "_core/projection.py", "near = jnp.abs(e) < 0.25 * p", "near = jnp.abs(e) < 0.0 * p", f"{ACCURACY} {SPARSE}"
    ),
    Mutant("_core/projection.py", "2 / 3 * jnp.square", "1 / 3 * jnp.square", SPARSE),
    Mutant("_core/projection.py", "(1 - t) * over + t * under", "(1 - t) * over", f"{VALUES} {EDGES} -k sparsemax"),
    Mutant("_core/newton.py", "jnp.finfo(top.dtype).eps / 4", "1e-2", SPARSE),
    Mutant("_core/newton.py", "1 + b * y\n", "1 - b * y\n", SPARSE),
    # Expected costs, the multi-class hinge, ordered classes.
    Mutant(
        "_core/costs.py", "jnp.where(jnp.abs(cost - expected) <= NEAR * expected, cost, expected)", "expected", COST
    ),
    Mutant("_core/costs.py", "return above - classes.spread(classes.sum(p * above))", "return above", COST),
    Mutant("_core/costs.py", "rest + (1 + lower_rest) * weight", "rest + lower_rest * weight", COST),
    Mutant("_core/costs.py", "total + lower_total * weight", "total + lower_total", COST),
    Mutant("_core/costs.py", "value * tangents[2] + tangents[3]", "value * tangents[2]", COST),
    Mutant("_core/costs.py", "truth.p * above * (truth.q - truth.p)", "truth.p * above", f"{COST} {DERIVATIVES}"),
    Mutant("_core/costs.py", "mixed(classes, one_hot, tangents[0])", "mixed(classes, one_hot, table)", COST),
    Mutant("_core/hinges.py", "jnp.where(jnp.abs(difference) <= 2 * margin, lost, 0)", "0", COST),
    Mutant("_core/hinges.py", "classes.spread(1 / jnp.maximum(number, 1))", "1", COST),
    Mutant("_core/hinges.py", "(of_first - pulled) * each", "of_first * each", COST),
    Mutant("_core/hinges.py", "(height > 0)", "(height >= 0)", COST),
    Mutant("_core/hinges.py", "jnp.where(gap == 0, a[1] + b[1], ", "jnp.where(gap < 0, a[1] + b[1], ", COST),
    Mutant("_core/hinges.py", "jnp.where(a[0] == b[0], -jnp.inf, lower)", "lower", COST),
    Mutant("_core/ordinal.py", "-value * (1 + value)", "-value", COST),
    Mutant("_core/ordinal.py", "small = step < 0.7", "small = step < 0.0", COST),
    Mutant("_core/ordinal.py", "jnp.where(u >= v, size, -size)", "size", COST),
    Mutant("_core/ordinal.py", "first - second", "first + second", COST),
    Mutant(
        "_core/ordinal.py", "jnp.where(counts, edges.upper - edges.lower, jnp.inf)", "edges.upper - edges.lower", COST
    ),
    # The form for GPU.
    Mutant("_core/classes.py", "each[::2], each[1::2]", "each[::2], each[::2]", "tests/test_gpu_form.py"),
    Mutant(
        "_core/classes.py",
        "index == jnp.expand_dims(label",
        "index == jnp.expand_dims(label + 1",
        "tests/test_gpu_form.py",
    ),
    Mutant(
        "_core/classes.py",
        "jnp.where(inside, entry",
        "jnp.where(label >= 0, entry",
        "tests/test_gpu_form.py",
    ),
    Mutant("_core/classes.py", "size % (k * whole) == 0", "size % k == 0", "tests/test_gpu_form.py"),
    Mutant("_core/classes.py", "1 if is_explicit(logits) else _parts", "_parts", "tests/test_gpu_form.py"),
    # Rows in chunks.
    Mutant("_core/chunks.py", "-(-size // chunk_rows)", "size // chunk_rows", LINEAR),
    Mutant("_core/chunks.py", "< self.size\n", "<= self.size\n", LINEAR),
    Mutant("_core/chunks.py", "mask & real", "mask", LINEAR),
    Mutant("_core/chunks.py", "default(16 * 2**20, 4 * width", "default(16 * 2**20, 8 * width", PLATFORMS),
    Mutant("_core/linear.py", "jnp.sum(dz, 0) if active.bias", "jnp.sum(dz[1:], 0) if active.bias", LINEAR),
    Mutant("_core/linear.py", "(jnp.sum(losses * scale), shared)", "(jnp.sum(losses), shared)", LINEAR),
    Mutant("_core/linear.py", "kernel = kernel.astype(layer.dtype)", "kernel = kernel", LINEAR),
    Mutant("_core/linear.py", "lax.psum(sum(x), axes) if axes else sum(x)", "sum(x)", "tests/test_linear_sharding.py"),
    # Sums, means, weights, metrics.
    Mutant("reduction.py", "self.total + self.total_rest", "self.total", f"{VALUES} -k rounded_by"),
    Mutant("reduction.py", "jnp.where(empty, 1, weight)", "jnp.where(empty, 2, weight + 1)", VALUES),
    Mutant("reduction.py", "(x - (z - of_b)) + (y - of_b)", "x - (z - of_b)", REDUCTION),
    Mutant("reduction.py", "jnp.sum(counted(weights, losses) * weights)", "jnp.sum(losses * weights)", ZERO),
    Mutant(
        "reduction.py", "jnp.where(where, losses, 0), jnp.where(where, weights, 0)", "losses, weights * where", VALUES
    ),
    Mutant("weighting.py", "counts > 0\n", "counts >= 0\n", VALUES),
    Mutant("weighting.py", "jnp.where(b == 1, n, jnp.minimum(n, 1))", "n", VALUES),
    Mutant("weighting.py", "-jnp.log1p((total - n)", "jnp.log1p((total - n)", f"{VALUES} -k adjustments"),
    Mutant("weighting.py", "(t > 0) & (total > 0)", "total > 0", f"{VALUES} -k adjustments"),
    Mutant("weighting.py", "(total - n) / jnp.where(seen, n, 1))", "(total - n) / total)", f"{VALUES} -k adjustments"),
    Mutant("weighting.py", "jnp.sqrt(jnp.sqrt(fewest", "jnp.sqrt((fewest", f"{VALUES} -k label_margins"),
    Mutant("weighting.py", "jnp.min(jnp.where(seen, n, jnp.inf))", "jnp.min(n)", f"{VALUES} -k label_margins"),
    Mutant("metrics.py", "jnp.max(elements.targets, elements.axis", "jnp.min(elements.targets, elements.axis", METRICS),
    Mutant("statistics.py", "every.odds.p * every.odds.nll", "every.odds.p * every.odds.nlc", DERIVATIVES),
    # Boosting.
    Mutant("boosting.py", "LIGHTGBM: classes / (classes - 1)", "LIGHTGBM: 2.0", BOOSTING),
    Mutant("boosting.py", "return -np.stack(both, -1)", "return np.stack(both, -1)", BOOSTING),
    Mutant("_core/boosting.py", "return each * gradient, each * curve", "return each * gradient, curve", BOOSTING),
    Mutant("_core/boosting.py", "jnp.abs(gradient) + FLOOR)", "gradient + FLOOR)", BOOSTING),
    Mutant("_core/boosting.py", "jnp.maximum(curve, second)", "curve", BOOSTING + " -k initial"),
    Mutant("_core/boosting_arguments.py", "rows.bit_length() - 4", "0", BOOSTING),
    Mutant("_core/boosting_arguments.py", "value.shape != (classes,)", "value.shape == (0,)", BOOSTING + " -k errors"),
    # Elementwise losses.
    Mutant("sigmoid.py", "share * t + (1 - share) * (1 - t)", "share * t + share * (1 - t)", VALUES),
    Mutant("sigmoid.py", "truth.p - margin", "truth.p", ELEMENTS),
    Mutant("margin.py", "jnp.abs(x) - knee, 0)", "jnp.abs(x) + knee, 0)", ELEMENTS),
    Mutant("margin.py", "beyond = jnp.abs(x) >= knee", "beyond = jnp.abs(x) > knee", f"{SECOND} {ELEMENTS}"),
]
EQUIVALENT: dict[str, str] = {}
"""Reasons, by name, why no test can tell a mutant from the original."""

ROWS = f"{VALUES} {DERIVATIVES} {SECOND} {EDGES} {OPTIONS} {MASKS} {ACCURACY} {SHARDING}"
ELEMENTWISE = f"{VALUES} {ELEMENTS} {DERIVATIVES} {SECOND} {EDGES} {ACCURACY}"
OF_SETS = f"{RANKING} {METRICS} {DERIVATIVES} {SECOND} {EDGES} {ACCURACY}"
OF_SPARSE = f"{SPARSE} {VALUES} {DERIVATIVES} {SECOND} {EDGES} {ACCURACY}"
OF_LAYERS = f"{LINEAR} {PLATFORMS} tests/test_linear_sharding.py"
CONCERNED = {
    "_core/alpha.py": f"{SPARSE} {OPTIONS}",
    "_core/chunks.py": OF_LAYERS,
    "_core/classes.py": f"{ROWS} tests/test_gpu_form.py",
    "_core/compose.py": f"{ROWS} {ZERO}",
    "_core/expectations.py": ROWS,
    "_core/hessians.py": f"{SECOND} {DERIVATIVES} {OPTIONS} {ACCURACY}",
    "_core/label_odds.py": ROWS,
    "_core/linear.py": OF_LAYERS,
    "_core/log_odds.py": f"{ROWS} {ELEMENTS}",
    "_core/masks.py": f"{MASKS} {REDUCTION} {EDGES}",
    "_core/newton.py": OF_SPARSE,
    "_core/pairs.py": OF_SETS,
    "_core/probabilities.py": f"{ROWS} {ELEMENTS}",
    "_core/projection.py": OF_SPARSE,
    "_core/statistics.py": ROWS,
    "_core/surrogates.py": OF_SETS,
    "margin.py": ELEMENTWISE,
    "metrics.py": METRICS,
    "probability.py": f"{ELEMENTWISE} {ZERO}",
    "ranking.py": OF_SETS,
    "reduction.py": f"{REDUCTION} {VALUES} {ZERO} {OPTIONS}",
    "sigmoid.py": f"{ELEMENTWISE} {OPTIONS} {ZERO}",
    "sparse.py": OF_SPARSE,
    "statistics.py": f"{DERIVATIVES} {EDGES} {SECOND}",
    "weighting.py": VALUES,
}
"""Tests of the modules that compute, for faults drawn at random."""


def drawn(count: int, seed: int) -> list["Mutant"]:
    """Mutants of faults drawn at random."""
    found = []
    for fault in operators.sample(count, seed, list(CONCERNED)):
        text = (ROOT / "jaxloss" / fault.file).read_text()
        old, new = (x.splitlines() for x in (text, fault.applied(text)))
        at = next(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
        last = len(old) - next(i for i, (a, b) in enumerate(zip(old[::-1], new[::-1], strict=False)) if a != b)
        lines = "\n".join(old[at:last]), "\n".join(new[at : last + len(new) - len(old)])
        found.append(Mutant(fault.file, *lines, CONCERNED[fault.file], fault))
    return found


def run(mutant: Mutant) -> tuple[bool, float, str]:
    """Whether the tests notice, in how many seconds, and which one did."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("jaxloss", "tests", "bench", "docs", "examples"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "_build", "results"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        shutil.copy(ROOT / "README.md", copy)
        path = copy / "jaxloss" / mutant.file
        path.write_text(mutant.applied(path.read_text()))
        log = copy / "log"
        # A fork has what is imported already, except this package and its tests.
        if (child := os.fork()) == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
            _test(copy, mutant.tests, log)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        failed = [line for line in log.read_text().splitlines() if line.startswith(("FAILED", "ERROR"))]
    by = failed[0].split(" - ")[0].split("::", 1)[-1] if failed else ""
    killed = status in (1, -signal.SIGXCPU)  # a loop without end is noticed, too
    return killed, time.monotonic() - start, by if status in (0, 1) else f"pytest ended with {status}"


def _test(copy: Path, tests: str, log: Path) -> None:
    import shlex

    import pytest

    for name in [x for x in sys.modules if x.split(".")[0] in ("jaxloss", "tests")]:
        del sys.modules[name]
    sys.path.insert(0, str(copy))
    os.chdir(copy)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    status = pytest.main(
        ["-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-p", "no:xdist", *shlex.split(tests)]
    )
    sys.stdout.flush()
    os._exit(int(status))


def main(words: list[str], count: int, seed: int) -> int:
    import chex  # noqa: F401  what every child would import; no backend may start before the fork
    import mpmath  # noqa: F401
    import optax  # noqa: F401
    import sklearn.metrics  # noqa: F401

    every = drawn(count, seed) if count else MUTANTS
    chosen = [m for m in every if not words or any(word in m.name + m.tests for word in words)]
    print("| mutant | result | seconds | first test to fail |\n|---|---|---|---|")
    survivors = 0
    for mutant in chosen:
        killed, seconds, by = run(mutant)
        reason = EQUIVALENT.get(mutant.name, "")
        survivors += not killed and not reason
        result = "killed" if killed else "equivalent" if reason else "SURVIVED"
        print(f"| `{mutant.name}` | {result} | {seconds:.0f} | {by or reason} |", flush=True)
    print(f"\n{len(chosen)} mutants, {survivors} survived.")
    return int(survivors > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="faults drawn at random instead")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(main(given.words, given.sample, given.seed))
