/* Products of a few rows by packed weights: (R, C) by (E, C) gives (R, E).
 *
 * A weight lies in panels of NV registers of outputs, channel by channel, so that it is read once
 * from end to end. In bfloat16 two channels of an output lie side by side, as the processor
 * multiplies them. Every row is added up in the order of its channels, whoever shares the batch. */
#pragma once
#include "vector.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#if W == 16
#define NV 4
#else
#define NV 2
#endif
#define MR 6 /* rows at a time: MR * NV sums, NV weights and an input fill the registers */
#define PANEL (NV * W)

#define LINE 64 /* bytes that memory is read by */

/* Part of the next panel, to be fetched while this one is multiplied. */
typedef struct {
    const char *from;
    int64_t stride; /* bytes for each channel, or pair of them: at most two lines */
} Ahead;

static INLINE void fetch_part(Ahead ahead, int64_t k) {
    __builtin_prefetch(ahead.from + k * ahead.stride, 0, 2);
    __builtin_prefetch(ahead.from + k * ahead.stride + LINE, 0, 2);
}

static void store_sums(int rows, int nv, const vf *sum, float *out, int64_t E, int64_t columns, int add) {
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < nv; j++) {
            float *to = out + r * E + j * W;
            int64_t left = columns - j * W;
            vf found = sum[r * nv + j];
            if (left < W)
                for (int64_t i = 0; i < left; i++) to[i] = add ? to[i] + found[i] : found[i];
            else if (add) store(to, load(to) + found);
            else store(to, found);
        }
}

static INLINE void tile(int rows, int nv, const float *x, int64_t C, const float *w, Ahead ahead, vf sum[MR][NV]) {
    for (int64_t k = 0; k < C; k++) {
        vf weight[NV];
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) weight[j] = load(w + (k * nv + j) * W);
        fetch_part(ahead, k);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            float input = x[r * C + k];
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) sum[r][j] += input * weight[j];
        }
    }
}

static INLINE void tile_bf16(int rows, int nv, const uint16_t *x, int64_t C, const uint16_t *w, Ahead ahead,
                             vf sum[MR][NV]) {
#ifdef __AVX512BF16__
    for (int64_t k = 0; k < C / 2; k++) {
        __m512bh weight[NV];
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) weight[j] = (__m512bh)_mm512_loadu_si512(w + (k * nv + j) * 2 * W);
        fetch_part(ahead, k);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, x + r * C + 2 * k, 4);
            __m512bh input = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) sum[r][j] = (vf)_mm512_dpbf16_ps((__m512)sum[r][j], input, weight[j]);
        }
    }
#endif
}

static INLINE void some_rows(int rows, int nv, const void *x, int64_t C, const void *w, Ahead ahead, float *out,
                             int64_t E, int64_t columns, int add, int is_bf16) {
    vf sum[MR][NV], found[MR * NV];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) sum[r][j] = spread(0);
    if (is_bf16) tile_bf16(rows, nv, x, C, w, ahead, sum);
    else tile(rows, nv, x, C, w, ahead, sum);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) found[r * nv + j] = sum[r][j]; /* so that the sums stay in registers */
    store_sums(rows, nv, found, out, E, columns, add);
}

#define ARGUMENTS x, C, w, ahead, out, E, columns, add, is_bf16
#define ROWS_(n, nv) case n: some_rows(n, nv, ARGUMENTS); break;
#define ROWS(nv) \
    switch (rows) { ROWS_(1, nv) ROWS_(2, nv) ROWS_(3, nv) ROWS_(4, nv) ROWS_(5, nv) ROWS_(6, nv) }

static INLINE void some_panel(int rows, int nv, const void *x, int64_t C, const void *w, Ahead ahead, float *out,
                              int64_t E, int64_t columns, int add, int is_bf16) {
    switch (nv) {
    case 1: ROWS(1) break;
    case 2: ROWS(2) break;
#if NV > 2
    case 3: ROWS(3) break;
    case 4: ROWS(4) break;
#endif
    }
}

static void panel_f32(int rows, int nv, const void *x, int64_t C, const void *w, Ahead ahead, float *out, int64_t E,
                      int64_t columns, int add) {
    some_panel(rows, nv, x, C, w, ahead, out, E, columns, add, 0);
}

static void panel_bf16(int rows, int nv, const void *x, int64_t C, const void *w, Ahead ahead, float *out, int64_t E,
                       int64_t columns, int add) {
    some_panel(rows, nv, x, C, w, ahead, out, E, columns, add, 1);
}

static INLINE int registers(int64_t columns) { return columns >= PANEL ? NV : (int)((columns + W - 1) / W); }

/* out = x w, or out += x w. x is bfloat16 where the weight is; then C is even. */
static void multiply(const void *x, int64_t R, int64_t C, const void *packed, int64_t E, float *out, int add,
                     int is_bf16) {
    int64_t blocks = (R + MR - 1) / MR, panels = (E + PANEL - 1) / PANEL, size = is_bf16 ? 2 : 4;
#pragma omp for collapse(2) schedule(static)
    for (int64_t p = 0; p < panels; p++)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t first = b * R / blocks, rows = (b + 1) * R / blocks - first, columns = E - p * PANEL;
            const char *w = (const char *)packed + p * PANEL * C * size;
            /* Its passes share the next one. Of a single pass it takes longer than it gains. */
            int64_t panel = PANEL * C * size;
            Ahead ahead = {w, 0};
            if (blocks > 1) ahead = (Ahead){w + panel + panel / blocks * b, 4 * PANEL / blocks};
            (is_bf16 ? panel_bf16 : panel_f32)((int)rows, registers(columns), (const char *)x + first * C * size, C, w,
                                               ahead, out + first * E + p * PANEL, E, columns, add);
        }
}

static void pack_f32(const float *weight, int64_t E, int64_t C, float *out) {
    for (int64_t e = 0; e < E; e += PANEL) {
        int64_t n = registers(E - e) * W, have = E - e < n ? E - e : n;
        for (int64_t k = 0; k < C; k++)
            for (int64_t i = 0; i < n; i++) *out++ = i < have ? weight[(e + i) * C + k] : 0;
    }
}

static void pack_bf16(const uint16_t *weight, int64_t E, int64_t C, uint16_t *out) {
    for (int64_t e = 0; e < E; e += PANEL) {
        int64_t n = registers(E - e) * W, have = E - e < n ? E - e : n;
        for (int64_t k = 0; k < C; k += 2)
            for (int64_t i = 0; i < n; i++)
                for (int64_t j = k; j < k + 2; j++) *out++ = i < have ? weight[(e + i) * C + j] : 0;
    }
}
