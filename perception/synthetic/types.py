"""Types that the modules of the rendered drive share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Single = NDArray[np.float32]
Image = NDArray[np.uint8]
Colour = tuple[float, float, float]  # BGR, 0 to 255
