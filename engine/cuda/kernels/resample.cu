// A frame to the network's input in one pass: every output pixel is a weighted sum of taps_y x taps_x frame pixels.
//
// The sums are separable. For output column x of the content the taps start at frame column first_x[x] and weigh
// weights_x[x * taps_x + i]; rows likewise. The tables keep every tap inside the frame. `lift` grey levels are added to every
// sum. What lies outside the content (left, top, content_width, content_height) becomes `grey`. `out` is dense: width * 3
// bytes a row.

#include "common.cuh"

struct Taps {
    const int *first;
    const float *weights;
    int count;
};

struct Content {
    int left, top, width, height;
};

template <class Frame>
static __device__ __forceinline__ void resample(Frame frame, Taps columns, Taps rows, float lift, Content content, byte *out,
                                                int width, int height, int grey) {
    int x = column_of_thread(), y = row_of_thread();
    if (x >= width || y >= height) return;
    int column = x - content.left, row = y - content.top;
    if (column < 0 || column >= content.width || row < 0 || row >= content.height) {
        store(out, width, x, y, {(float)grey, (float)grey, (float)grey});
        return;
    }
    const float *weights_x = columns.weights + (size_t)column * columns.count;
    const float *weights_y = rows.weights + (size_t)row * rows.count;
    int x0 = columns.first[column], y0 = rows.first[row];
    Colour sum = {lift, lift, lift};
    for (int j = 0; j < rows.count; ++j) {
        Colour line = {0.0f, 0.0f, 0.0f};
        for (int i = 0; i < columns.count; ++i) {
            Colour tap = frame.at(x0 + i, y0 + j);
            line.b += weights_x[i] * tap.b;
            line.g += weights_x[i] * tap.g;
            line.r += weights_x[i] * tap.r;
        }
        sum.b += weights_y[j] * line.b;
        sum.g += weights_y[j] * line.g;
        sum.r += weights_y[j] * line.r;
    }
    store(out, width, x, y, sum);
}

// Colour conversion in integers of 2^-20, bit for bit as OpenCV's; the coefficients say which standard.
struct YuvToBgr {
    int black, luma, u_to_b, u_to_g, v_to_g, v_to_r;

    static __device__ __forceinline__ float level(int fixed) {
        int value = fixed >> 20;
        return (float)(value < 0 ? 0 : value > 255 ? 255 : value);
    }

    __device__ __forceinline__ Colour convert(int y, int u, int v) const {
        const int half = 1 << 19;
        int light = (y > black ? y - black : 0) * luma + half;
        u -= 128;
        v -= 128;
        return {level(light + u_to_b * u), level(light + u_to_g * u + v_to_g * v), level(light + v_to_r * v)};
    }
};

// A plane of luma and, for every 2 x 2 pixels, a pair (u, v) in a plane of half as many rows.
struct Nv12 {
    const byte *luma;
    int luma_pitch;
    const byte *chroma;
    int chroma_pitch;
    YuvToBgr colours;

    __device__ __forceinline__ Colour at(int x, int y) const {
        const byte *uv = row_of(chroma, chroma_pitch, y >> 1) + (x & ~1);
        return colours.convert(row_of(luma, luma_pitch, y)[x], uv[0], uv[1]);
    }
};

// Four bytes (y0, u, y1, v) for every two pixels of a row.
struct Yuyv {
    const byte *frame;
    int pitch;
    YuvToBgr colours;

    __device__ __forceinline__ Colour at(int x, int y) const {
        const byte *pair = row_of(frame, pitch, y) + 4 * (x >> 1);
        return colours.convert(pair[2 * (x & 1)], pair[1], pair[3]);
    }
};

extern "C" __global__ void resample_bgr(const byte *frame, int pitch,
                                        const int *first_x, const float *weights_x, int taps_x,
                                        const int *first_y, const float *weights_y, int taps_y,
                                        float lift, int left, int top, int content_width, int content_height,
                                        byte *out, int width, int height, int grey) {
    Taps columns = {first_x, weights_x, taps_x}, rows = {first_y, weights_y, taps_y};
    Content content = {left, top, content_width, content_height};
    resample(Bgr{frame, pitch}, columns, rows, lift, content, out, width, height, grey);
}

extern "C" __global__ void resample_nv12(const byte *luma_plane, int luma_pitch, const byte *chroma_plane, int chroma_pitch,
                                         int black, int luma, int u_to_b, int u_to_g, int v_to_g, int v_to_r,
                                         const int *first_x, const float *weights_x, int taps_x,
                                         const int *first_y, const float *weights_y, int taps_y,
                                         float lift, int left, int top, int content_width, int content_height,
                                         byte *out, int width, int height, int grey) {
    Nv12 frame = {luma_plane, luma_pitch, chroma_plane, chroma_pitch, {black, luma, u_to_b, u_to_g, v_to_g, v_to_r}};
    Taps columns = {first_x, weights_x, taps_x}, rows = {first_y, weights_y, taps_y};
    Content content = {left, top, content_width, content_height};
    resample(frame, columns, rows, lift, content, out, width, height, grey);
}

extern "C" __global__ void resample_yuyv(const byte *packed, int pitch,
                                         int black, int luma, int u_to_b, int u_to_g, int v_to_g, int v_to_r,
                                         const int *first_x, const float *weights_x, int taps_x,
                                         const int *first_y, const float *weights_y, int taps_y,
                                         float lift, int left, int top, int content_width, int content_height,
                                         byte *out, int width, int height, int grey) {
    Yuyv frame = {packed, pitch, {black, luma, u_to_b, u_to_g, v_to_g, v_to_r}};
    Taps columns = {first_x, weights_x, taps_x}, rows = {first_y, weights_y, taps_y};
    Content content = {left, top, content_width, content_height};
    resample(frame, columns, rows, lift, content, out, width, height, grey);
}
