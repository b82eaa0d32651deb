"""Intel OpenVINO on the CPU (also on AMD and Arm processors)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.base import Engine
from engine.contract import EngineError, ModelContract, ModelError

STREAMS = 2
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}  # of what is not quantised


class OpenVinoEngine(Engine):
    """Runs the ONNX file through OpenVINO, one image at a time with a fixed shape: its kernels are chosen for it.

    A quantised file computes in int8, and what it keeps in float in bf16 where the processor has it. ``precision="bf16"`` is
    faster on processors with AMX or AVX512-BF16 and no longer bit-close to the others. With a ``depth`` above 1 two frames
    are inferred side by side, each on half of the cores, which wastes less of them than all of them on one.
    """

    name = "openvino"

    def __init__(self, contract: ModelContract, precision: str = "fp32", threads: int = 0, depth: int = 1) -> None:
        super().__init__(contract)
        self.depth = depth
        import openvino

        arithmetic = precision
        if precision == "int8":
            arithmetic = "bf16" if native_bf16() else "fp32"
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": PRECISIONS[arithmetic]}
        if depth > 1:
            options["NUM_STREAMS"] = STREAMS
        else:
            options["PERFORMANCE_HINT"] = "LATENCY"
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            model = openvino.Core().read_model(str(contract.path))
            model.reshape([1, contract.input_size[1], contract.input_size[0], 3])
            compiled = openvino.Core().compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise ModelError(f"{contract.path}: OpenVINO cannot load it: {str(error).strip().splitlines()[-1]}") from error
        self.precision = precision
        self._requests: deque[Any] = deque(compiled.create_infer_request() for _ in range(depth))
        self._tensors: deque[tuple[NDArray[np.uint8], Any]] = deque(maxlen=depth)

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        self._requests.rotate(-1)
        if len(batch) == 1:
            return self._infer_one(batch)
        return np.concatenate([self._infer_one(batch[i : i + 1]) for i in range(len(batch))])

    def _infer_one(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        request = self._requests[0]
        with failures():
            request.set_input_tensor(self._tensor(batch))
            request.infer()
            return np.array(request.get_output_tensor().data)

    def start(self, batch: NDArray[np.uint8]) -> Any:
        if self.depth == 1 or len(batch) > 1:
            return super().start(batch)
        self._requests.rotate(-1)
        with failures():
            self._requests[0].set_input_tensor(self._tensor(batch))
            self._requests[0].start_async()
        return self._requests[0]

    def _tensor(self, batch: NDArray[np.uint8]) -> Any:
        """The bytes of ``batch`` as OpenVINO has them, without a copy. Made once for each of `_next_input`'s arrays: OpenVINO's
        own way from an array to a tensor takes 0.1 ms."""
        import openvino

        for array, tensor in self._tensors:
            if array is batch:
                return tensor
        self._tensors.append((batch, openvino.Tensor(batch, shared_memory=True)))
        return self._tensors[-1][1]

    def finish(self, work: Any) -> tuple[NDArray[np.uint8], float]:
        if isinstance(work, tuple):
            return super().finish(work)
        with failures():
            work.wait()
        return np.array(work.get_output_tensor().data), float(work.latency)

    def close(self) -> None:
        for request in self._requests:
            with suppress(RuntimeError):  # what it was working on is not wanted any more
                request.wait()
        self._requests.clear()
        self._tensors.clear()


@contextmanager
def failures() -> Iterator[None]:
    """OpenVINO's exceptions as `EngineError`."""
    try:
        yield
    except RuntimeError as error:
        raise EngineError(f"OpenVINO failed: {str(error).strip().splitlines()[-1]}") from error


def native_bf16() -> bool:
    """Whether OpenVINO finds bf16 arithmetic in this processor."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
