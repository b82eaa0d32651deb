"""From a frame of any size to the network's input, and the exact map between their pixels.

Pixel coordinates: x right, y down, (0, 0) the centre of the top-left pixel, so an image covers [-0.5, W - 0.5] in x. A
resize maps *areas*: ``x_net + 0.5 = (x + 0.5) * w / W`` (half-pixel centres), as OpenCV, PyTorch (``align_corners=False``)
and ONNX (``half_pixel``) do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.contract import ResizeMode

PADDING_GREY = 114

PixelFormat = Literal["bgr", "nv12", "yuyv"]
"""How a frame lies in memory, always uint8: ``bgr`` ``(H, W, 3)``; ``nv12`` ``(3 H / 2, W)``, Y rows, then U and V in turn
at half the size; ``yuyv`` ``(H, W, 2)``, Y with U and V in turn. The last two are BT.601, limited range, as cameras give it."""


def frame_size(image: NDArray[np.uint8], pixel_format: PixelFormat) -> tuple[int, int]:
    """(width, height) of a frame in pixels. Raises ValueError: it is no frame of that format."""
    shape = image.shape
    if image.dtype == np.uint8 and 0 not in shape:
        if pixel_format == "bgr" and len(shape) == 3 and shape[2] == 3:
            return shape[1], shape[0]
        if pixel_format == "yuyv" and len(shape) == 3 and shape[2] == 2 and shape[1] % 2 == 0:
            return shape[1], shape[0]
        if pixel_format == "nv12" and len(shape) == 2 and shape[0] % 3 == 0 and shape[1] % 2 == 0:
            return shape[1], shape[0] // 3 * 2
    wanted = {"bgr": "(H, W, 3)", "nv12": "(3 H / 2, W), H and W even", "yuyv": "(H, W, 2), W even"}[pixel_format]
    raise ValueError(f"a {pixel_format} frame must be uint8 {wanted}, got {image.dtype} {shape}")


def to_bgr(image: NDArray[np.uint8], pixel_format: PixelFormat) -> NDArray[np.uint8]:
    """A frame as ``bgr``; one that is so already comes back itself."""
    if pixel_format == "bgr":
        return image
    code = cv2.COLOR_YUV2BGR_NV12 if pixel_format == "nv12" else cv2.COLOR_YUV2BGR_YUY2
    return np.asarray(cv2.cvtColor(image, code), np.uint8)


@dataclass(frozen=True)
class Resampling:
    """Axis-aligned affine map between a frame and the network's input.

    Attributes:
        frame_size: (width, height) of the frame in pixels.
        input_size: (width, height) of the network's input.
        content: (left, top, width, height) of the frame inside the input, whole pixels; all of it where stretched.
    """

    frame_size: tuple[int, int]
    input_size: tuple[int, int]
    content: tuple[int, int, int, int]

    def input_from_frame(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Frame pixels ``(n, 2)`` -> input pixels ``(n, 2)``."""
        scale, offset = self._affine()
        return np.asarray(points * scale + offset)

    def frame_from_input(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Input pixels ``(n, 2)`` -> frame pixels ``(n, 2)``."""
        scale, offset = self._affine()
        return np.asarray((points - offset) / scale)

    def _affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        left, top, width, height = self.content
        scale = np.array([width / self.frame_size[0], height / self.frame_size[1]])
        return scale, 0.5 * scale - 0.5 + np.array([left, top], np.float64)

    @property
    def pixels_per_input_pixel(self) -> float:
        """How many frame pixels one input pixel spans along its longer side."""
        return max(self.frame_size[0] / self.content[2], self.frame_size[1] / self.content[3])


def fit(frame_size: tuple[int, int], input_size: tuple[int, int], mode: ResizeMode) -> Resampling:
    """The resampling that brings a frame of ``frame_size`` to ``input_size``, both (width, height)."""
    if mode == "stretch":
        return Resampling(frame_size, input_size, (0, 0, *input_size))
    scale = min(input_size[0] / frame_size[0], input_size[1] / frame_size[1])
    width = min(input_size[0], max(1, round(frame_size[0] * scale)))
    height = min(input_size[1], max(1, round(frame_size[1] * scale)))
    return Resampling(frame_size, input_size, ((input_size[0] - width) // 2, (input_size[1] - height) // 2, width, height))


def resample(image: NDArray[np.uint8], resampling: Resampling, out: NDArray[np.uint8]) -> None:
    """Write the network's view of ``image`` uint8 ``(H, W, 3)`` into ``out`` uint8 ``(h, w, 3)``.

    Bilinear, halved first as long as both sides shrink by more than two: a bilinear resize looks at 2 x 2 pixels and would skip
    the others. Halving maps areas, too, so the whole map stays the one of ``resampling``. Rows and columns outside the
    content are set to `PADDING_GREY`.
    """
    left, top, width, height = resampling.content
    while image.shape[1] > 2 * width and image.shape[0] > 2 * height:
        half = ((image.shape[1] + 1) // 2, (image.shape[0] + 1) // 2)
        image = np.asarray(cv2.resize(image, half, interpolation=cv2.INTER_AREA), np.uint8)
    if (width, height) == resampling.input_size:
        cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
        return
    out[...] = PADDING_GREY
    out[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
