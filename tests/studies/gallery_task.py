"""The toy pairs with something to look at: a picture, a caption with a mark-up's signs, and the odd
ones known to be wrong."""

import numpy as np
import toys
from PIL import Image

from steering.exhibits import Exhibit, Labels, thumbnail


class Seen(toys.Toy):
    def labels(self):
        return Labels(wrong=np.arange(self.options.n) % 2 == 1)

    def exhibits(self, numbers):
        picture = thumbnail(Image.new("RGB", (400, 200), "red"))
        return [Exhibit(f"<b>caption & {number}</b>", picture) for number in numbers]
