"""A batch of image–text pairs as the solver sees it. "Image" and "text" may be any two modalities.

Shapes: b pairs in this process, B = K·b over all ranks, d feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Unit-norm features of b pairs; row i of every tensor belongs to example `index[i]`.

    Attributes:
        image, text: target features, (b, d), float32 or float64, with gradient.
        reference_image, reference_text: features of the frozen reference, (b, d′), without
            gradient; both or neither. They count in the dtype of `image`; in half precision they
            take half of the traffic between ranks.
        index: stable example numbers, int64, (b,); each once in a batch over all ranks.
        reference_scale: logit scale of the reference, 1/τ, the same number in each row, (b,); None:
            not known.
    """

    image: Tensor
    text: Tensor
    index: Tensor
    reference_image: Tensor | None = None
    reference_text: Tensor | None = None
    reference_scale: Tensor | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 2 or self.image.shape != self.text.shape:
            raise ValueError(
                f"image and text must both be (b, d), got {tuple(self.image.shape)}, {tuple(self.text.shape)}"
            )
        if self.index.shape != self.image.shape[:1]:
            raise ValueError(
                f"index must be (b,) = ({len(self.image)},), got {tuple(self.index.shape)}"
            )
        if (self.reference_image is None) != (self.reference_text is None):
            raise ValueError("give both reference_image and reference_text, or neither")
        scale = self.reference_scale
        if scale is not None and scale.shape != self.index.shape:
            raise ValueError(
                f"reference_scale must be (b,) = ({len(self.image)},), got {tuple(scale.shape)}"
            )
        if self.reference_image is None or self.reference_text is None:
            return
        shapes = tuple(self.reference_image.shape), tuple(self.reference_text.shape)
        if len(shapes[0]) != 2 or shapes[0] != shapes[1] or shapes[0][0] != len(self.image):
            raise ValueError(
                f"reference features must both be ({len(self.image)}, d'), got {shapes[0]}, {shapes[1]}"
            )

    def reference(self) -> tuple[Tensor, Tensor] | None:
        """The reference's image and text features, detached and in the dtype of `image`, (b, d′)
        each; None without one."""
        if self.reference_image is None or self.reference_text is None:
            return None
        dtype = self.image.dtype
        return self.reference_image.detach().to(dtype), self.reference_text.detach().to(dtype)
