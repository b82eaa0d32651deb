"""The loop that public drivable-area demos run: TwinLiteNet on ONNX Runtime, written from its published description.

TwinLiteNet (Che et al. 2023, arXiv 2307.10705) is the network, MIT licence; its file is not part of this project. Its loop:
resize to 640x360, RGB, divide by 255, planar, infer, argmax of both outputs, resize the masks to the frame, paint.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

PEER_WIDTH, PEER_HEIGHT = 640, 360


class PeerLoop:
    """One TwinLiteNet session. Its denormal weights are set to zero first: with them it takes several times as long."""

    def __init__(self, path: Path) -> None:
        import onnx
        import onnxruntime
        from onnx import numpy_helper

        model = onnx.load(str(path))
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32:
                clean = np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(clean, tensor.name))
        with tempfile.TemporaryDirectory() as folder:
            cleaned = Path(folder) / "peer.onnx"
            onnx.save(model, str(cleaned))
            self._session: Any = onnxruntime.InferenceSession(str(cleaned), providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self.infer_ms: list[float] = []

    def process(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Painted copy of a BGR frame."""
        small = cv2.resize(frame, (PEER_WIDTH, PEER_HEIGHT))
        blob = np.ascontiguousarray(small[:, :, ::-1].transpose(2, 0, 1), np.float32)[None] / 255.0
        started = time.perf_counter_ns()
        outputs = self._session.run(None, {self._input: blob})
        self.infer_ms.append((time.perf_counter_ns() - started) / 1e6)
        drivable, lanes = (np.argmax(logits, axis=1)[0] for logits in outputs)
        size = (frame.shape[1], frame.shape[0])
        painted: NDArray[np.uint8] = frame.copy()
        painted[cv2.resize(drivable.astype(np.uint8) * 255, size) > 100] = (0, 0, 255)
        painted[cv2.resize(lanes.astype(np.uint8) * 255, size) > 100] = (0, 255, 0)
        return painted
