/* Packs a matrix of int8 codes (rows, columns) in the order in which `matmul` reads them.

     matrix   | tile 0 | tile 1 | ... |            a tile is LANES rows
     tile     | group 0 | group 1 | ... |          a group is 64 columns, which share a scale
     group    | quad 0 | quad 1 | ... | quad 15 |  a quad is 4 columns; up to quad 7 if 4 bits
     quad     | row 0: 4 columns | row 1: 4 columns | ... | row LANES - 1: 4 columns |

     8 bits: a byte is one code (code + 128 with VNNI, where the weights are unsigned).
     4 bits: a byte holds two codes, each + 8, of columns half a group apart; byte c of quad q:

       | bits 7..4: column 32 + 4 q + c | bits 3..0: column 4 q + c |

     Without AVX2 a quad has its columns 0 and 1 first, then 2 and 3, and rows r and r + LANES / 2
     side by side, so that shifts alone separate them:

       | row 0: 0 1 | row L/2: 0 1 | row 1: 0 1 | ... | row 0: 2 3 | row L/2: 2 3 | ... | */

/* Whether all of `count` codes fit 4 bits. */
int32_t fits_4_bits(const int8_t *codes, int64_t count) {
    for (int64_t begin = 0; begin < count; begin += 4096) {
        int64_t end = begin + 4096 < count ? begin + 4096 : count;
        uint8_t excess = 0;
        for (int64_t i = begin; i < end; i++) excess |= (uint8_t)(codes[i] + 8) & 0xf0;
        if (excess) return 0;
    }
    return 1;
}

#if defined(VNNI) /* its instruction multiplies unsigned weights by signed activations */
#define FLIP 0x80808080 /* from a signed code to code + 128 */
#define OFFSET8 128
#else
#define FLIP 0
#define OFFSET8 0
#endif

/* Stores the codes of 4 columns of row `r` in `quad_row`, the 4 x LANES bytes of one quad. */
INLINE void put_quad(uint8_t *quad_row, int r, uint32_t quad) {
#if defined(__AVX2__)
    memcpy(quad_row + 4 * r, &quad, 4);
#else
    int offset = r < LANES / 2 ? 4 * r : 4 * r - 2 * LANES + 2;
    memcpy(quad_row + offset, &quad, 2);
    quad >>= 16;
    memcpy(quad_row + offset + 2 * LANES, &quad, 2);
#endif
}

typedef struct {
    const int8_t *codes;
    uint8_t *packed;
    int32_t rows, columns, bits;
} Packing;

static void pack_tile(void *task, int tile) {
    const Packing *p = task;
    const int8_t *from = p->codes + (int64_t)tile * LANES * p->columns;
    uint8_t *to = p->packed + (int64_t)tile * LANES * p->columns * p->bits / 8;
    const int quads = GROUP_SIZE / 4 * p->bits / 8;
    for (int group = 0; group < p->columns; group += GROUP_SIZE)
        for (int q = 0; q < quads; q++, to += 4 * LANES)
            for (int r = 0; r < LANES; r++) {
                uint32_t quad, other;
                const int8_t *source = from + (int64_t)r * p->columns + group + 4 * q;
                memcpy(&quad, source, 4);
                if (p->bits == 8) quad ^= FLIP;
                else {
                    memcpy(&other, source + GROUP_SIZE / 2, 4);
                    quad = (quad & 0x0f0f0f0f) | (other & 0x0f0f0f0f) << 4;
                    quad ^= 0x88888888; /* from a signed code to code + 8 */
                }
                put_quad(to, r, quad);
            }
}

/* Packs row-major codes (rows, columns); `packed` has rows * columns * bits / 8 bytes. */
void pack(const int8_t *codes, uint8_t *packed, int32_t rows, int32_t columns, int32_t bits,
          int32_t threads) {
    Packing task = {codes, packed, rows, columns, bits};
    int available = pool_acquire(threads);
    pool_run(available, rows / LANES, pack_tile, &task);
    pool_release(available);
}
