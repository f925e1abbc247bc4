/* Attention without a mask: n queries to all S slots, of B sequences and H heads of D channels.
 *
 * Queries lie side by side in registers, so that keys and values are read as they lie, number by
 * number, and maxima and sums need no folding. Sums are float32; in bfloat16 shares are rounded as
 * well where the processor multiplies such pairs. A head's numbers do not depend on the others' or
 * on how many threads there are. */
#include "tiles.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#define PAIRS 1
#else
#define PAIRS 0
#endif

typedef struct {
    int64_t sequence, head, slot; /* numbers from one to the next */
} Step;

typedef struct {
    const void *q, *k, *v;
    Step q_step, k_step, v_step;
    int64_t B, H, n, S, D, is_bf16, threads;
    double scale;
} Pass;

typedef struct {
    float *q, *row, *out; /* a panel of queries (words, PANEL), its rows, and (wide, PANEL) */
    float *score, *k, *v; /* (S, PANEL), and keys and values (S, D) that were widened or paired */
} Room;

/* As by_rows, of pairs in bfloat16: a number is two of them. */
static INLINE void tile_of_pairs(int rows, int nv, const int32_t *a, int64_t ra, int64_t ka, const float *b,
                                 int64_t K, float *out) {
#if PAIRS
    __m512 sum[ROWS][MOST];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) sum[r][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < K; k++) {
        __m512bh factor[MOST];
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) factor[j] = (__m512bh)_mm512_loadu_ps(b + k * PANEL + j * W);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, a + r * ra + k * ka, 4);
            __m512bh input = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], input, factor[j]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) _mm512_storeu_ps(out + r * PANEL + j * W, sum[r][j]);
#endif
}

/* (rows, queries) = a, read by steps of ra and ka, by b (K, PANEL). */
static void by_queries(int rows, int nv, const void *a, int64_t ra, int64_t ka, const float *b, int64_t K, float *out,
                       int is_paired) {
    if (is_paired) {
#undef TILE_
#define TILE_(n, nv) case n: tile_of_pairs(n, nv, (const int32_t *)a, ra, ka, b, K, out); break;
        TILES
    } else {
#undef TILE_
#define TILE_(n, nv) case n: tile(n, nv, (const float *)a, ra, ka, b, PANEL, K, out, PANEL, 0); break;
        TILES
    }
}

static INLINE const void *at(const void *from, Step step, int64_t b, int64_t h, int64_t slot, int64_t size) {
    return (const char *)from + (b * step.sequence + h * step.head + slot * step.slot) * size;
}

/* Queries from i on as columns, of numbers or pairs; zeros where there are none. */
static void take_queries(const Pass *of, Room *room, int64_t b, int64_t h, int64_t i, int64_t count, int is_paired) {
    int64_t words = is_paired ? of->D / 2 : of->D, wide = padded(words), size = of->is_bf16 ? 2 : 4;
    memset(room->row, 0, PANEL * wide * sizeof(float));
    for (int64_t r = 0; r < count; r++) {
        const void *from = at(of->q, of->q_step, b, h, i + r, size);
        float *to = room->row + r * wide;
        if (is_paired || !of->is_bf16) memcpy(to, from, of->D * size);
        else
            for (int64_t d = 0; d < of->D; d++) to[d] = read_as(from, d, 1);
    }
    for (int64_t r = 0; r < PANEL; r += W)
        for (int64_t d = 0; d < wide; d += W) transpose(room->row + r * wide + d, wide, room->q + d * PANEL + r, PANEL);
}

/* Rows (S, D) of numbers, widened. */
static void widen(const Pass *of, const void *from, Step step, int64_t b, int64_t h, float *to) {
    for (int64_t s = 0; s < of->S; s++) {
        const void *row = at(from, step, b, h, s, 2);
        for (int64_t d = 0; d < of->D; d++) *to++ = read_as(row, d, 1);
    }
}

/* Values (S, D) as pairs of one channel in two slots, (S / 2, D, 2); zeros after the last. */
static void pair_values(const Pass *of, int64_t b, int64_t h, uint32_t *to) {
    for (int64_t s = 0; s < of->S; s += 2) {
        const uint16_t *row = at(of->v, of->v_step, b, h, s, 2), *next = row + of->v_step.slot;
        if (s + 1 < of->S)
            for (int64_t d = 0; d < of->D; d++) to[d] = (uint32_t)next[d] << 16 | row[d];
        else
            for (int64_t d = 0; d < of->D; d++) to[d] = row[d];
        to += of->D;
    }
}

/* Scores (S, PANEL) to shares that do not yet sum up to 1, or pairs of them; the sums, in which NaN
 * stays. */
