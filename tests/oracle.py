"""The exact values: textbook formulas in mpmath at 250 digits, written without jaxloss and in other terms than it.

jaxloss works with log-odds; here everything is a function Phi of a probability p, with its derivatives by p.
A softmax loss is sum_c u_c Phi(p_c) + zeta logsumexp^2, u_c being the label's share of class c times its weight, and

    dp_c/dz_j = p_c ([c = j] - p_j)        d2p_c/dz_j^2 = p_c (([c = j] - p_j)^2 - p_j (1 - p_j)).
"""

from collections.abc import Callable, Sequence
from functools import cache

import ml_dtypes
import mpmath as mp
import numpy as np

mp.mp.dps = 250

Phi = Callable[..., tuple]  # (p, 1 - p, parameter) -> Phi, dPhi/dp, d2Phi/dp2


def _exact(x):
    return x if isinstance(x, mp.mpf) else mp.mpf(float(x))


def _label(label, size: int) -> list:
    """An id or a row of labels as a row."""
    return list(map(_exact, np.eye(size)[label] if np.ndim(label) == 0 else label))


def cross_entropy(p, q, _):
    return -mp.log(p), -1 / p, 1 / p**2


def focal(p, q, gamma, epsilon=0):
    s, e, k = -mp.log(p), mp.mpf(epsilon), gamma + 1
    return (
        q**gamma * s + e * q**k,
        -gamma * q ** (gamma - 1) * s - q**gamma / p - e * k * q**gamma,
        gamma * (gamma - 1) * q ** (gamma - 2) * s
        + 2 * gamma * q ** (gamma - 1) / p
        + q**gamma / p**2
        + e * k * gamma * q ** (gamma - 1),
    )


def poly(p, q, epsilon):
    return -mp.log(p) + epsilon * q, -1 / p - epsilon, 1 / p**2


def generalized_cross_entropy(p, q, k):
    return (1 - p**k) / k, -(p ** (k - 1)), -(k - 1) * p ** (k - 2)


def at_margin(phi: Phi, margin) -> Phi:
    """Phi of the probability of a class whose logit is lower by a margin, the others' as they are."""

    def lowered(p, q, parameter):
        raised = mp.exp(mp.mpf(margin))
        whole = p + q * raised
        value, slope, bend = phi(p / whole, q * raised / whole, parameter)
        first, second = raised / whole**2, 2 * raised * (raised - 1) / whole**3
        return value, slope * first, bend * first**2 + slope * second

    return lowered


def margin(p, q, m):
    return at_margin(cross_entropy, m)(p, q, None)


def shares(labels, size: int, exists=None, weights=None, smoothing=0) -> list:
    """u_c of an id or a distribution: smoothed over the classes that exist, then weighted."""
    exists = np.ones(size, bool) if exists is None else exists
    t = _label(labels, size)
    count = int(np.sum(exists))
    t = [(1 - mp.mpf(smoothing)) * x + mp.mpf(smoothing) / count * int(e) for x, e in zip(t, exists, strict=True)]
    return [x * mp.mpf(float(w)) for x, w in zip(t, np.ones(size) if weights is None else weights, strict=True)]


def softmax_row(
    logits: Sequence, u: Sequence, phi: Phi, parameter=None, z_loss=0, order: int = 1, margins=None
) -> tuple:
    """Loss, gradient and, for order 2, the diagonal of the Hessian, as mpmath numbers. -inf logits are left out."""
    size = len(logits)
    phis = [phi if margins is None else at_margin(phi, float(margins[c])) for c in range(size)]
    alive = [c for c in range(size) if logits[c] > -np.inf]
    z = {c: _exact(logits[c]) for c in alive}
    e = {c: mp.exp(z[c]) for c in alive}
    total = mp.fsum(e.values())
    lse = mp.log(total)
    p = {c: e[c] / total for c in alive}
    q = {c: mp.fsum(e[k] for k in alive if k != c) / total if 2 * e[c] > total else 1 - p[c] for c in alive}
    each = parameter if np.ndim(parameter) else [parameter] * size
    zeta = mp.mpf(z_loss)

    values = {c: phis[c](p[c], q[c], each[c] if each[c] is None else mp.mpf(float(each[c]))) for c in alive if u[c]}
    loss = mp.fsum(u[c] * v[0] for c, v in values.items()) + zeta * lse**2
    slope = {c: u[c] * v[1] * p[c] for c, v in values.items()}
    inner = mp.fsum(slope.values())  # sum_c u_c Phi'(p_c) p_c
    gradient = [mp.mpf(0)] * size
    hessian = [mp.mpf(0)] * size
    for j in alive:
        own = slope.get(j, mp.mpf(0))
        gradient[j] = own * q[j] - (inner - own) * p[j] + 2 * zeta * lse * p[j]
    if order == 2:
        bend = {c: u[c] * v[2] * p[c] ** 2 for c, v in values.items()}
        bends = mp.fsum(bend.values())
        for j in alive:
            own_bend, own_slope = bend.get(j, 0), slope.get(j, 0)
            hessian[j] = (
                own_bend * q[j] ** 2
                + (bends - own_bend) * p[j] ** 2
                + own_slope * (q[j] ** 2 - p[j] * q[j])
                + (inner - own_slope) * (p[j] ** 2 - p[j] * q[j])
                + 2 * zeta * (p[j] ** 2 + lse * p[j] * q[j])
            )
    return loss, gradient, hessian


