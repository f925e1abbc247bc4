/* One query of every row and head over what is cached. Keys lie in blocks of W slots, channel by
 * channel, so that the scores of W slots are added up side by side; values slot by slot, each with
 * zeros up to a whole register. What is read in the order of memory is fetched in time by itself,
 * but not across pages: keys fetch the values behind them, values the next head's keys. */
#pragma once
#include "vector.h"

static INLINE void fetch(const void *from, int64_t index, int is_bf16) {
    __builtin_prefetch((const char *)from + index * (is_bf16 ? 2 : 4), 0, 1);
}

static INLINE int64_t whole(int64_t n) { return (n + W - 1) / W * W; }

static INLINE void keep(const float *k, const float *v, void *key, void *value, int64_t slot, int64_t D, int is_bf16) {
    int64_t block = slot / W * W * D + slot % W;
    for (int64_t d = 0; d < D; d++) {
        write_as(key, block + d * W, k[d], is_bf16);
        write_as(value, slot * whole(D) + d, v[d], is_bf16);
    }
}

static INLINE void score_blocks(int count, const float *q, const void *key, int64_t first, int64_t D, float *score,
                                const void *ahead, int is_bf16) {
    vf sum[4];
#pragma GCC unroll 4
    for (int u = 0; u < count; u++) sum[u] = spread(0);
    for (int64_t d = 0; d < D; d++)
#pragma GCC unroll 4
        for (int u = 0; u < count; u++) {
            fetch(ahead, first + (u * D + d) * W, is_bf16);
            sum[u] += q[d] * load_as(key, first + (u * D + d) * W, is_bf16);
        }
    float scale = 1 / sqrtf((float)D);
#pragma GCC unroll 4
    for (int u = 0; u < count; u++) store(score + u * W, sum[u] * scale);
}

/* nd registers of channels of the mixture, four slots at a time. */
static INLINE void mix_part(int nd, const float *share, const void *value, int64_t first, int64_t S, int64_t wide,
                            float *out, const void *ahead, int is_bf16) {
    vf sum[4][4];
#pragma GCC unroll 4
    for (int u = 0; u < 4; u++)
#pragma GCC unroll 4
        for (int j = 0; j < nd; j++) sum[u][j] = spread(0);
    for (int64_t s = 0; s < S; s += 4)
#pragma GCC unroll 4
        for (int u = 0; u < 4; u++)
            if (s + u < S)
#pragma GCC unroll 4
                for (int j = 0; j < nd; j++) {
                    int64_t at = first + (s + u) * wide + j * W;
                    fetch(ahead, at, is_bf16);
                    sum[u][j] += share[s + u] * load_as(value, at, is_bf16);
                }
#pragma GCC unroll 4
    for (int j = 0; j < nd; j++) store(out + j * W, (sum[0][j] + sum[1][j]) + (sum[2][j] + sum[3][j]));
}

static INLINE void mix(const float *share, const void *value, int64_t S, int64_t D, float *out, const void *ahead,
                       int is_bf16) {
    int64_t wide = whole(D), left;
    float found[wide];
    for (int64_t j = 0; (left = (wide - j) / W) > 0; j += 4 * W) switch (left) {
        case 1: mix_part(1, share, value, j, S, wide, found + j, ahead, is_bf16); break;
        case 2: mix_part(2, share, value, j, S, wide, found + j, ahead, is_bf16); break;
        case 3: mix_part(3, share, value, j, S, wide, found + j, ahead, is_bf16); break;
        default: mix_part(4, share, value, j, S, wide, found + j, ahead, is_bf16);
        }
    memcpy(out, found, D * sizeof(float));
}

/* Keep key and value of a slot, and mix all values up to it; `ahead`: the keys that are read next. */
static INLINE void attend(const float *q, const float *k, const float *v, void *key, void *value, int64_t slot,
                          int64_t D, float *out, const void *ahead, int is_bf16) {
    keep(k, v, key, value, slot, D, is_bf16);
    int64_t S = slot + 1, blocks = (S + W - 1) / W, b = 0;
    float score[blocks * W];
    for (; b + 4 <= blocks; b += 4) score_blocks(4, q, key, b * D * W, D, score + b * W, value, is_bf16);
    for (; b < blocks; b++) score_blocks(1, q, key, b * D * W, D, score + b * W, value, is_bf16);
    for (int64_t s = S; s < blocks * W; s++) score[s] = -INFINITY;
    vf most = spread(-INFINITY), total = spread(0);
    for (b = 0; b < blocks; b++) most = larger(load(score + b * W), most);
    float top = most_of(most);
    for (b = 0; b < blocks; b++) {
        vf share = exp_of(load(score + b * W) - top);
        total += share;
        store(score + b * W, share);
    }
    float inverse = 1 / sum_of(total);
    for (b = 0; b < blocks; b++) store(score + b * W, load(score + b * W) * inverse);
    mix(score, value, S, D, out, ahead, is_bf16);
}

static void attend_f32(const float *q, const float *k, const float *v, void *key, void *value, int64_t slot, int64_t D,
                       float *out, const void *ahead) {
    attend(q, k, v, key, value, slot, D, out, ahead, 0);
}

static void attend_bf16(const float *q, const float *k, const float *v, void *key, void *value, int64_t slot, int64_t D,
                        float *out, const void *ahead) {
    attend(q, k, v, key, value, slot, D, out, ahead, 1);
}
