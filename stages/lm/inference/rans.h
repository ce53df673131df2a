/* Decoder and encoder of the entropy-coded weights: interleaved rANS (Duda 2013, Giesen 2014), see rans.py.

   The stream in a quantized file; numbers are little-endian:

     | table of array 0 | table of array 1 | ... | lane states | words |

     table        | first symbol, u8 | last symbol, u8 | count of each from first to last, u16 |
                    the counts of a table sum to 2^14: how many of its slots a symbol owns
     lane states  | lane 0, u32 | lane 1, u32 | ... |
     words        | u16 | u16 | ... |   in the order in which the decoder takes them

   Symbol i of every array is decoded by lane i mod lanes. A lane whose state falls below 2^16 takes
   the next word; after the last symbol every state is 2^16 again and no word is left. */

#define RANS_TABLE (1 << 14)
#define RANS_LOW (1u << 16)

/* Decodes one array of `size` symbols, of which each owns `counts` of the RANS_TABLE slots, and
   updates the states of `lanes` lanes. `next` is the first word not taken yet; returns the new
   `next`, or `end + 1` if there are fewer than `end` words. */
static int64_t decode_array(uint8_t *restrict symbols, int64_t size, const uint32_t *counts,
                            uint32_t *restrict states, int32_t lanes, const uint16_t *words,
                            int64_t next, int64_t end) {
    uint8_t symbol_of[RANS_TABLE];
    uint32_t step_of[256]; /* count << 16 | slots of the symbols before it */
    for (uint32_t symbol = 0, slot = 0; symbol < 256; slot += counts[symbol++]) {
        memset(symbol_of + slot, symbol, counts[symbol]);
        step_of[symbol] = counts[symbol] << 16 | slot;
    }
#ifdef __AVX2__
    uint8_t orders[256][8]; /* by a mask of empty lanes: which of the next words each takes */
    for (int mask = 0; mask < 256; mask++)
        for (int i = 0, taken = 0; i < 8; taken += mask >> i++ & 1) orders[mask][i] = taken;
#endif
    for (; size > 0; size -= lanes, symbols += lanes) {
        int count = size < lanes ? (int)size : lanes, i = 0;
#ifdef __AVX2__
        int whole = next + lanes + 8 <= end ? count : 0; /* eight words are read at once */
        for (; i + 8 <= whole; i += 8) {
            Words state = (Words)_mm256_loadu_si256((const void *)(states + i));
            Words slot = state & (RANS_TABLE - 1), step = {0};
            UNROLL for (int k = 0; k < 8; k++) { /* gather instructions are slower */
                symbols[i + k] = symbol_of[slot[k]];
                step[k] = step_of[symbol_of[slot[k]]];
            }
            state = state / RANS_TABLE * (step >> 16) + slot - (step & 0xFFFF);
            Words empty = (Words)(state < RANS_LOW);
            int mask = _mm256_movemask_ps((__m256)empty);
            __m256i ahead = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(words + next)));
            __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)orders[mask]));
            Words taken = (Words)_mm256_permutevar8x32_epi32(ahead, order);
            state = (~empty & state) | (empty & (state << 16 | taken));
            _mm256_storeu_si256((void *)(states + i), (__m256i)state);
            next += __builtin_popcount(mask);
        }
#endif
        for (; i < count; i++) {
            uint32_t state = states[i], slot = state & (RANS_TABLE - 1);
            uint32_t step = step_of[symbols[i] = symbol_of[slot]];
            state = state / RANS_TABLE * (step >> 16) + slot - (step & 0xFFFF);
            uint32_t empty = state < RANS_LOW; /* a branch would be mispredicted */
            if (next >= end && empty) return end + 1;
            uint32_t word = next < end ? words[next] : 0;
            states[i] = state << 16 * empty | (word & -empty);
            next += empty;
        }
    }
    return next;
}

/* A `Decode` of rans.py: `arrays` arrays of `sizes` symbols one after the other, each with 256
   counts in `tables`. All in one call, so that Python's other threads run meanwhile. */
int64_t decode(uint8_t *symbols, const int64_t *sizes, const uint32_t *tables, int32_t arrays,
               uint32_t *states, int32_t lanes, const uint16_t *words, int64_t end) {
    int64_t next = 0;
    for (int32_t i = 0; i < arrays && next <= end; symbols += sizes[i++])
        next = decode_array(symbols, sizes[i], tables + 256 * i, states, lanes, words, next, end);
    return next;
}

/* An `Encode` of rans.py: as `decode`, but takes the symbols, last to first, and writes the words
   before `end`; returns their number. There are no more words than symbols. */
int64_t encode(const uint8_t *symbols, const int64_t *sizes, const uint32_t *tables, int32_t arrays,
               uint32_t *states, int32_t lanes, uint16_t *end) {
    uint16_t *next = end;
    for (int32_t i = 0; i < arrays; i++) symbols += sizes[i];
    for (int32_t i = arrays - 1; i >= 0; i--) {
        const uint32_t *counts = tables + 256 * i;
        uint32_t slots_before[256];
        for (uint32_t symbol = 0, slot = 0; symbol < 256; slot += counts[symbol++])
            slots_before[symbol] = slot;
        symbols -= sizes[i];
        for (int64_t k = sizes[i] - 1; k >= 0; k--) {
            uint32_t *state = states + k % lanes, count = counts[symbols[k]];
            uint32_t full = *state / RANS_TABLE >> 4 >= count; /* state >= count << 18 */
            *(next - 1) = (uint16_t)*state;
            next -= full;
            uint32_t rest = *state >> 16 * full;
            *state = rest / count * RANS_TABLE + slots_before[symbols[k]] + rest % count;
        }
    }
    return end - next;
}
