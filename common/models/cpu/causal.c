/* Causal attention over whole sequences, from the fused projection on: queries and keys are turned,
 * mixed and, for the gradient, turned back. B sequences, n slots, H heads of D channels.
 *
 * A head's numbers do not depend on the others' or on how many threads there are. Sums are float32. */
#include "tiles.h"

#define BLOCK (8 * ROWS) /* queries whose shares of a panel are held at a time */
#define AHEAD 12         /* rows */

typedef struct {
    const void *fused;  /* (B, n, 3, H, D) */
    const float *turn;  /* (n, D / 2, 2) */
    int64_t B, n, H, D, is_bf16, threads;
} Pass;

/* A row that is read soon lies far from the last one, so that the processor does not foresee it. */
static INLINE void fetch(const void *from, int64_t at, int64_t D, int64_t is_bf16) {
    const char *line = (const char *)from + at * (is_bf16 ? 2 : 4), *end = line + D * (is_bf16 ? 2 : 4);
    for (; line < end; line += 64) __builtin_prefetch(line);
}

/* Pairs x (even, odd) by pairs t (cos, sin) as complex numbers, or by their conjugates. */
static INLINE vf turned(vf x, vf t, float sign) {
    vf odd = ZIPPED(spread(-sign), spread(sign), LOWER);
    return x * ZIPPED(t, t, EVENS) + ZIPPED(x, x, SWAPPED) * (ZIPPED(t, t, ODDS) * odd);
}

/* Row `at` of some tensor into registers' rows, turned if there are angles, and scaled. */
static INLINE void take_row(const void *from, int64_t at, const float *turn, float scale, int64_t D, int64_t wide,
                            float *restrict to, int is_bf16) {
    int64_t d = 0;
    for (; d + W <= D; d += W) {
        vf x = load_as(from, at + d, is_bf16);
        if (turn) x = scale * turned(x, load(turn + d), 1);
        store(to + d, x);
    }
    for (; d < D; d += 2) {
        float even = read_as(from, at + d, is_bf16), odd = read_as(from, at + d + 1, is_bf16);
        to[d] = turn ? scale * (even * turn[d] - odd * turn[d + 1]) : even;
        to[d + 1] = turn ? scale * (even * turn[d + 1] + odd * turn[d]) : odd;
    }
    for (; d < wide; d++) to[d] = 0;
}

/* The gradient before turning: by the conjugate, which for no angle at all is 0 too. */
static INLINE void give_row(const float *from, const float *turn, float scale, int64_t D, void *to, int64_t at,
                            int is_bf16) {
    int64_t d = 0;
    for (; d + W <= D; d += W) {
        vf x = load(from + d);
        if (turn) x = scale * turned(x, load(turn + d), -1);
        store_as(to, at + d, x, is_bf16);
    }
    for (; d < D; d += 2) {
        float even = from[d], odd = from[d + 1];
        write_as(to, at + d, turn ? scale * (even * turn[d] + odd * turn[d + 1]) : even, is_bf16);
        write_as(to, at + d + 1, turn ? scale * (odd * turn[d] - even * turn[d + 1]) : odd, is_bf16);
    }
}

/* Part 0, 1 or 2 of a head (queries, keys, values), with zeros up to a whole panel. */
static void take(const Pass *of, int64_t b, int64_t h, int64_t part, float scale, int64_t rows, float *to) {
    int64_t C = of->H * of->D, D = of->D, wide = padded(D);
    for (int64_t i = 0; i < of->n; i++) {
        int64_t at = ((b * of->n + i) * 3 + part) * C + h * D;
        const float *turn = part < 2 ? of->turn + i * D : 0;
        if (i + AHEAD < of->n) fetch(of->fused, at + AHEAD * 3 * C, D, of->is_bf16);
        if (of->is_bf16) take_row(of->fused, at, turn, scale, D, wide, to + i * wide, 1);
        else take_row(of->fused, at, turn, scale, D, wide, to + i * wide, 0);
    }
    memset(to + of->n * wide, 0, (rows - of->n) * wide * sizeof(float));
}