def sigmoid_element(logit, t, pos_weight=1, alpha=None, gamma=0, smoothing=0) -> tuple:
    """Loss and derivative of (a_t) (1 - p_t)^gamma (w t (-log p) + (1 - t) (-log(1 - p)))."""
    z, t, gamma = map(_exact, (logit, t, gamma))
    t = t * (1 - mp.mpf(smoothing)) + mp.mpf(smoothing) / 2
    p, q = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
    w = mp.mpf(pos_weight)
    a = 1 if alpha is None else mp.mpf(alpha) * t + (1 - mp.mpf(alpha)) * (1 - t)
    entropy, slope = -w * t * mp.log(p) - (1 - t) * mp.log(q), -w * t * q + (1 - t) * p
    miss, miss_slope = t * q + (1 - t) * p, (1 - 2 * t) * p * q
    return (
        a * miss**gamma * entropy,
        a * (gamma * miss ** (gamma - 1) * miss_slope * entropy + miss**gamma * slope),
    )


def asymmetric_element(logit, t, gamma_positive=0, gamma_negative=0, clip=0, smoothing=0) -> tuple:
    """Loss and derivative of t (1 - p)^a (-log p) + (1 - t) p_m^b (-log(1 - p_m)), p_m = max(p - clip, 0)."""
    z, t = map(_exact, (logit, t))
    t = t * (1 - mp.mpf(smoothing)) + mp.mpf(smoothing) / 2
    a, b = mp.mpf(gamma_positive), mp.mpf(gamma_negative)
    p, q = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
    loss, slope = t * q**a * -mp.log(p), t * -(q**a) * (q - a * p * mp.log(p))
    shifted, rest = p - mp.mpf(clip), q + mp.mpf(clip)
    if shifted > 0:
        loss += (1 - t) * shifted**b * -mp.log(rest)
        slope += (1 - t) * p * q * (b * shifted ** (b - 1) * -mp.log(rest) + shifted**b / rest)
    return loss, slope


def _margin_element(phi, logit, t, smoothing) -> tuple:
    z, t = map(_exact, (logit, t))
    t = t * (1 - mp.mpf(smoothing)) + mp.mpf(smoothing) / 2
    (value, slope), (other, other_slope) = phi(z), phi(-z)
    return t * value + (1 - t) * other, t * slope - (1 - t) * other_slope


def modified_huber_element(logit, t, smoothing=0) -> tuple:
    """Loss and derivative; phi(m) = max(0, 1 - m)^2 for m >= -1, else -4 m."""

    def phi(m):
        if m < -1:
            return -4 * m, mp.mpf(-4)
        return ((1 - m) ** 2, -2 * (1 - m)) if m < 1 else (mp.mpf(0), mp.mpf(0))

    return _margin_element(phi, logit, t, smoothing)


def squared_hinge_element(logit, t, smoothing=0) -> tuple:
    """Loss and derivative; phi(m) = max(0, 1 - m)^2."""
    return _margin_element(lambda m: (max(0, 1 - m) ** 2, -2 * max(mp.mpf(0), 1 - m)), logit, t, smoothing)


def elements(element: Callable, logits: Sequence, label) -> tuple:
    """Losses and derivatives of each entry of a row, for an id or a row of labels."""
    t = _label(label, len(logits))
    return tuple(zip(*(element(z, x) for z, x in zip(logits, t, strict=True)), strict=True))


