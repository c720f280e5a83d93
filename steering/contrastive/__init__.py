"""Contrastive risks over image–text pairs (or any two modalities)."""

from steering.contrastive.naive import info_nce, negatives, pairwise_losses
from steering.items import Pairs

__all__ = ["Pairs", "info_nce", "negatives", "pairwise_losses"]
