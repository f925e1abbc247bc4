/* Divergences, cluster sums and their gradients from logits, row by row: loss_kernels.py has the
 * same for a GPU, learner/analytic.py the formulas. N tokens, V codes, C clusters. */
#include "logits.h"

#include <stdlib.h>

#define TINY 1.17549435e-38f
#define BLOCK 1024        /* codes that are added up in single precision */

enum { FKL, RKL, MIX, TVD, JSD, SKL, SRKL };

static INLINE void write(float *row, int64_t v, int64_t V, vf x) {
    if (v + W <= V) store(row + v, x);
    else
        for (int64_t i = 0; v + i < V; i++) row[v + i] = x[i];
}

static float log_total(const float *row, int64_t V) {
    float most = greatest(row, V);
    double total = 0;
    for (int64_t start = 0; start < V; start += BLOCK) {
        vf sum = spread(0);
        for (int64_t v = start; v < start + BLOCK && v < V; v += W) sum += exp_of(logits(row, v, V) - most);
        total += sum_of(sum);
    }
    return most + (float)log(total);
}

/* What each code adds to the divergence, and its derivative in log q. */
static INLINE void terms(int kind, vf log_q, vf log_p, float share, vf *term, vf *slope, vf *of_q) {
    vf q = exp_of(log_q), p = exp_of(log_p), none = spread(0), m;
    vi some_q = q != none, some_p = p != none; /* NaN is some */
    vf forward = where(some_p, p * (log_p - log_q)), ratio = where(some_q, log_q - log_p);
    switch (kind) {
    case FKL: *term = forward; *slope = -p; break;
    case RKL: *term = q * ratio; *slope = q * (ratio + 1); break;
    case MIX:
        *term = share * q * ratio + (1 - share) * forward;
        *slope = share * q * (ratio + 1) - (1 - share) * p;
        break;
    case TVD: {
        vf apart = q - p;
        vi negative = (vi)apart & INT32_MIN;
        *term = 0.5f * (vf)((vi)apart & INT32_MAX);
        *slope = 0.5f * where(apart != none, (vf)((vi)q | negative));
        break;
    }
    case JSD: {
        m = log_of(larger(spread(TINY), share * p + (1 - share) * q));
        vf below = (1 - share) * where(some_q, q * (log_q - m));
        *term = share * where(some_p, p * (log_p - m)) + below;
        *slope = below;
        break;
    }
    case SKL:
        m = larger(spread(TINY), share * p + (1 - share) * q);
        *term = where(some_p, p * (log_p - log_of(m)));
        *slope = (share - 1) * q * p / m;
        break;
    default:
        m = larger(spread(TINY), (1 - share) * p + share * q);
        *term = where(some_q, q * (log_q - log_of(m)));
        *slope = *term + q * (1 - share * q / m);
    }
    *of_q = q;
}

typedef struct {
    const float *student, *teacher;
    int64_t tokens, codes, student_stride, teacher_stride, threads;
    float share;
} Pair;

static INLINE void row_value(int kind, const float *student, const float *teacher, int64_t V, float share, float *loss,
                             float *total) {
    float norm_q = log_total(student, V), norm_p = log_total(teacher, V);
    double value = 0, slopes = 0;
    for (int64_t start = 0; start < V; start += BLOCK) {
        vf values = spread(0), sums = spread(0), term, slope, q;
        for (int64_t v = start; v < start + BLOCK && v < V; v += W) {
            terms(kind, logits(student, v, V) - norm_q, logits(teacher, v, V) - norm_p, share, &term, &slope, &q);
            values += term;
            sums += slope;
        }
        value += sum_of(values);
        slopes += sum_of(sums);
    }
    *loss = (float)value;
    total[0] = norm_q;
    total[1] = norm_p;
    total[2] = (float)slopes;
}

static INLINE void row_gradient(int kind, const float *student, const float *teacher, int64_t V, float share,
                                const float *total, float upstream, float *out) {
    for (int64_t v = 0; v < V; v += W) {
        vf term, slope, q;
        terms(kind, logits(student, v, V) - total[0], logits(teacher, v, V) - total[1], share, &term, &slope, &q);
        write(out, v, V, (slope - q * total[2]) * upstream);
    }
}