def ranking_row(name: str, logits: Sequence, label) -> tuple:
    """Loss and gradient of "logistic", "hinge", "lsep", "zlpr" or "hamming", over all pairs of a row."""
    z, t = list(map(_exact, logits)), _label(label, len(logits))
    if name == "hamming":
        p = [1 / (1 + mp.exp(-x)) for x in z]
        q = [1 / (1 + mp.exp(x)) for x in z]
        loss = mp.fsum(c * b + (1 - c) * a for a, b, c in zip(p, q, t, strict=True)) / len(z)
        return loss, [(1 - 2 * c) * a * b / len(z) for a, b, c in zip(p, q, t, strict=True)]
    gradient = [mp.mpf(0)] * len(z)
    relevant = [c for c in range(len(z)) if t[c] != 0]
    irrelevant = [c for c in range(len(z)) if t[c] == 0]
    if name == "zlpr":
        below, above = mp.fsum(mp.exp(-z[i]) for i in relevant), mp.fsum(mp.exp(z[j]) for j in irrelevant)
        for c in range(len(z)):
            gradient[c] = -mp.exp(-z[c]) / (1 + below) if t[c] else mp.exp(z[c]) / (1 + above)
        return mp.log(1 + below) + mp.log(1 + above), gradient
    pairs = [(i, j, z[j] - z[i]) for i in relevant for j in irrelevant]
    total = 1 + mp.fsum(mp.exp(d) for _, _, d in pairs)
    losses = []
    for i, j, d in pairs:
        if name == "hinge":
            losses.append(max(mp.mpf(0), 1 + d))
            slope = mp.mpf(int(d > -1))
        else:
            losses.append(mp.log(1 + mp.exp(d)))
            slope = mp.exp(d) / total if name == "lsep" else 1 / (1 + mp.exp(-d))
        gradient[j] += slope
        gradient[i] -= slope
    count = 1 if name == "lsep" else max(1, len(pairs))
    loss = mp.log(total) if name == "lsep" else mp.fsum(losses) / count
    return loss, [g / count for g in gradient]


def cost_row(costs: Callable, logits: Sequence, label) -> tuple:
    """The mean of costs(y, c) over labels y of a row and classes c drawn from its softmax, and gradient.

    The derivative by z_j is p_j sum_c p_c (k_j - k_c).
    """
    size = len(logits)
    t, e = _label(label, size), [mp.mpf(0) if x == -mp.inf else mp.exp(_exact(x)) for x in logits]
    p = [x / mp.fsum(e) for x in e]
    k = [mp.fsum(t[y] * mp.mpf(float(costs(y, c))) for y in range(size)) for c in range(size)]
    gradient = [p[j] * mp.fsum(p[c] * (k[j] - k[c]) for c in range(size)) for j in range(size)]
    return mp.fsum(a * b for a, b in zip(k, p, strict=True)), gradient


def multiclass_hinge_row(logits: Sequence, label, margin=1) -> tuple:
    """The sum over the classes of t_c max(0, margin + max_{j != c} z_j - z_c), and gradient."""
    size, t = len(logits), _label(label, len(logits))
    z = list(map(_exact, logits))
    loss, gradient = mp.mpf(0), [mp.mpf(0)] * size
    for c in range(size):
        others = [j for j in range(size) if j != c and z[j] > -mp.inf]
        best = max((z[j] for j in others), default=-mp.inf)
        height = margin + best - z[c]
        if t[c] and height > 0:
            loss += t[c] * height
            tied = [j for j in others if z[j] == best]
            for j in tied:
                gradient[j] += t[c] / len(tied)
            gradient[c] -= t[c]
    return loss, gradient


def power(x, exponent):
    return x**exponent if x > 0 else mp.mpf(0)


def entmax(logits: Sequence, alpha) -> list:
    """Probabilities [b z_j - tau]_+^(1/b), tau by bisection, in 50 digits; -inf logits are left out."""
    return _entmax(tuple(map(_exact, logits)), alpha)


@cache
def _entmax(z, alpha) -> list:
    with mp.workdps(50):
        b = mp.mpf(alpha) - 1
        alive = [x for x in z if x > -mp.inf]
        top = max(alive)

        def probability(x, tau):
            return mp.exp(x - tau) if b == 0 else power(b * (x - top) - tau, 1 / b)

        low, high = (top, top + len(alive)) if b == 0 else (mp.mpf(-1), mp.mpf(0))
        for _ in range(170):
            middle = (low + high) / 2
            above = mp.fsum(probability(x, middle) for x in alive) > 1
            low, high = (middle, high) if above else (low, middle)
        return [mp.mpf(0) if x == -mp.inf else probability(x, low) for x in z]


