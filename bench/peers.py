"""All providers; one that cannot run here is skipped with a line."""

from collections.abc import Iterator, Sequence
from functools import cache

from tqdm import tqdm

from bench import peers_jax, peers_torch
from bench.offer import AbsentError, Offer

PROVIDERS = {
    "jaxloss": peers_jax.jaxloss_offer,
    "jaxloss linear_loss": peers_jax.linear_loss_offer,
    "optax": peers_jax.optax_offer,
    "plain JAX": peers_jax.plain_offer,
    "Keras": peers_jax.keras_offer,
    "tokamax": peers_jax.tokamax_offer,
    "torch eager": peers_torch.torch_offer,
    "torch.compile": peers_torch.torch_compile_offer,
    "entmax": peers_torch.entmax_offer,
    "Liger": peers_torch.liger_dense_offer,
    "Liger fused linear": peers_torch.liger_linear_offer,
}
FULL_ONLY = {"torch.compile": "only in --full: compiles for seconds at every shape"}


@cache
def offer(provider: str, scale: str) -> Offer | None:
    """What is offered here, or a line that says why nothing is."""
    try:
        if scale == "quick" and provider in FULL_ONLY:
            raise AbsentError(FULL_ONLY[provider])
        return PROVIDERS[provider]()
    except (ImportError, AbsentError) as reason:
        tqdm.write(f"skipped: {provider} ({reason})")
        return None


def offers(losses: Sequence[str], scale: str, only: Sequence[str] = ()) -> Iterator[tuple[str, str, Offer]]:
    """Loss, provider and offer: each of the losses by all providers, or by those in `only`."""
    given = {provider: offer(provider, scale) for provider in only or PROVIDERS}
    for loss in losses:
        yield from ((loss, provider, x) for provider, x in given.items() if x and loss in x.losses)
