/* Products of small matrices that lie in a processor's nearest caches, in float32.
 *
 * Rows are padded to whole registers, so that only whole ones are read and written. */
#pragma once
#include "vector.h"

#include <stdlib.h>

#if W == 16
#define MOST 4
#else
#define MOST 2
#endif
#define ROWS 6 /* at a time: ROWS * MOST sums, MOST factors and an input fill the registers */
#define PANEL (MOST * W)

static INLINE int64_t padded(int64_t n) { return (n + W - 1) / W * W; }
static INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static INLINE float *room_of(int64_t floats) { return aligned_alloc(64, (floats + 15) / 16 * 64); }

/* out (rows, nv registers) = sum over k < K of a[r * ra + k * ka] b[k * kb], or is added to. */
static INLINE void tile(int rows, int nv, const float *a, int64_t ra, int64_t ka, const float *b, int64_t kb, int64_t K,
                        float *out, int64_t ld, int add) {
    vf sum[ROWS][MOST];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) sum[r][j] = add ? load(out + r * ld + j * W) : spread(0);
    for (int64_t k = 0; k < K; k++) {
        vf factor[MOST];
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) factor[j] = load(b + k * kb + j * W);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            float input = a[r * ra + k * ka];
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) sum[r][j] += input * factor[j];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) store(out + r * ld + j * W, sum[r][j]);
}

#define TILE_(n, nv) case n: tile(n, nv, TILE_ARGUMENTS); break;
#define TILES_(nv) \
    switch (rows) { TILE_(1, nv) TILE_(2, nv) TILE_(3, nv) TILE_(4, nv) TILE_(5, nv) TILE_(6, nv) } \
    break;
#if MOST > 2
#define WIDER_TILES case 3: TILES_(3) case 4: TILES_(4)
#else
#define WIDER_TILES
#endif
#define TILES switch (nv) { case 1: TILES_(1) case 2: TILES_(2) WIDER_TILES }

/* Rows of a by a panel: scores of up to PANEL slots. */
static void by_panel(int rows, int nv, const float *a, int64_t ra, const float *b, int64_t K, float *out, int64_t ld) {
#define TILE_ARGUMENTS a, ra, 1, b, PANEL, K, out, ld, 0
    TILES
#undef TILE_ARGUMENTS
}

/* Rows of a by rows of b, some registers of them. */
static void by_rows(int rows, int nv, const float *a, int64_t ra, const float *b, int64_t kb, int64_t K, float *out,
                    int64_t ld, int add) {
#define TILE_ARGUMENTS a, ra, 1, b, kb, K, out, ld, add
    TILES
#undef TILE_ARGUMENTS
}

/* Columns of a, whose rows are PANEL apart, by rows of b; always added. */
static void by_columns(int rows, int nv, const float *a, const float *b, int64_t kb, int64_t K, float *out,
                       int64_t ld) {
#define TILE_ARGUMENTS a, 1, PANEL, b, kb, K, out, ld, 1
    TILES
#undef TILE_ARGUMENTS
}

#if W == 16
#define LOWER 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define LANES 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define EVENS 0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14
#define ODDS 1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15
#define SWAPPED 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14
#elif W == 8
#define LOWER 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER 4, 12, 5, 13, 6, 14, 7, 15
#define LANES 0, 1, 2, 3, 4, 5, 6, 7
#define EVENS 0, 0, 2, 2, 4, 4, 6, 6
#define ODDS 1, 1, 3, 3, 5, 5, 7, 7
#define SWAPPED 1, 0, 3, 2, 5, 4, 7, 6
#else
#define LOWER 0, 4, 1, 5
#define UPPER 2, 6, 3, 7
#define LANES 0, 1, 2, 3
#define EVENS 0, 0, 2, 2
#define ODDS 1, 1, 3, 3
#define SWAPPED 1, 0, 3, 2
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define ZIPPED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ZIPPED(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

static INLINE vf first_of(vf x, int64_t count) { /* zeros beyond */
    return (vf)((vi)x & ((vi){LANES} < (int32_t)count));
}

/* Over all lanes: halves are laid over one another until each lane has it. */
static INLINE float folded_sum(vf x) {
    for (int i = 1; i < W; i *= 2) x = ZIPPED(x, x, LOWER) + ZIPPED(x, x, UPPER);
    return x[0];
}

static INLINE float folded_most(vf x) {
    for (int i = 1; i < W; i *= 2) x = larger(ZIPPED(x, x, LOWER), ZIPPED(x, x, UPPER));
    return x[0];
}

/* W rows of W to columns: each stage turns the bits of row and column by one. */
static INLINE void transpose(const float *from, int64_t ld, float *to, int64_t to_ld) {
    vf x[W], y[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) x[i] = load(from + i * ld);
#pragma GCC unroll 4
    for (int stage = 1; stage < W; stage *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < W / 2; i++) {
            y[2 * i] = ZIPPED(x[i], x[i + W / 2], LOWER);
            y[2 * i + 1] = ZIPPED(x[i], x[i + W / 2], UPPER);
        }
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) x[i] = y[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) store(to + i * to_ld, x[i]);
}

/* Rows (n, wide) to panels (n / PANEL, wide, PANEL); there are rows up to a whole panel. */
static void panels_of(const float *rows, int64_t n, int64_t wide, float *panels) {
    for (int64_t s = 0; s < n; s += PANEL, panels += wide * PANEL)
        for (int64_t i = 0; i < PANEL; i += W)
            for (int64_t d = 0; d < wide; d += W)
                transpose(rows + (s + i) * wide + d, wide, panels + d * PANEL + i, PANEL);
}
