/* What a layer does between its products, element by element or row by row, with its gradients: the
 * gate of a feed-forward part or its GELU, dropout with the residual sum, root-mean-square norms.
 *
 * Numbers are float32, or bfloat16 that is rounded where it is written and nowhere between. Nothing
 * depends on how many threads there are. */
#include "vector.h"

#define SPAN 8192 /* elements of a thread's turn */
#define ROWS 64   /* of which a weight's gradient is summed up at a time */


static INLINE vf load_part(const void *from, int64_t at, int64_t left, int is_bf16) {
    if (left >= W) return load_as(from, at, is_bf16);
    vf found = spread(0);
    for (int64_t i = 0; i < left; i++) found[i] = read_as(from, at + i, is_bf16);
    return found;
}

static INLINE void store_part(void *to, int64_t at, int64_t left, vf x, int is_bf16) {
    if (left >= W) store_as(to, at, x, is_bf16);
    else
        for (int64_t i = 0; i < left; i++) write_as(to, at + i, x[i], is_bf16);
}

#define EACH_SPAN(count, threads) \
    _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)") \
    for (int64_t start = 0; start < count; start += SPAN)
#define EACH_VECTOR(count) \
    for (int64_t at = start, left; (left = (start + SPAN < count ? start + SPAN : count) - at) > 0; at += W)

/* silu(a) b, and what an upstream gradient makes of both. */
static INLINE void gate_span(const void *a, const void *b, int64_t start, int64_t count, void *out, int is_bf16) {
    EACH_VECTOR(count) {
        vf x = load_part(a, at, left, is_bf16), y = load_part(b, at, left, is_bf16);
        store_part(out, at, left, x / (1 + exp_of(-x)) * y, is_bf16);
    }
}

static INLINE void gate_span_gradient(const void *a, const void *b, const void *upstream, int64_t start, int64_t count,
                                      void *a_grad, void *b_grad, int is_bf16) {
    EACH_VECTOR(count) {
        vf x = load_part(a, at, left, is_bf16), y = load_part(b, at, left, is_bf16);
        vf g = load_part(upstream, at, left, is_bf16), share = 1 / (1 + exp_of(-x));
        store_part(a_grad, at, left, g * y * share * (1 + x * (1 - share)), is_bf16);
        store_part(b_grad, at, left, g * x * share, is_bf16);
    }
}

void gate(const void *a, const void *b, int64_t count, int64_t is_bf16, int64_t threads, void *out) {
    EACH_SPAN(count, threads) {
        if (is_bf16) gate_span(a, b, start, count, out, 1);
        else gate_span(a, b, start, count, out, 0);
    }
}

void gate_gradient(const void *a, const void *b, const void *upstream, int64_t count, int64_t is_bf16, int64_t threads,
                   void *a_grad, void *b_grad) {
    EACH_SPAN(count, threads) {
        if (is_bf16) gate_span_gradient(a, b, upstream, start, count, a_grad, b_grad, 1);
        else gate_span_gradient(a, b, upstream, start, count, a_grad, b_grad, 0);
    }
}

/* x by the share 1 / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is GELU with tanh
 * (Hendrycks and Gimpel 2016); and what an upstream gradient makes of it. */
#define SLOPE 1.5957691216f
#define BEND 0.044715f

static INLINE vf gelu_power(vf x) { return exp_of(-SLOPE * x * (1 + BEND * x * x)); } /* e^-2u */

static INLINE void gelu_span(const void *x, int64_t start, int64_t count, void *out, int is_bf16) {
    EACH_VECTOR(count) {
        vf given = load_part(x, at, left, is_bf16);
        store_part(out, at, left, given / (1 + gelu_power(given)), is_bf16);
    }
}

static INLINE void gelu_span_gradient(const void *x, const void *upstream, int64_t start, int64_t count, void *x_grad,
                                      int is_bf16) {
    EACH_VECTOR(count) {
        vf given = load_part(x, at, left, is_bf16);
        given = choose(given < spread(-16), spread(-16), choose(given > spread(16), spread(16), given)); /* 0 and 1 */
        vf power = gelu_power(given), share = 1 / (1 + power), rest = power * share;
        vf slope = share * (1 + SLOPE * given * rest * (1 + 3 * BEND * given * given));
        store_part(x_grad, at, left, load_part(upstream, at, left, is_bf16) * slope, is_bf16);
    }
}

void gelu(const void *x, int64_t count, int64_t is_bf16, int64_t threads, void *out) {
    EACH_SPAN(count, threads) {
        if (is_bf16) gelu_span(x, start, count, out, 1);
        else gelu_span(x, start, count, out, 0);
    }
}

