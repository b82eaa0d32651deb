"""CUDA without a framework: the driver layer, the kernels and their launchers. Needs the extra ``tensorrt``."""
