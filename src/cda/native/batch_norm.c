/* A BN layer in evaluation and the batch statistics of its input, in one pass each way. float32, channels last: rows of
 * `channels` values, a block's `rows` after another's. Partial sums are of CHUNK rows and added in their order, so that
 * the number of threads changes no byte.
 */
#include <stddef.h>

#define CHUNK 256

/* y = x * scale + shift; partial[blocks * chunks, 2, channels] = sums of (x - centre) and of its square. */
void bn_forward(const float *restrict x, const float *restrict scale, const float *restrict shift,
                const float *restrict centre, float *restrict y, float *restrict partial, long blocks, long rows,
                long channels, int threads) {
    long chunks = (rows + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long part = 0; part < blocks * chunks; part++) {
        long first = part / chunks * rows + part % chunks * CHUNK, last = part / chunks * rows + rows;
        if (first + CHUNK < last) last = first + CHUNK;
        float *restrict one = partial + part * 2 * channels, *restrict two = one + channels;
        for (long c = 0; c < channels; c++) one[c] = two[c] = 0;
        for (long row = first; row < last; row++) {
            const float *restrict from = x + row * channels;
            float *restrict to = y + row * channels;
#pragma omp simd
            for (long c = 0; c < channels; c++) {
                float value = from[c], off = value - centre[c];
                to[c] = value * scale[c] + shift[c];
                one[c] += off;
                two[c] += off * off;
            }
        }
    }
}

/* gradient = above * scale + a + b * (x - mean), with a, b and mean [blocks, channels]. */
void bn_backward(const float *restrict above, const float *restrict x, const float *restrict scale,
                 const float *restrict a, const float *restrict b, const float *restrict mean,
                 float *restrict gradient, long blocks, long rows, long channels, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < blocks * rows; row++) {
        const float *restrict g = above + row * channels, *restrict from = x + row * channels;
        long block = row / rows * channels;
        const float *restrict own_a = a + block, *restrict own_b = b + block, *restrict own = mean + block;
        float *restrict to = gradient + row * channels;
#pragma omp simd
        for (long c = 0; c < channels; c++) to[c] = g[c] * scale[c] + own_a[c] + own_b[c] * (from[c] - own[c]);
    }
}
