/* One token a row through the layers of a LlamaGen (docs/backbones.md, "LlamaGen layers").
 *
 * R rows, C width, H heads of D channels, I feed-forward width, V codes. Sums are float32; in
 * bfloat16 the factors of products are rounded, and what is cached, and nothing else. */
#include "attention.h"
#include "products.h"

typedef struct {
    const float *attention_norm, *ffn_norm;
    const void *wqkv, *wo, *w13, *w2; /* packed */
    void *key, *value;                /* (R, H, capacity / W, D, W) and (R, H, capacity, whole(D)) */
} Layer;

typedef struct {
    int64_t width, heads, inner, vocab, depth, capacity, is_bf16;
    float eps;
    const float *turn, *norm; /* (slots, D / 2, 2) */
    const void *head;
    const Layer *layers;
} Model;

typedef struct {
    float *x, *h, *fused; /* (R, C), (R, max(C, I)), (R, max(3 C, 2 I)) */
    uint16_t *rounded;    /* as h, in bfloat16 */
} Scratch;

int64_t register_floats(void) { return W; }

int64_t multiplies_bf16(void) {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}

void pack(const void *weight, int64_t E, int64_t C, void *out, int64_t is_bf16) {
    if (is_bf16) pack_bf16(weight, E, C, out);
    else pack_f32(weight, E, C, out);
}

static void embed(const Model *m, const void *table, const int64_t *id, int64_t R, float *x) {
    int64_t C = m->width;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < R; r++)
        for (int64_t c = 0; c < C; c++)
            x[r * C + c] = m->is_bf16 ? widened(((const uint16_t *)table)[id[r] * C + c])
                                      : ((const float *)table)[id[r] * C + c];
}

static void norm_rows(const Model *m, const float *weight, int64_t R, const float *x, float *out) {
    int64_t C = m->width;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < R; r++) {
        const float *row = x + r * C;
        vf squares = spread(0);
        int64_t c = 0;
        for (; c + W <= C; c += W) squares += load(row + c) * load(row + c);
        float total = sum_of(squares);
        for (; c < C; c++) total += row[c] * row[c];
        float scale = 1 / sqrtf(total / C + m->eps);
        for (c = 0; c < C; c++) out[r * C + c] = row[c] * scale * weight[c];
    }
}

/* out (+)= h w, of R rows by C channels. */
static void project(const Model *m, const Scratch *s, int64_t R, int64_t C, const void *weight, int64_t E, float *out,
                    int add) {
    if (!m->is_bf16) {
        multiply(s->h, R, C, weight, E, out, add, 0);
        return;
    }
#pragma omp for schedule(static)
    for (int64_t r = 0; r < R; r++)
        for (int64_t c = 0; c < C; c++) s->rounded[r * C + c] = rounded(s->h[r * C + c]);
    multiply(s->rounded, R, C, weight, E, out, add, 1);
}

static INLINE void turn_pairs(float *x, const float *turn, int64_t D) {
    for (int64_t d = 0; d < D; d += 2) {
        float even = x[d], odd = x[d + 1];
        x[d] = even * turn[d] - odd * turn[d + 1];
        x[d + 1] = even * turn[d + 1] + odd * turn[d];
    }
}

static void mix_heads(const Model *m, const Layer *layer, const Scratch *s, int64_t R, int64_t slot) {
    int64_t C = m->width, H = m->heads, D = C / H, S = m->capacity;
    const float *turn = m->turn + slot * D;
#pragma omp for collapse(2) schedule(static)
    for (int64_t r = 0; r < R; r++)
        for (int64_t h = 0; h < H; h++) {
            float *q = s->fused + r * 3 * C + h * D, *k = q + C, *v = k + C;
            int64_t at = (r * H + h) * S, size = m->is_bf16 ? 2 : 4;
            char *key = (char *)layer->key + at * D * size, *value = (char *)layer->value + at * whole(D) * size;
            turn_pairs(q, turn, D);
            turn_pairs(k, turn, D);
            (m->is_bf16 ? attend_bf16 : attend_f32)(q, k, v, key, value, slot, D, s->h + r * C + h * D,
                                                    key + S * D * size);
        }
}

static void gate_rows(const Model *m, const Scratch *s, int64_t R) {
    int64_t I = m->inner;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < R; r++) {
        const float *a = s->fused + r * 2 * I, *b = a + I;
        float *out = s->h + r * I;
        int64_t i = 0;
        for (; i + W <= I; i += W) store(out + i, load(a + i) / (1 + exp_of(-load(a + i))) * load(b + i));
        for (; i < I; i++) out[i] = a[i] / (1 + expf(-a[i])) * b[i];
    }
}

/* logit (R, V) after feeding these rows of a table, of the weights' type, at this slot, where their
 * keys and values are kept; 0, and nothing was done, where the table has no such row. */
int64_t token_step(const Model *m, const void *table, int64_t table_rows, const int64_t *id, int64_t R, int64_t slot,
                   const Scratch *s, float *logit, int64_t threads) {
    int64_t C = m->width, I = m->inner;
    for (int64_t r = 0; r < R; r++)
        if (id[r] < 0 || id[r] >= table_rows) return 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        embed(m, table, id, R, s->x);
        for (int64_t depth = 0; depth < m->depth; depth++) {
            const Layer *layer = m->layers + depth;
            norm_rows(m, layer->attention_norm, R, s->x, s->h);
            project(m, s, R, C, layer->wqkv, 3 * C, s->fused, 0);
            mix_heads(m, layer, s, R, slot);
            project(m, s, R, C, layer->wo, C, s->x, 1);
            norm_rows(m, layer->ffn_norm, R, s->x, s->h);
            project(m, s, R, C, layer->w13, 2 * I, s->fused, 0);
            gate_rows(m, s, R);
            project(m, s, R, I, layer->w2, C, s->x, 1);
        }
        norm_rows(m, m->norm, R, s->x, s->h);
        project(m, s, R, C, m->head, m->vocab, logit, 0);
    }
    return 1;
}
