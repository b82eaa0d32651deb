"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.base import Engine
from engine.contract import INPUT_NAME, OUTPUT_NAME, EngineError, ModelContract, ModelError
from engine.graph import load


class OnnxRuntimeEngine(Engine):
    """Runs the ONNX file through ONNX Runtime's CPU provider.

    Its threads do not spin between frames: on a small machine they would take the cores from decoding and drawing.
    """

    name = "onnxruntime"

    def __init__(self, contract: ModelContract, precision: str = "fp32", threads: int = 0) -> None:
        super().__init__(contract)
        import onnxruntime

        self.precision = precision
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        model = load(contract).SerializeToString() if contract.resized else str(contract.path)
        try:
            self._session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception types are private
            raise ModelError(f"{contract.path}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from error

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        try:
            return np.asarray(self._session.run([OUTPUT_NAME], {INPUT_NAME: batch})[0])
        except Exception as error:  # its exception types are private
            raise EngineError(f"ONNX Runtime failed: {str(error).splitlines()[0]}") from error

    def close(self) -> None:
        self._session = None