def negative_entropy(p, alpha):
    """Omega(p), with which entmax is the argmax of <p, z> - Omega(p)."""
    a = mp.mpf(alpha)
    if a == 1:
        return mp.fsum(x * mp.log(x) for x in p if x > 0)
    return mp.fsum((power(x, a) - x) / (a * (a - 1)) for x in p)


def entmax_row(alpha, logits: Sequence, label) -> tuple:
    """Fenchel-Young loss and gradient of an id or a label that is divided by its sum."""
    with mp.workdps(50):
        z, t = list(map(_exact, logits)), _label(label, len(logits))
        t = [x / mp.fsum(t) for x in t]
        p = entmax(z, alpha)
        product = mp.fsum(x * (a - b) for x, a, b in zip(z, t, p, strict=True) if x > -mp.inf)
        loss = negative_entropy(t, alpha) - negative_entropy(p, alpha) - product
        return loss, [a - b for a, b in zip(p, t, strict=True)]


def sparse_sigmoid_element(logit, t, smoothing=0) -> tuple:
    """Loss and derivative p - t of the binary sparsemax loss, p = clip((1 + z) / 2, 0, 1)."""
    z, t = _exact(logit), _exact(t)
    t = t * (1 - mp.mpf(smoothing)) + mp.mpf(smoothing) / 2
    plus = z if z >= 1 else mp.mpf(0) if z <= -1 else (1 + z) ** 2 / 4
    return plus + t * t - t - t * z, min(max((1 + z) / 2, mp.mpf(0)), mp.mpf(1)) - t


def probability_row(of_logarithm: bool, values: Sequence, label) -> tuple:
    """Cross-entropy of probabilities, or of their logarithms, with its gradient."""
    x, t = list(map(_exact, values)), _label(label, len(values))
    if of_logarithm:
        return -mp.fsum(a * b for a, b in zip(t, x, strict=True)), [-a for a in t]
    return -mp.fsum(a * mp.log(b) for a, b in zip(t, x, strict=True)), [-a / b for a, b in zip(t, x, strict=True)]


def probability_element(p, t, smoothing=0) -> tuple:
    """Binary cross-entropy of a probability with its derivative."""
    p, t = _exact(p), _exact(t)
    t = t * (1 - mp.mpf(smoothing)) + mp.mpf(smoothing) / 2
    return -t * mp.log(p) - (1 - t) * mp.log(1 - p), (1 - t) / (1 - p) - t / p


def hessian_diagonal(row: Callable, logits: Sequence, label) -> list:
    """The diagonal for an oracle of loss and gradient, by central differences of its gradient; 0 at -inf."""
    z, step = list(map(_exact, logits)), mp.mpf(10) ** -20
    diagonal = []
    for c, x in enumerate(z):
        ends = (0, 0) if x == -mp.inf else (row([*z[:c], x + s, *z[c + 1 :]], label)[1][c] for s in (step, -step))
        above, below = ends
        diagonal.append((above - below) / (2 * step))
    return diagonal


def _softmax(z: Sequence, temperature=1) -> list:
    e = [mp.mpf(0) if x == -np.inf else mp.exp(_exact(x) / temperature) for x in z]
    return [x / mp.fsum(e) for x in e]


