/* Vectors of a CPU's registers in the dialect that GCC and Clang share. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define W 16 /* floats in a register */
#elif defined(__AVX2__)
#define W 8
#else
#define W 4
#endif
#define INLINE inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef float half_vf __attribute__((vector_size(2 * W), aligned(4), may_alias));
typedef double vd __attribute__((vector_size(4 * W), aligned(8), may_alias));
typedef int64_t vl __attribute__((vector_size(4 * W), aligned(8), may_alias));

typedef uint16_t half_vu __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * W), aligned(4), may_alias));

static INLINE vf spread(float x) { return (vf){0} + x; }
static INLINE vf load(const float *from) { return *(const vf *)from; }
static INLINE void store(float *to, vf x) { *(vf *)to = x; }

/* Numbers of type float, or bfloat16, from the one with this index on. */
static INLINE vf load_as(const void *from, int64_t index, int is_bf16) {
    if (!is_bf16) return load((const float *)from + index);
    return (vf)(__builtin_convertvector(*(const half_vu *)((const uint16_t *)from + index), vu) << 16);
}

static INLINE float widened(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float found;
    memcpy(&found, &bits, 4);
    return found;
}

/* To the nearest bfloat16, of two to the even one; NaN stays NaN. */
static INLINE uint16_t rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* The bits of the nearest bfloat16, of two the even one; of NaN whatever it gives. */
static INLINE vu nearest_bf16(vf x) {
    vu bits = (vu)x;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static INLINE void store_as(void *to, int64_t index, vf x, int is_bf16) {
    if (!is_bf16) {
        store((float *)to + index, x);
        return;
    }
    vu is_nan = (vu)(x != x), nearest = (nearest_bf16(x) & ~is_nan) | (is_nan & 0x7fc0);
    *(half_vu *)((uint16_t *)to + index) = __builtin_convertvector(nearest, half_vu);
}

static INLINE float read_as(const void *from, int64_t index, int is_bf16) {
    return is_bf16 ? widened(((const uint16_t *)from)[index]) : ((const float *)from)[index];
}

static INLINE void write_as(void *to, int64_t index, float x, int is_bf16) {
    if (is_bf16) ((uint16_t *)to)[index] = rounded(x);
    else ((float *)to)[index] = x;
}

static INLINE vf choose(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
static INLINE vf larger(vf a, vf b) { return choose(a > b, a, b); }

static INLINE float sum_of(vf x) {
    float total = 0;
    for (int i = 0; i < W; i++) total += x[i];
    return total;
}

static INLINE float most_of(vf x) {
    float most = x[0];
    for (int i = 1; i < W; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* e^x to two units in the last place (Cephes' polynomial); 0 below -87, NaN stays. */
static INLINE vf exp_of(vf x) {
    vi gone = x < spread(-87.0f);
    x = choose(gone, spread(0), choose(x > spread(88.0f), spread(88.0f), x));
    vf round = spread(12582912.0f), n = x * 1.44269504f + round;
    vi power = (vi)n << 23;
    n -= round;
    x -= n * 0.693359375f;
    x -= n * -2.12194440e-4f;
    vf p = 1.9875691500e-4f * x + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * x * x + x + 1.0f;
    return (vf)(((vi)p + power) & ~gone);
}

/* The same in double precision, by a Taylor series of eleven terms; 0 below -700. */
static INLINE vd exp_of_double(vd x) {
    vl gone = x < -700.0;
    x = (vd)((vl)x & ~gone);
    vd round = (vd){0} + 6755399441055744.0, n = x * 1.4426950408889634 + round;
    vl power = (vl)n << 52;
    n -= round;
    x -= n * 0.693145751953125;
    x -= n * 1.42860682030941723212e-6;
    vd p = x * (1.0 / 39916800) + 1.0 / 3628800;
    p = p * x + 1.0 / 362880;
    p = p * x + 1.0 / 40320;
    p = p * x + 1.0 / 5040;
    p = p * x + 1.0 / 720;
    p = p * x + 1.0 / 120;
    p = p * x + 1.0 / 24;
    p = p * x + 1.0 / 6;
    p = p * x + 0.5;
    p = p * x + 1.0;
    p = p * x + 1.0;
    return (vd)(((vl)p + power) & ~gone);
}

/* ln x of normal numbers to two units in the last place (Cephes' polynomial); NaN stays. */
static INLINE vf log_of(vf x) {
    vf given = x;
    vi bits = (vi)x, power = (bits >> 23) - 126;
    x = (vf)((bits & 0x007fffff) | 0x3f000000); /* in [1/2, 1) */
    vi below = x < spread(0.707106781186547524f);
    power += below;
    x = x - 1 + choose(below, x, spread(0));
    vf n = __builtin_convertvector(power, vf), square = x * x;
    vf p = 7.0376836292e-2f * x - 1.1514610310e-1f;
    p = p * x + 1.1676998740e-1f;
    p = p * x - 1.2420140846e-1f;
    p = p * x + 1.4249322787e-1f;
    p = p * x - 1.6668057665e-1f;
    p = p * x + 2.0000714765e-1f;
    p = p * x - 2.4999993993e-1f;
    p = p * x + 3.3333331174e-1f;
    p = p * x * square - 2.12194440e-4f * n - 0.5f * square;
    return choose(given == given, x + p + 0.693359375f * n, given);
}
