/* A BN layer in evaluation and the batch statistics of its input, in one pass each way, with what follows the layer in a
 * residual network: a sum and a ReLU. float32, channels last: rows of `channels` values, a block's `rows` after another's.
 * Partial sums are of CHUNK rows and added in their order, so that the number of threads changes no byte.
 */
#include <stddef.h>

#define CHUNK 256
#define INLINE static inline __attribute__((always_inline))

INLINE void forward(const int added, const int rectified, const float *restrict x, const float *restrict plus,
                    const float *restrict scale, const float *restrict shift, const float *restrict centre,
                    float *restrict y, float *restrict one, float *restrict two, long channels) {
#pragma omp simd
    for (long c = 0; c < channels; c++) {
        float value = x[c], off = value - centre[c], made = value * scale[c] + shift[c];
        if (added) made += plus[c];
        y[c] = rectified && made < 0 ? 0 : made;
        one[c] += off;
        two[c] += off * off;
    }
}

/* y = x * scale + shift, plus `plus` if there is one, rectified if asked for;
 * partial[blocks * chunks, 2, channels] = sums of (x - centre) and of its square. */
void bn_forward(const float *x, const float *plus, const float *scale, const float *shift, const float *centre,
                float *y, float *partial, long blocks, long rows, long channels, int rectified, int threads) {
    long chunks = (rows + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long part = 0; part < blocks * chunks; part++) {
        long first = part / chunks * rows + part % chunks * CHUNK, last = part / chunks * rows + rows;
        if (first + CHUNK < last) last = first + CHUNK;
        float *one = partial + part * 2 * channels, *two = one + channels;
        for (long c = 0; c < channels; c++) one[c] = two[c] = 0;
        for (long row = first; row < last; row++) {
            const float *from = x + row * channels, *other = plus + row * channels;
            float *to = y + row * channels;
            if (!rectified) forward(0, 0, from, NULL, scale, shift, centre, to, one, two, channels);
            else if (!plus) forward(0, 1, from, NULL, scale, shift, centre, to, one, two, channels);
            else forward(1, 1, from, other, scale, shift, centre, to, one, two, channels);
        }
    }
}

INLINE void backward(const int rectified, const int added, const float *restrict above, const float *restrict y,
                     const float *restrict x, const float *restrict scale, const float *restrict a,
                     const float *restrict b, const float *restrict mean, float *restrict gradient,
                     float *restrict to_plus, long channels) {
#pragma omp simd
    for (long c = 0; c < channels; c++) {
        float g = !rectified || y[c] > 0 ? above[c] : 0;
        gradient[c] = g * scale[c] + a[c] + b[c] * (x[c] - mean[c]);
        if (added) to_plus[c] = g;
    }
}

/* gradient = g * scale + a + b * (x - mean), with a, b and mean [blocks, channels]; g is what comes from above, where
 * the rectified y, if there is one, is above 0. to_plus = g, if there is a place for it. */
void bn_backward(const float *above, const float *y, const float *x, const float *scale, const float *a,
                 const float *b, const float *mean, float *gradient, float *to_plus, long blocks, long rows,
                 long channels, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < blocks * rows; row++) {
        long at = row * channels, own = row / rows * channels;
        if (!y)
            backward(0, 0, above + at, NULL, x + at, scale, a + own, b + own, mean + own, gradient + at, NULL, channels);
        else if (!to_plus)
            backward(1, 0, above + at, y + at, x + at, scale, a + own, b + own, mean + own, gradient + at, NULL, channels);
        else
            backward(1, 1, above + at, y + at, x + at, scale, a + own, b + own, mean + own, gradient + at, to_plus + at,
                     channels);
    }
}