def _relative_entropy(a: Sequence, b: Sequence) -> mp.mpf:
    """sum_c a_c log(a_c / b_c)."""
    if any(x > 0 and y == 0 for x, y in zip(a, b, strict=True)):
        return mp.inf
    return mp.fsum(x * mp.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def kl_row(logits: Sequence, target_logits: Sequence, temperature=1) -> tuple:
    """KL(t || p) with its gradients by both arguments."""
    T = mp.mpf(temperature)
    p, t = _softmax(logits, T), _softmax(target_logits, T)
    loss = _relative_entropy(t, p)
    return (
        loss,
        [(a - b) / T for a, b in zip(p, t, strict=True)],
        [b * ((mp.log(b / a) if a * b > 0 else 0) - loss) / T for a, b in zip(p, t, strict=True)],
    )


def reverse_kl_row(logits: Sequence, target_logits: Sequence, temperature=1) -> tuple:
    """KL(p || t) with its gradients by both arguments."""
    loss, by_targets, by_logits = kl_row(target_logits, logits, temperature)
    return loss, by_logits, by_targets


def js_row(logits: Sequence, target_logits: Sequence, temperature=1, weight=0.5) -> tuple:
    """w KL(t || m) + (1 - w) KL(p || m) with its gradients by both arguments and by w."""
    T, w = mp.mpf(temperature), mp.mpf(weight)
    p, t = _softmax(logits, T), _softmax(target_logits, T)
    m = [w * b + (1 - w) * a for a, b in zip(p, t, strict=True)]

    def side(a):
        mean = _relative_entropy(a, m)
        return mean, [x * ((mp.log(x / y) if x > 0 else 0) - mean) / T for x, y in zip(a, m, strict=True)]

    (of_t, by_u), (of_p, by_z) = side(t), side(p)
    return w * of_t + (1 - w) * of_p, [(1 - w) * x for x in by_z], [w * x for x in by_u], of_t - of_p


def ulp_error(got, exact, dtype=np.float32) -> np.ndarray:
    """|got - exact| in units of the last place of the exact value.

    XLA flushes subnormal numbers, also those in the middle of a product; an exact value below 16 times the least normal
    number therefore counts as underflow, and its error in units of that.
    """
    info = ml_dtypes.finfo(dtype)
    tiny, largest = 16 * float(info.tiny), float(info.max)
    got = np.asarray(got, np.float64).reshape(-1)
    result = np.zeros(len(got))
    for i, (a, b) in enumerate(zip(got, np.asarray(exact, object).reshape(-1), strict=True)):
        if mp.isinf(b) or abs(b) > largest:
            result[i] = 0 if np.isinf(a) and np.sign(a) == mp.sign(b) else np.inf
        elif np.isnan(a) or np.isinf(a):
            result[i] = np.inf
        elif abs(b) < tiny:
            result[i] = float(abs(mp.mpf(float(a)) - b) / mp.mpf(tiny))
        else:
            unit = mp.mpf(2) ** (mp.floor(mp.log(abs(b), 2)) - info.nmant)
            result[i] = float(abs(mp.mpf(float(a)) - b) / unit)
    return result


def linear_cross_entropy(hidden, kernel, ids, weights) -> tuple:
    """Weighted sum of -log softmax(hidden @ kernel)[id], its gradients by hidden, kernel and logits, in float64."""
    h, w = (np.asarray(x, np.float64) for x in (hidden, kernel))
    z = h @ w
    e = np.exp(z - z.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    rows = np.arange(len(ids))
    others = p.copy()
    others[rows, ids] = 0
    rest = others.sum(1)
    dz = others
    dz[rows, ids] = -rest
    dz = dz * np.asarray(weights, np.float64)[:, None]
    gap = z.max(1) + np.log(e.sum(1)) - z[rows, ids]
    losses = np.where(rest < 0.5, -np.log1p(-np.minimum(rest, 0.5)), gap)
    return np.sum(losses * weights), dz @ w.T, h.T @ dz, dz


def events_row(name: str, logits: Sequence, ids: Sequence, probabilities: Sequence, tail: bool) -> tuple:
    """Loss and gradient of the classes listed and, with `tail` or for mixed, of all others as one event."""
    p = _softmax(logits)
    events = [([int(i)], _exact(t)) for i, t in zip(ids, probabilities, strict=True)]
    if tail or name == "mixed":
        rest = max(1 - mp.fsum(t for _, t in events), mp.mpf(0)) if tail else mp.mpf(0)
        events.append(([c for c in range(len(p)) if c not in list(map(int, ids))], rest))

    def slope_and_value(p, t):
        """dF/dp and F of an event."""
        if p == 0:
            return 0, (mp.inf if t and name != "mixed" else -0.25 * t * mp.log(0.25) if t else 0)
        if name == "cross-entropy":
            return -t / p, -t * mp.log(p)
        if name == "focal":
            return t * (2 * (1 - p) * mp.log(p) - (1 - p) ** 2 / p), -t * (1 - p) ** 2 * mp.log(p)
        if name == "forward":
            return -t / p, t * mp.log(t / p) if t else 0
        if name == "reverse":
            return (mp.log(p / t) + 1, p * mp.log(p / t)) if t else (0, mp.inf)
        m = t / 4 + 3 * p / 4
        return 3 * mp.log(p / m) / 4, (t * mp.log(t / m) / 4 if t else 0) + 3 * p * mp.log(p / m) / 4

    loss, gradient = mp.mpf(0), [mp.mpf(0)] * len(p)
    for members, t in events:
        total = mp.fsum(p[c] for c in members)
        slope, value = slope_and_value(total, t)
        loss += value
        for j in range(len(p)):
            gradient[j] += slope * p[j] * ((j in members) - total)
    return loss, gradient
