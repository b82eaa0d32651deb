// What the kernels share. One thread makes one output element and no thread waits for another, so the same bodies also
// compile as plain C++. Pixels: x right, y down; frames are rows of `pitch` bytes.
#pragma once

typedef unsigned char byte;

struct Colour {
    float b, g, r;
};

static __device__ __forceinline__ int column_of_thread() { return (int)(blockIdx.x * blockDim.x + threadIdx.x); }

static __device__ __forceinline__ int row_of_thread() { return (int)(blockIdx.y * blockDim.y + threadIdx.y); }

static __device__ __forceinline__ const byte *row_of(const byte *plane, int pitch, int y) { return plane + (size_t)y * pitch; }

// Scores and colours are never negative; halves go up, as in OpenCV's 2 x 2 averages.
static __device__ __forceinline__ byte nearest(float value) { return (byte)(value + 0.5f); }

static __device__ __forceinline__ void store(byte *out, int width, int x, int y, Colour colour) {
    byte *pixel = out + ((size_t)y * width + x) * 3;
    pixel[0] = nearest(colour.b);
    pixel[1] = nearest(colour.g);
    pixel[2] = nearest(colour.r);
}

struct Bgr {
    const byte *frame;
    int pitch;

    __device__ __forceinline__ Colour at(int x, int y) const {
        const byte *pixel = row_of(frame, pitch, y) + 3 * x;
        return {(float)pixel[0], (float)pixel[1], (float)pixel[2]};
    }
};