static int registers(int64_t columns) { return (int)least(MOST, (columns + W - 1) / W); }
static int64_t whole_panels(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

/* out (rows, wide) = or += a (rows, K) by b (K, wide). */
static void mix_rows(int rows, const float *a, int64_t ra, const float *b, int64_t wide, int64_t K, float *out,
                     int add) {
    for (int64_t d = 0; d < wide; d += PANEL)
        by_rows(rows, registers(wide - d), a, ra, b + d, wide, K, out + d, wide, add);
}

/* Scores of the first `seen` slots to shares, zeros up to `end`; returns the log of their sum. */
static float share_out(float *score, int64_t seen, int64_t end) {
    vf most = spread(-INFINITY), total = spread(0);
    int64_t last = (seen - 1) / W * W;
    store(score + last, choose((vi){LANES} < (int32_t)(seen - last), load(score + last), most));
    for (int64_t s = 0; s < seen; s += W) most = larger(load(score + s), most);
    float top = folded_most(most);
    for (int64_t s = 0; s < seen; s += W) {
        vf share = exp_of(load(score + s) - top);
        total += share;
        store(score + s, share);
    }
    for (int64_t s = padded(seen); s < end; s++) score[s] = 0;
    float sum = folded_sum(total), inverse = 1 / sum;
    for (int64_t s = 0; s < seen; s += W) store(score + s, load(score + s) * inverse);
    return top + logf(sum);
}

/* One head: q, values (rows, wide), panels of keys; room for ROWS rows of scores and a tile. */
static void attend_head(const Pass *of, int64_t b, int64_t h, float *room, void *out, float *logsum) {
    int64_t n = of->n, D = of->D, wide = padded(D), rows = whole_panels(n), C = of->H * D;
    float *q = room, *v = q + rows * wide, *panels = v + rows * wide, *score = panels + rows * wide;
    float *mixed = score + ROWS * rows;
    take(of, b, h, 1, 1, rows, v);
    panels_of(v, n, wide, panels);
    take(of, b, h, 0, 1 / sqrtf((float)D), rows, q);
    take(of, b, h, 2, 1, rows, v);
    for (int64_t i = 0; i < n; i += ROWS) {
        int64_t count = least(ROWS, n - i), seen = i + count;
        for (int64_t s = 0; s < seen; s += PANEL)
            by_panel((int)count, registers(seen - s), q + i * wide, wide, panels + s * wide, D, score + s, rows);
        for (int64_t r = 0; r < count; r++) logsum[i + r] = share_out(score + r * rows, i + r + 1, padded(seen));
        mix_rows((int)count, score, rows, v, wide, seen, mixed, 0);
        for (int64_t r = 0; r < count; r++) {
            int64_t at = (b * n + i + r) * C + h * D;
            if (of->is_bf16) give_row(mixed + r * wide, 0, 1, D, out, at, 1);
            else give_row(mixed + r * wide, 0, 1, D, out, at, 0);
        }
    }
}

typedef struct {
    float *q, *k, *key_panels, *value_panels, *g, *q_grad, *k_grad, *v_grad, *along, *share, *slope;
} Room;

static int64_t backward_floats(int64_t n, int64_t D) {
    return 8 * whole_panels(n) * padded(D) + whole_panels(n) + 2 * BLOCK * PANEL;
}

static Room laid_out(float *at, int64_t n, int64_t D) {
    int64_t size = whole_panels(n) * padded(D);
    Room found = {at, at + size, at + 2 * size, at + 3 * size, at + 4 * size, at + 5 * size, at + 6 * size,
                  at + 7 * size, at + 8 * size, at + 8 * size + whole_panels(n)};
    found.slope = found.share + BLOCK * PANEL;
    return found;
}

/* Shares of the panel from slot s on, and the slopes of their scores, for `count` queries from i. */
static void slopes(const Room *room, const float *logsum, int64_t i, int count, int64_t s, int64_t D, float *share,
                   float *slope) {
    int64_t wide = padded(D);
    int nv = registers(i + count - s);
    by_panel(count, nv, room->q + i * wide, wide, room->key_panels + s * wide, D, share, PANEL);
    by_panel(count, nv, room->g + i * wide, wide, room->value_panels + s * wide, D, slope, PANEL);
    for (int r = 0; r < count; r++, share += PANEL, slope += PANEL)
        for (int j = 0; j < MOST; j++) {
            int64_t seen = i + r + 1 - s - j * W;
            if (seen <= 0) {
                store(share + j * W, spread(0));
                store(slope + j * W, spread(0));
                continue;
            }
            vf p = exp_of(load(share + j * W) - logsum[i + r]), by = load(slope + j * W) - room->along[i + r];
            vf both = p * by;
            if (seen < W) p = first_of(p, seen), both = first_of(both, seen);
            store(share + j * W, p);
            store(slope + j * W, both);
        }
}

/* What the queries of a block make of a panel's keys and values. */
static void block_by_panel(const Pass *of, const Room *room, const float *logsum, int64_t start, int64_t stop,
                           int64_t s) {
    int64_t D = of->D, wide = padded(D), from = start > s ? start : s, keys = least(PANEL, stop - s);
    for (int64_t i = from; i < stop; i += ROWS) {
        int count = (int)least(ROWS, stop - i);
        float *share = room->share + (i - from) * PANEL, *slope = room->slope + (i - from) * PANEL;
        slopes(room, logsum, i, count, s, D, share, slope);
        int64_t seen = least(PANEL, i + count - s);
        mix_rows(count, slope, PANEL, room->k + s * wide, wide, seen, room->q_grad + i * wide, 1);
    }
    for (int64_t k = 0; k < keys; k += ROWS) {
        int64_t first = s + k > from ? s + k : from, skipped = (first - from) * PANEL + k;
        int count = (int)least(ROWS, keys - k);
        for (int64_t d = 0; d < wide; d += PANEL) {
            int nv = registers(wide - d);
            by_columns(count, nv, room->slope + skipped, room->q + first * wide + d, wide, stop - first,
                       room->k_grad + (s + k) * wide + d, wide);
            by_columns(count, nv, room->share + skipped, room->g + first * wide + d, wide, stop - first,
                       room->v_grad + (s + k) * wide + d, wide);
        }
    }
}

static INLINE void take_gradients(const Pass *of, int64_t b, int64_t h, const void *out, const void *grad, Room *room,
                                  int is_bf16) {
    int64_t D = of->D, wide = padded(D), C = of->H * D;
    for (int64_t i = 0; i < of->n; i++) {
        int64_t at = (b * of->n + i) * C + h * D;
        float *g = room->g + i * wide, along = 0;
        if (i + AHEAD < of->n) {
            fetch(out, at + AHEAD * C, D, is_bf16);
            fetch(grad, at + AHEAD * C, D, is_bf16);
        }
        take_row(grad, at, 0, 1, D, wide, g, is_bf16);
        vf sum = spread(0);
        int64_t d = 0;
        for (; d + W <= D; d += W) sum += load(g + d) * load_as(out, at + d, is_bf16);
        for (; d < D; d++) along += g[d] * read_as(out, at + d, is_bf16);
        room->along[i] = along + folded_sum(sum);
    }
}

static INLINE void give_gradients(const Pass *of, int64_t b, int64_t h, const Room *room, void *to, int is_bf16) {
    int64_t D = of->D, wide = padded(D), C = of->H * D;
    for (int64_t i = 0; i < of->n; i++) {
        int64_t at = (b * of->n + i) * 3 * C + h * D;
        const float *turn = of->turn + i * D;
        give_row(room->q_grad + i * wide, turn, 1 / sqrtf((float)D), D, to, at, is_bf16);
        give_row(room->k_grad + i * wide, turn, 1, D, to, at + C, is_bf16);
        give_row(room->v_grad + i * wide, 0, 1, D, to, at + 2 * C, is_bf16);
    }
}

static void differentiate_head(const Pass *of, int64_t b, int64_t h, float *at, const void *out, const float *logsum,
                               const void *grad, void *fused_grad) {
    int64_t n = of->n, D = of->D, wide = padded(D), rows = whole_panels(n);
    Room room = laid_out(at, n, D);
    take(of, b, h, 2, 1, rows, room.k);
    panels_of(room.k, n, wide, room.value_panels);
    take(of, b, h, 1, 1, rows, room.k);
    panels_of(room.k, n, wide, room.key_panels);
    take(of, b, h, 0, 1 / sqrtf((float)D), rows, room.q);
    if (of->is_bf16) take_gradients(of, b, h, out, grad, &room, 1);
    else take_gradients(of, b, h, out, grad, &room, 0);
    memset(room.q_grad, 0, 3 * rows * wide * sizeof(float));
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t stop = least(n, start + BLOCK);
        for (int64_t s = 0; s < stop; s += PANEL) block_by_panel(of, &room, logsum, start, stop, s);
    }
    if (of->is_bf16) give_gradients(of, b, h, &room, fused_grad, 1);
    else give_gradients(of, b, h, &room, fused_grad, 0);
}

