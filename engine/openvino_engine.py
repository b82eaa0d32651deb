"""Intel OpenVINO on the CPU (also on AMD and Arm processors)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.base import Engine
from engine.contract import ModelContract, ModelError

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine(Engine):
    """Runs the ONNX file through OpenVINO, one image at a time with a fixed shape: its kernels are chosen for it.

    ``precision="bf16"`` is faster on processors with AMX or AVX512-BF16 and no longer bit-close to the others.
    """

    name = "openvino"

    def __init__(self, contract: ModelContract, precision: str = "fp32", threads: int = 0) -> None:
        super().__init__(contract)
        import openvino

        if precision not in PRECISIONS:
            raise ModelError(f"backend openvino computes in {' or '.join(PRECISIONS)}, not {precision}")

        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        }
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            model = openvino.Core().read_model(str(contract.path))
            model.reshape([1, contract.input_size[1], contract.input_size[0], 3])
            compiled = openvino.Core().compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise ModelError(f"{contract.path}: OpenVINO cannot load it: {str(error).strip().splitlines()[-1]}") from error
        self.precision = precision
        self._request: Any = compiled.create_infer_request()

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rows = [self._request.infer([batch[i : i + 1]], share_inputs=True)[0] for i in range(len(batch))]
        return np.concatenate(rows) if len(rows) > 1 else np.array(rows[0])

    def close(self) -> None:
        self._request = None
