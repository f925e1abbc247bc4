/* Inverse-CDF sampling in double precision from unnormalised logits (rollout/inverse_cdf.py). */
#include "vector.h"

#define BLOCK 256
#define LANES (W / 2)

/* The sum of e^(logit - most), and each of them where there is room for them. */
static double shares(const float *logit, float most, int64_t n, double *each) {
    vd total = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vd share = exp_of_double(__builtin_convertvector(*(const half_vf *)(logit + i), vd) - (double)most);
        if (each) *(vd *)(each + i) = share;
        total += share;
    }
    double sum = 0;
    for (int j = 0; j < LANES; j++) sum += total[j];
    for (; i < n; i++) {
        double above = (double)logit[i] - most, share = above < -700 ? 0 : exp(above);
        if (each) each[i] = share;
        sum += share;
    }
    return sum;
}

static float largest(const float *logit, int64_t V) {
    vf most = spread(-INFINITY);
    int64_t i = 0;
    for (; i + W <= V; i += W) most = larger(load(logit + i), most);
    float found = most_of(most);
    for (; i < V; i++) found = logit[i] > found ? logit[i] : found;
    return found;
}

/* The first code whose cumulated share exceeds noise, and its log-probability; NaN in the logits
 * gives NaN. */
void draw(const float *logit, const double *noise, int64_t R, int64_t V, int64_t *token, float *logprob,
          int64_t threads) {
    int64_t blocks = (V + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < R; r++) {
        const float *row = logit + r * V;
        double sum[blocks], each[BLOCK], total = 0, below = 0;
        float most = largest(row, V);
        for (int64_t b = 0; b < blocks; b++) {
            sum[b] = shares(row + b * BLOCK, most, b < blocks - 1 ? BLOCK : V - b * BLOCK, 0);
            total += sum[b];
        }
        double target = noise[r] * total;
        int64_t b = 0, at = 0;
        while (b < blocks - 1 && !(below + sum[b] > target)) below += sum[b++];
        int64_t n = b < blocks - 1 ? BLOCK : V - b * BLOCK;
        shares(row + b * BLOCK, most, n, each);
        while (at < n - 1 && !((below += each[at]) > target)) at++;
        while (at > 0 && each[at] == 0) at--; /* sums of blocks round otherwise than code by code */
        token[r] = b * BLOCK + at;
        logprob[r] = (float)((double)row[token[r]] - most - log(total));
    }
}
