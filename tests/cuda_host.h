// Compiles CUDA kernels as plain C++ and runs them thread after thread: enough for kernels whose threads share nothing.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __forceinline__ inline

struct HostDim3 {
    unsigned x, y, z;
};

static thread_local HostDim3 gridDim, blockDim, blockIdx, threadIdx;

// Takes parameters one after the other from a packed buffer, each aligned to its own size, as a driver does.
struct PackedArguments {
    const char *bytes;
    size_t offset = 0;

    template <class T> T next() {
        offset = (offset + sizeof(T) - 1) / sizeof(T) * sizeof(T);
        T value;
        memcpy(&value, bytes + offset, sizeof(T));
        offset += sizeof(T);
        return value;
    }
};

template <class... T> void run_kernel(void (*kernel)(T...), const unsigned *grid, const unsigned *block, const void *packed) {
    PackedArguments arguments{static_cast<const char *>(packed)};
    std::tuple<T...> values{arguments.next<T>()...};  // braces: from left to right
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
                for (threadIdx.z = 0; threadIdx.z < blockDim.z; ++threadIdx.z)
                    for (threadIdx.y = 0; threadIdx.y < blockDim.y; ++threadIdx.y)
                        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) std::apply(kernel, values);
}

// One letter for each parameter: p pointer, i int, f float.
template <class T> constexpr char letter_of() {
    static_assert(std::is_pointer_v<T> || std::is_same_v<T, int> || std::is_same_v<T, float>, "pointers, int and float only");
    return std::is_pointer_v<T> ? 'p' : std::is_same_v<T, int> ? 'i' : 'f';
}

template <class... T> const char *parameters_of(void (*)(T...)) {
    static const char letters[] = {letter_of<T>()..., '\0'};
    return letters;
}

#define HOST_KERNEL(kernel)                                                                                     \
    extern "C" void kernel##__run(const unsigned *grid, const unsigned *block, const void *packed) {            \
        run_kernel(kernel, grid, block, packed);                                                                \
    }                                                                                                           \
    extern "C" const char *kernel##__parameters() { return parameters_of(kernel); }
