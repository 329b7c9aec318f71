"""Providers that run in torch, on the same kind of device as JAX. Each imports its package when it is asked for."""

import os
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.offer import ALPHA, GAMMA, SMOOTHING, Z_LOSS, AbsentError, Offer


def torch_device() -> str:
    import torch

    if jax.devices()[0].platform == "cpu":
        return "cpu"
    if jax.devices()[0].platform != "gpu" or not torch.cuda.is_available():
        raise AbsentError(f"no torch for {jax.devices()[0].platform}")
    return "cuda"


def to_torch(array: jax.Array, device: str) -> Any:
    import torch

    if jnp.issubdtype(array.dtype, jnp.floating):
        return torch.tensor(np.asarray(array, np.float32), device=device).to(getattr(torch, str(array.dtype)))
    return torch.tensor(np.asarray(array), device=device, dtype=torch.bool if array.dtype == bool else torch.int64)


def torch_call(total: Callable, arguments: tuple, wanted: list, compiled: bool, gradient: bool) -> Callable:
    """A call that starts `total(*arguments)` and, if asked for, its gradients by the arguments that are `wanted`."""
    import torch

    for operand in wanted:
        operand.requires_grad_(gradient)
    if compiled:
        torch.compiler.reset()  # after some shapes of one function it would fall back to eager mode
        total = torch.compile(total, dynamic=False)

    def call():
        value = total(*arguments)
        return value, torch.autograd.grad(value, wanted) if gradient else None

    return call


def torch_offer() -> Offer:
    import torch
    from torch.nn import functional

    torch.set_num_threads(os.cpu_count() or 1)
    torch_device()

    def options(z, labels):
        ids, weights, mask = labels
        loss = functional.cross_entropy(z, ids, weights.to(z.dtype), reduction="none", label_smoothing=SMOOTHING)
        return torch.where(mask, loss + Z_LOSS * torch.logsumexp(z, -1) ** 2, 0)

    def focal(z, ids):
        nll = functional.cross_entropy(z, ids, reduction="none")
        return (1 - torch.exp(-nll)) ** GAMMA * nll

    def sigmoid(z, t):
        return functional.binary_cross_entropy_with_logits(z, t, reduction="none")

    def sigmoid_focal(z, t):
        p = torch.sigmoid(z)
        p_t = t * p + (1 - t) * (1 - p)
        return (t * ALPHA + (1 - t) * (1 - ALPHA)) * (1 - p_t) ** GAMMA * sigmoid(z, t)

    def distribution(z, t):
        return functional.cross_entropy(z, t, reduction="none")

    def one_hot_of_ids(z, ids):
        return distribution(z, functional.one_hot(ids, z.shape[-1]).to(z.dtype))

    return Offer(
        {
            "cross-entropy": lambda z, ids: functional.cross_entropy(z, ids, reduction="none"),
            "cross-entropy, one-hot": distribution,
            "cross-entropy, one-hot of ids": one_hot_of_ids,
            "cross-entropy, all options": options,
            "focal": focal,
            "sigmoid cross-entropy": sigmoid,
            "sigmoid focal": sigmoid_focal,
        },
        "torch",
    )


def torch_compile_offer() -> Offer:
    offer = torch_offer()
    if torch_device() == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise AbsentError("no C++ compiler")
    names = ("cross-entropy", "sigmoid cross-entropy", "sigmoid focal")  # each is compiled at every shape
    return Offer({name: offer.losses[name] for name in names}, "torch", compiled=True)


def entmax_offer() -> Offer:
    import entmax

    torch_device()
    return Offer({"sparsemax": entmax.sparsemax_loss, "entmax15": entmax.entmax15_loss}, "torch")


def _liger() -> Any:
    from liger_kernel.transformers import functional

    if torch_device() != "cuda":
        raise AbsentError("no GPU")
    return functional


def liger_dense_offer() -> Offer:
    loss = _liger().liger_cross_entropy
    return Offer({"cross-entropy": lambda z, ids: loss(z, ids, reduction="none")}, "torch")


def liger_linear_offer() -> Offer:
    loss = _liger().liger_fused_linear_cross_entropy

    def total(x, w, ids):
        return loss(x, w.T, ids, reduction="sum")

    return Offer({"cross-entropy": total}, "torch", whole=True, heads_only=True)