#define CASE(kind, call) case kind: call(kind, OPERANDS); break;
#define EVERY(call) \
    CASE(FKL, call) CASE(RKL, call) CASE(MIX, call) CASE(TVD, call) CASE(JSD, call) CASE(SKL, call) CASE(SRKL, call)

/* loss (N), and what the gradient needs: both logsumexps and the sum of slopes (N, 3). */
void divergences(const Pair *of, int64_t kind, float *loss, float *total) {
    int64_t V = of->codes;
#pragma omp parallel for schedule(static) num_threads(of->threads) if (of->threads > 1)
    for (int64_t n = 0; n < of->tokens; n++) {
        const float *student = of->student + n * of->student_stride, *teacher = of->teacher + n * of->teacher_stride;
#define OPERANDS student, teacher, V, of->share, loss + n, total + 3 * n
        switch (kind) { EVERY(row_value) }
#undef OPERANDS
    }
}

/* (slope - q * sum of slopes) * upstream, through the softmax to the student's logits. */
void divergence_gradients(const Pair *of, int64_t kind, const float *total, const float *upstream, float *out) {
    int64_t V = of->codes;
#pragma omp parallel for schedule(static) num_threads(of->threads) if (of->threads > 1)
    for (int64_t n = 0; n < of->tokens; n++) {
        const float *student = of->student + n * of->student_stride, *teacher = of->teacher + n * of->teacher_stride;
#define OPERANDS student, teacher, V, of->share, total + 3 * n, upstream[n], out + n * V
        switch (kind) { EVERY(row_gradient) }
#undef OPERANDS
    }
}

typedef struct {
    const float *logit;
    const int64_t *cluster;
    int64_t tokens, codes, clusters, stride, threads;
} Clustered;

/* Each cluster's sum of exp(logit - the row's greatest), (N, C), and the greatest. */
void cluster_totals(const Clustered *of, float *total, float *most) {
    int64_t V = of->codes;
#pragma omp parallel for schedule(static) num_threads(of->threads) if (of->threads > 1)
    for (int64_t n = 0; n < of->tokens; n++) {
        const float *row = of->logit + n * of->stride;
        float *to = total + n * of->clusters, each[W];
        double *sum = calloc(of->clusters, sizeof(double)); /* a cluster may have thousands of codes */
        most[n] = sum ? greatest(row, V) : NAN;
        if (!sum) { /* no memory: what is no number is summed otherwise (fused.py) */
            for (int64_t c = 0; c < of->clusters; c++) to[c] = NAN;
            continue;
        }
        for (int64_t v = 0; v < V; v += W) {
            store(each, exp_of(logits(row, v, V) - most[n]));
            for (int64_t i = 0; i < W && v + i < V; i++) sum[of->cluster[v + i]] += each[i];
        }
        for (int64_t c = 0; c < of->clusters; c++) to[c] = (float)sum[c];
        free(sum);
    }
}

/* A code's share of its cluster, times the derivative in the cluster's logarithm; `factor` has room
 * for C numbers of each thread's rows, and is upstream / total afterwards. */
void cluster_gradients(const Clustered *of, const float *total, const float *most, float *factor, float *out) {
    int64_t V = of->codes, C = of->clusters;
#pragma omp parallel for schedule(static) num_threads(of->threads) if (of->threads > 1)
    for (int64_t n = 0; n < of->tokens; n++) {
        const float *row = of->logit + n * of->stride;
        float *to = out + n * V, *own = factor + n * C;
        for (int64_t c = 0; c < C; c++) own[c] /= total[n * C + c];
        for (int64_t v = 0; v < V; v += W) {
            vf factors = spread(0);
            for (int64_t i = 0; i < W && v + i < V; i++) factors[i] = own[of->cluster[v + i]];
            write(to, v, V, exp_of(logits(row, v, V) - most[n]) * factors);
        }
    }
}
