/* Rows of logits of V codes, a register at a time, also where V is no multiple of one. */
#pragma once
#include "vector.h"

#define LOWEST -3e38f /* where maxima begin: finite, so that nothing but -inf adds 0 */

/* W logits from code v on; -inf beyond the last. */
static INLINE vf logits(const float *row, int64_t v, int64_t V) {
    if (v + W <= V) return load(row + v);
    vf found = spread(-INFINITY);
    for (int64_t i = 0; v + i < V; i++) found[i] = row[v + i];
    return found;
}

static INLINE float greatest(const float *row, int64_t V) {
    vf most = spread(LOWEST);
    for (int64_t v = 0; v < V; v += W) most = larger(logits(row, v, V), most);
    return most_of(most);
}

static INLINE vf where(vi mask, vf x) { return (vf)((vi)x & mask); }