static INLINE void share_out(float *score, int64_t S, float scale, int nv, float *total, int is_paired) {
    for (int j = 0; j < nv; j++) {
        vf most = spread(-INFINITY), sum = spread(0);
        float *column = score + j * W;
        for (int64_t s = 0; s < S; s++) most = larger(load(column + s * PANEL), most);
        for (int64_t s = 0; s < S; s += 1 + is_paired) {
            vf share = exp_of((load(column + s * PANEL) - most) * scale);
            sum += share;
            if (is_paired) {
                vu pair = nearest_bf16(share);
                if (s + 1 < S) {
                    share = exp_of((load(column + (s + 1) * PANEL) - most) * scale);
                    sum += share;
                    pair |= nearest_bf16(share) << 16;
                }
                store(column + s / 2 * PANEL, (vf)pair);
            } else store(column + s * PANEL, share);
        }
        store(total + j * W, sum);
    }
}

/* Mixtures as columns to the queries' rows, over the sums of their shares. */
static void give(const Pass *of, const Room *room, int64_t b, int64_t h, int64_t i, int64_t count, const float *total,
                 void *out) {
    int64_t D = of->D, wide = padded(D);
    for (int64_t r = 0; r < count; r += W)
        for (int64_t d = 0; d < wide; d += W)
            transpose(room->out + d * PANEL + r, PANEL, room->row + r * wide + d, wide);
    for (int64_t r = 0; r < count; r++) {
        const float *from = room->row + r * wide;
        int64_t to = ((b * of->n + i + r) * of->H + h) * D, d = 0;
        float inverse = 1 / total[r];
        for (; d + W <= D; d += W) store_as(out, to + d, load(from + d) * inverse, (int)of->is_bf16);
        for (; d < D; d++) write_as(out, to + d, from[d] * inverse, (int)of->is_bf16);
    }
}

static void attend_queries(const Pass *of, Room *room, int64_t b, int64_t h, int64_t i, const void *k, int64_t k_step,
                           const void *v, int64_t v_step, int is_paired, void *out) {
    int64_t count = least(PANEL, of->n - i), pairs = 1 + is_paired;
    int nv = (int)((count + W - 1) / W);
    float total[PANEL];
    take_queries(of, room, b, h, i, count, is_paired);
    for (int64_t s = 0; s < of->S; s += ROWS)
        by_queries((int)least(ROWS, of->S - s), nv, (const float *)k + s * k_step, k_step, 1, room->q, of->D / pairs,
                   room->score + s * PANEL, is_paired);
    if (is_paired) share_out(room->score, of->S, (float)of->scale, nv, total, 1);
    else share_out(room->score, of->S, (float)of->scale, nv, total, 0);
    for (int64_t d = 0; d < of->D; d += ROWS)
        by_queries((int)least(ROWS, of->D - d), nv, (const float *)v + d, 1, v_step, room->score,
                   (of->S + pairs - 1) / pairs, room->out + d * PANEL, is_paired);
    give(of, room, b, h, i, count, total, out);
}

static void attend_head(const Pass *of, Room *room, int64_t b, int64_t h, void *out) {
    int64_t size = of->is_bf16 ? 2 : 4, k_step = of->k_step.slot, v_step = of->v_step.slot;
    const void *k = at(of->k, of->k_step, b, h, 0, size), *v = at(of->v, of->v_step, b, h, 0, size);
    int is_paired = PAIRS && of->is_bf16 && of->D % 2 == 0 && k_step % 2 == 0;
    if (is_paired) {
        pair_values(of, b, h, (uint32_t *)room->v);
        v = room->v, k_step /= 2, v_step = of->D;
    } else if (of->is_bf16) {
        widen(of, of->k, of->k_step, b, h, room->k);
        widen(of, of->v, of->v_step, b, h, room->v);
        k = room->k, v = room->v, k_step = v_step = of->D;
    }
    for (int64_t i = 0; i < of->n; i += PANEL)
        attend_queries(of, room, b, h, i, k, k_step, v, v_step, is_paired, out);
}

/* Mixed values (B, n, H, D); 0 without memory. */
int64_t unmasked(const Pass *of, void *out) {
    int64_t pairs = of->B * of->H, done = 1, panel = padded(of->D) * PANEL, kept = of->is_bf16 ? of->S * of->D : 0;
#pragma omp parallel num_threads(of->threads) if (of->threads > 1)
    {
        float *all = room_of(3 * panel + of->S * PANEL + 2 * kept);
        Room room = {all, all + panel, all + 2 * panel, all + 3 * panel};
        room.k = room.score + of->S * PANEL, room.v = room.k + kept;
#pragma omp for schedule(static)
        for (int64_t p = 0; p < pairs; p++) {
            if (all) attend_head(of, &room, p / of->H, p % of->H, out);
            else __atomic_store_n(&done, 0, __ATOMIC_RELAXED);
        }
        free(all);
    }
    return done;
}
