/* 3x3 convolutions of stride 1 and padding 1 by Winograd's F(4x4, 3x3): 36 products where the definition takes 144
 * (Lavin and Gray 2016, arXiv:1509.09308). Everything is float32 and channels last. A thread takes some tiles of 4x4
 * outputs through all three steps, so that what lies between them stays in its cache.
 */
#include <stddef.h>
#include <stdlib.h>

#ifdef __AVX512F__
#define LANES 16
#define COLUMNS 4 /* vectors of output channels that a block of sums has at most */
#define ROWS 6    /* tiles that it has */
#else
#define LANES 8
#define COLUMNS 2
#define ROWS 6
#endif
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec value) { *(vec *)to = value; }

/* Six inputs of a row or a column to six factors: B^T d. */
INLINE void factors(const vec d[6], vec o[6]) {
    vec a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], c = d[4] - d[2], e = 2 * (d[3] - d[1]);
    o[0] = 4 * d[0] - 5 * d[2] + d[4];
    o[1] = a + b;
    o[2] = a - b;
    o[3] = c + e;
    o[4] = c - e;
    o[5] = 4 * d[1] - 5 * d[3] + d[5];
}

/* Six products of a row or a column to four outputs: A^T m. */
INLINE void sums(const vec m[6], vec o[4]) {
    vec a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = m[3] - m[4];
    o[0] = m[0] + a + c;
    o[1] = b + 2 * d;
    o[2] = a + 4 * c;
    o[3] = b + 8 * d + m[5];
}

/* One 6x6 input tile (zeros outside the image) to its 36 factors, `apart` floats from each other. */
static void take(const float *image, float *v, size_t apart, int h, int w, int channels, int top, int left) {
    for (int k = 0; k < channels; k += LANES) {
        vec half[6][6];
        for (int i = 0; i < 6; i++) {
            vec d[6];
            for (int j = 0; j < 6; j++) {
                int y = top + i - 1, x = left + j - 1;
                int inside = y >= 0 && y < h && x >= 0 && x < w;
                d[j] = inside ? load(image + ((size_t)y * w + x) * channels + k) : (vec){0};
            }
            factors(d, half[i]);
        }
        for (int j = 0; j < 6; j++) {
            vec d[6], o[6];
            for (int i = 0; i < 6; i++) d[i] = half[i][j];
            factors(d, o);
            for (int i = 0; i < 6; i++) store(v + (i * 6 + j) * apart + k, o[i]);
        }
    }
}

/* The 36 products of a tile to its 4x4 outputs, those inside the image. */
static void give(const float *m, float *image, size_t apart, int h, int w, int channels, int top, int left) {
    for (int k = 0; k < channels; k += LANES) {
        vec half[6][4];
        for (int i = 0; i < 6; i++) {
            vec d[6];
            for (int j = 0; j < 6; j++) d[j] = load(m + (i * 6 + j) * apart + k);
            sums(d, half[i]);
        }
        for (int j = 0; j < 4; j++) {
            vec d[6], o[4];
            for (int i = 0; i < 6; i++) d[i] = half[i][j];
            sums(d, o);
            for (int i = 0; i < 4; i++)
                if (top + i < h && left + j < w) store(image + ((size_t)(top + i) * w + left + j) * channels + k, o[i]);
        }
    }
}

/* m[rows, columns of m_width] = v[rows, ins] u[ins, columns]: the sums stay in registers. */
INLINE void multiply(int rows, int columns, const float *v, const float *u, float *m, int ins, size_t m_width) {
    vec sum[ROWS][COLUMNS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int j = 0; j < columns; j++) sum[r][j] = (vec){0};
    for (int k = 0; k < ins; k++) {
        vec b[COLUMNS];
        UNROLL for (int j = 0; j < columns; j++) b[j] = load(u + ((size_t)k * columns + j) * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            float a = v[(size_t)r * ins + k];
            UNROLL for (int j = 0; j < columns; j++) sum[r][j] += a * b[j];
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int j = 0; j < columns; j++) store(m + r * m_width + j * LANES, sum[r][j]);
}

INLINE void multiply_all(int columns, int tiles, const float *v, const float *u, float *m, int ins, int outs) {
    for (int first = 0; first < outs; first += columns * LANES, u += (size_t)ins * columns * LANES) {
        int t = 0;
        for (; t + ROWS <= tiles; t += ROWS)
            multiply(ROWS, columns, v + (size_t)t * ins, u, m + (size_t)t * outs + first, ins, outs);
        for (; t < tiles; t++) multiply(1, columns, v + (size_t)t * ins, u, m + (size_t)t * outs + first, ins, outs);
    }
}

/* Output channels that lie together in the weights of a convolution with `outs` of them; 0: it is not for us. */
int together(int ins, int outs) {
    if (ins % LANES || outs % LANES) return 0;
    for (int columns = COLUMNS; columns > 1; columns /= 2)
        if (outs % (columns * LANES) == 0) return columns * LANES;
    return LANES;
}

/* x [n, h, w, ins] and weights u [36, outs / together, ins, together] to y [n, h, w, outs], `share` tiles at a time.
 * Returns 1 if there is no memory. */
int convolve(const float *x, const float *u, float *y, int n, int h, int w, int ins, int outs, int share, int threads) {
    int down = (h + 3) / 4, across = (w + 3) / 4, tiles = n * down * across, columns = together(ins, outs) / LANES;
    size_t apart_v = (size_t)share * ins + LANES, apart_m = (size_t)share * outs + LANES; /* no power of two */
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        void *room = NULL;
        failed = posix_memalign(&room, 64, 36 * (apart_v + apart_m) * sizeof(float)) != 0;
        float *v = room, *m = v + 36 * apart_v;
#pragma omp for schedule(static)
        for (int first = 0; first < tiles; first += share) {
            if (failed) continue;
            int count = tiles - first < share ? tiles - first : share;
            for (int t = 0; t < count; t++) {
                int image = (first + t) / (down * across), at = (first + t) % (down * across);
                const float *from = x + (size_t)image * h * w * ins;
                take(from, v + (size_t)t * ins, apart_v, h, w, ins, at / across * 4, at % across * 4);
            }
            for (int p = 0; p < 36; p++) {
                const float *own = u + (size_t)p * ins * outs;
                if (columns == 4 && COLUMNS >= 4) multiply_all(COLUMNS, count, v + p * apart_v, own, m + p * apart_m, ins, outs);
                else if (columns == 2) multiply_all(2, count, v + p * apart_v, own, m + p * apart_m, ins, outs);
                else multiply_all(1, count, v + p * apart_v, own, m + p * apart_m, ins, outs);
            }
            for (int t = 0; t < count; t++) {
                int image = (first + t) / (down * across), at = (first + t) % (down * across);
                float *to = y + (size_t)image * h * w * outs;
                give(m + (size_t)t * outs, to, apart_m, h, w, outs, at / across * 4, at % across * 4);
            }
        }
        free(room);
    }
    return failed;
}
