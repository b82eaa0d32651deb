// All kernels as one translation unit, so that one file is compiled, cached and loaded.

#include "remap.cu"
#include "resample.cu"
#include "temporal.cu"
