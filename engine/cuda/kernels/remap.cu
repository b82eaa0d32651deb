// A frame to the network's input along a map, bilinear: undistortion and resize in one.
//
// `coordinates` holds (x, y) for every output pixel, dense, in pixels of a frame that is 1 / scale_x times as wide and
// 1 / scale_y times as high as `frame`: the frame may have been halved since the map was made. Outside all is `grey`, and
// within a pixel of the edge the colour fades into it, as with a constant border in OpenCV. `out` is dense.

#include "common.cuh"

struct Bordered {
    Bgr image;
    int width, height;
    float grey;

    __device__ __forceinline__ Colour at(int x, int y) const {
        if (x < 0 || x >= width || y < 0 || y >= height) return {grey, grey, grey};
        return image.at(x, y);
    }
};

static __device__ __forceinline__ float between(float a, float b, float share) { return a + share * (b - a); }

static __device__ __forceinline__ Colour between(Colour a, Colour b, float share) {
    return {between(a.b, b.b, share), between(a.g, b.g, share), between(a.r, b.r, share)};
}

extern "C" __global__ void remap_bgr(const byte *frame, int pitch, int frame_width, int frame_height, const float *coordinates,
                                     float scale_x, float scale_y, byte *out, int width, int height, int grey) {
    int column = column_of_thread(), row = row_of_thread();
    if (column >= width || row >= height) return;
    const float *place = coordinates + ((size_t)row * width + column) * 2;
    // Halving maps areas: x + 0.5 is what scales. With a scale of 1 the coordinates stay exactly what they were.
    float x = place[0] * scale_x + (0.5f * scale_x - 0.5f);
    float y = place[1] * scale_y + (0.5f * scale_y - 0.5f);
    // Written so that NaN is outside, too.
    if (!(x > -1.0f && x < (float)frame_width && y > -1.0f && y < (float)frame_height)) {
        store(out, width, column, row, {(float)grey, (float)grey, (float)grey});
        return;
    }
    Bordered image = {{frame, pitch}, frame_width, frame_height, (float)grey};
    int x0 = (int)floorf(x), y0 = (int)floorf(y);
    float right = x - (float)x0, down = y - (float)y0;
    Colour above = between(image.at(x0, y0), image.at(x0 + 1, y0), right);
    Colour below = between(image.at(x0, y0 + 1), image.at(x0 + 1, y0 + 1), right);
    store(out, width, column, row, between(above, below, down));
}