void gelu_gradient(const void *x, const void *upstream, int64_t count, int64_t is_bf16, int64_t threads,
                   void *x_grad) {
    EACH_SPAN(count, threads) {
        if (is_bf16) gelu_span_gradient(x, upstream, start, count, x_grad, 1);
        else gelu_span_gradient(x, upstream, start, count, x_grad, 0);
    }
}

typedef uint64_t vw __attribute__((vector_size(4 * W), aligned(4), may_alias));

/* W draws of 32 bits: those from 2 i on are halves of SplitMix64's number i (Steele, Lea and Flood
 * 2014), so that an element's draw is a function of seed and place alone. */
static INLINE vu drawn(uint64_t seed, int64_t at) {
    vw x;
    for (int i = 0; i < W / 2; i++) x[i] = at / 2 + i + 1;
    x = x * 0x9e3779b97f4a7c15u + seed;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (vu)(x ^ x >> 31);
}

/* Factors of W elements from one on whose place is even: 0, or `scale`. */
static INLINE vf kept(uint64_t seed, int64_t at, uint32_t dropped, float scale) {
    return (vf)((vi)(drawn(seed, at) >= dropped) & (vi)spread(scale));
}

static INLINE void drop_span(const void *x, const float *onto, int64_t start, int64_t count, uint64_t seed,
                             uint32_t dropped, float scale, void *out, int is_bf16, int out_is_bf16) {
    EACH_VECTOR(count) {
        vf y = load_part(x, at, left, is_bf16) * kept(seed, at, dropped, scale);
        if (onto) y += load_part(onto, at, left, 0);
        store_part(out, at, left, y, out_is_bf16);
    }
}

/* onto + x times the kept ones' scale; `onto` may be missing. The gradient in x is the same of the
 * upstream one, in x's type. */
void drop(const void *x, const float *onto, int64_t count, int64_t seed, int64_t dropped, float scale, int64_t is_bf16,
          int64_t out_is_bf16, int64_t threads, void *out) {
    EACH_SPAN(count, threads) {
#define OPERANDS x, onto, start, count, (uint64_t)seed, (uint32_t)dropped, scale, out
        if (is_bf16 && out_is_bf16) drop_span(OPERANDS, 1, 1);
        else if (is_bf16) drop_span(OPERANDS, 1, 0);
        else if (out_is_bf16) drop_span(OPERANDS, 0, 1);
        else drop_span(OPERANDS, 0, 0);
    }
}

static float dot(const float *a, const float *b, int64_t C) {
    vf sum[2] = {spread(0), spread(0)};
    int64_t c = 0;
    for (; c + 2 * W <= C; c += 2 * W)
        for (int u = 0; u < 2; u++) sum[u] += load(a + c + u * W) * load(b + c + u * W);
    for (; c < C; c += W) sum[0] += load_part(a, c, C - c, 0) * load_part(b, c, C - c, 0);
    return sum_of(sum[0] + sum[1]);
}

/* x over its root mean square, times the weight; that root's inverse is kept. */
void norm(const float *x, const float *weight, int64_t rows, int64_t C, float eps, int64_t threads, float *out,
          float *inverse) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < rows; r++) {
        const float *from = x + r * C;
        float scale = inverse[r] = 1 / sqrtf(dot(from, from, C) / C + eps);
        for (int64_t c = 0; c < C; c += W)
            store_part(out + r * C, c, C - c, load_part(from, c, C - c, 0) * scale * load_part(weight, c, C - c, 0), 0);
    }
}

/* Gradients in x, and in the weight as sums of ROWS rows each: (rows / ROWS, C). */
void norm_gradient(const float *x, const float *weight, const float *inverse, const float *upstream, int64_t rows,
                   int64_t C, int64_t threads, float *x_grad, float *weight_grads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < (rows + ROWS - 1) / ROWS; block++) {
        float *total = weight_grads + block * C;
        memset(total, 0, C * sizeof(float));
        for (int64_t r = block * ROWS; r < rows && r < (block + 1) * ROWS; r++) {
            const float *from = x + r * C, *g = upstream + r * C;
            float *to = x_grad + r * C, scale = inverse[r];
            for (int64_t c = 0; c < C; c += W) {
                vf by = load_part(g, c, C - c, 0), whole = load_part(from, c, C - c, 0) * scale;
                store_part(to, c, C - c, by * load_part(weight, c, C - c, 0), 0);
                store_part(total, c, C - c, load_part(total, c, C - c, 0) + by * whole, 0);
            }
            float along = dot(to, from, C) / C * scale * scale;
            for (int64_t c = 0; c < C; c += W) {
                vf found = load_part(to, c, C - c, 0) - load_part(from, c, C - c, 0) * along;
                store_part(to, c, C - c, found * scale, 0);
            }
        }
    }
}

int64_t summed_rows(void) { return ROWS; }
