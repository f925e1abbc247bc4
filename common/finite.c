/* Whether none of n numbers has all bits of its exponent set, as NaN and infinities have. */
#include <stdint.h>

#define PIECE 4096 /* numbers that are looked at before anything is decided */

#define FINITE(name, type)                                                       \
    int64_t name(const type *x, int64_t n, type exponent) {                      \
        for (int64_t start = 0; start < n; start += PIECE) {                     \
            int64_t stop = start + PIECE < n ? start + PIECE : n;                \
            type found = 0;                                                      \
            for (int64_t i = start; i < stop; i++)                               \
                found |= (x[i] & exponent) == exponent;                          \
            if (found) return 0;                                                 \
        }                                                                        \
        return 1;                                                                \
    }

FINITE(finite_16, uint16_t)
FINITE(finite_32, uint32_t)