/* Mixed values (B, n, H, D) and the logs of the sums of exponentials (B, H, n); 0 without memory. */
int64_t causal_forward(const Pass *of, void *out, float *logsum) {
    int64_t rows = whole_panels(of->n), wide = padded(of->D), pairs = of->B * of->H, done = 1;
#pragma omp parallel num_threads(of->threads) if (of->threads > 1)
    {
        float *room = room_of(3 * rows * wide + ROWS * (rows + wide));
#pragma omp for schedule(static)
        for (int64_t p = 0; p < pairs; p++) {
            if (room) attend_head(of, p / of->H, p % of->H, room, out, logsum + p * of->n);
            else __atomic_store_n(&done, 0, __ATOMIC_RELAXED);
        }
        free(room);
    }
    return done;
}

/* Gradient in `fused` from that in the mixed values. */
int64_t causal_backward(const Pass *of, const void *out, const float *logsum, const void *grad, void *fused_grad) {
    int64_t pairs = of->B * of->H, done = 1;
#pragma omp parallel num_threads(of->threads) if (of->threads > 1)
    {
        float *room = room_of(backward_floats(of->n, of->D));
#pragma omp for schedule(static)
        for (int64_t p = 0; p < pairs; p++) {
            int64_t b = p / of->H, h = p % of->H;
            if (room) differentiate_head(of, b, h, room, out, logsum + p * of->n, grad, fused_grad);
            else __atomic_store_n(&done, 0, __ATOMIC_RELAXED);
        }
        free(room);
    }
    return done;
}
