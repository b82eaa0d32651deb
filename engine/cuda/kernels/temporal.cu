// Scores over time, and the mask made of them. Planes lie one below the other: K planes of h rows are K * h rows.

#include "common.cuh"

// Exponential blend: state += alpha * (score - state), or state = score where `reset` is not 0; out is the rounded state.
extern "C" __global__ void blend_scores(float *state, const byte *scores, byte *out, int width, int rows, float alpha,
                                        int reset) {
    int x = column_of_thread(), y = row_of_thread();
    if (x >= width || y >= rows) return;
    size_t i = (size_t)y * width + x;
    float score = (float)scores[i];
    float blended = reset ? score : state[i] + alpha * (score - state[i]);
    state[i] = blended;
    out[i] = (byte)rintf(blended);  // halves to even, as NumPy rounds
}

// Eight scores to one byte, the leftmost in its lowest bit, rows padded with zeros to whole bytes. A pixel is set from `high`
// on, and one that was set in `previous` stays so down to `low`. `previous` may be null (nothing was set), or `out` itself.
extern "C" __global__ void pack_mask(const byte *scores, const byte *previous, byte *out, int width, int rows, int low,
                                     int high) {
    int column = column_of_thread(), y = row_of_thread();
    int bytes = (width + 7) / 8;
    if (column >= bytes || y >= rows) return;
    size_t i = (size_t)y * bytes + column;
    const byte *line = scores + (size_t)y * width;
    int before = previous ? previous[i] : 0, packed = 0;
    for (int bit = 0, x = 8 * column; bit < 8 && x < width; ++bit, ++x) {
        int threshold = (before >> bit) & 1 ? low : high;
        packed |= (line[x] >= threshold) << bit;
    }
    out[i] = (byte)packed;
}
