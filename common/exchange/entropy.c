/* Entropies of distributions from their logits (common/exchange/entropy.py). */
#include "logits.h"

#define BLOCK 1024 /* codes that are added up in single precision */

/* log Z - E[d], with d = logit - largest and Z the sum of e^d. A code without share adds nothing,
 * and NaN stays. */
void entropies(const float *logit, int64_t N, int64_t V, float *out, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t n = 0; n < N; n++) {
        const float *row = logit + n * V;
        float most = greatest(row, V);
        double total = 0, moment = 0;
        for (int64_t start = 0; start < V; start += BLOCK) {
            vf sum = spread(0), weighted = spread(0);
            for (int64_t v = start; v < start + BLOCK && v < V; v += W) {
                vf below = logits(row, v, V) - most, share = exp_of(below);
                sum += share;
                weighted += where(share != spread(0), share * below);
            }
            total += sum_of(sum);
            moment += sum_of(weighted);
        }
        out[n] = (float)(log(total) - moment / total);
    }
}
