/* Products of quantized activations and packed weights.

   Within a group, codes are multiplied and summed exactly, as integers. The sums of the groups are
   scaled and added as floats in the order of the columns, for any number of rows and threads. */

/* `multiply` adds to each of LANES sums the products of one quad, which is 4 columns of LANES rows
   of weights, with 4 activations. `Weights` holds the codes of a quad, the same for every token. */
#if defined(VNNI)
typedef __m512i Weights;
INLINE Weights load_weights(const uint8_t *p) { return _mm512_load_si512(p); }
INLINE Weights low(Weights w) { return _mm512_and_si512(w, _mm512_set1_epi8(0x0f)); }
INLINE Weights high(Weights w) { return low(_mm512_srli_epi16(w, 4)); }
INLINE I multiply(I sum, Weights w, Quad x, int bits) {
    (void)bits;
    return (I)_mm512_dpbusd_epi32((__m512i)sum, w, _mm512_set1_epi32(x));
}
#elif defined(__AVX2__)
typedef __m256i Weights;
INLINE Weights load_weights(const uint8_t *p) { return _mm256_load_si256((const void *)p); }
INLINE Weights low(Weights w) { return _mm256_and_si256(w, _mm256_set1_epi8(0x0f)); }
INLINE Weights high(Weights w) { return low(_mm256_srli_epi16(w, 4)); }
#define SUM4_IN_16_BITS 1 /* 16 bits hold the sum over half a group: 8 * 2 * 15 * 127 < 2^15 */
INLINE I multiply(I sum, Weights w, Quad x, int bits) {
    __m256i quad = _mm256_set1_epi32(x);
    if (bits == 4) return (I)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16(w, quad));
    /* Pairs of products are added in 16 bits, with saturation: 2 * 255 * 127 would not fit, so
       8 bit codes are signed and their signs go to the activations. */
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(quad, w));
    return sum + (I)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
INLINE I add_up(const I *sums, int count, int bits) {
    I whole = sums[0];
    if (bits == 8) {
        UNROLL for (int i = 1; i < count; i++) whole += sums[i];
        return whole;
    }
    UNROLL for (int i = 1; i < count; i++)
        whole = (I)_mm256_add_epi16((__m256i)whole, (__m256i)sums[i]);
    return (I)_mm256_madd_epi16((__m256i)whole, _mm256_set1_epi16(1));
}
#else
typedef int16_t Weights __attribute__((vector_size(4 * LANES), may_alias));
typedef int16_t Shorts __attribute__((vector_size(2 * LANES), may_alias));
typedef int32_t Half_I __attribute__((vector_size(2 * LANES), may_alias));
INLINE Weights load_weights(const uint8_t *p) { return *(const Weights *)p; }
INLINE Weights low(Weights w) { return w & 0x0f0f; }
INLINE Weights high(Weights w) { return w >> 4 & 0x0f0f; }
INLINE I multiply(I sum, Weights w, Quad x, int bits) {
    (void)bits;
    const int8_t *codes = (const int8_t *)&x;
    const Shorts *columns = (const Shorts *)&w;
    Half_I *halves = (Half_I *)&sum;
    for (int c = 0; c < 4; c += 2) { /* two products of signed codes fit 16 bits */
        Shorts both = columns[c / 2];
        Shorts pair = (both << 8 >> 8) * codes[c] + (both >> 8) * codes[c + 1];
        halves[0] += (Half_I)pair << 16 >> 16;
        halves[1] += (Half_I)pair >> 16;
    }
    return sum;
}
#endif

#if !defined(SUM4_IN_16_BITS)
#define SUM4_IN_16_BITS 0
INLINE I add_up(const I *sums, int count, int bits) {
    (void)bits;
    I whole = sums[0];
    UNROLL for (int i = 1; i < count; i++) whole += sums[i];
    return whole;
}
#endif

typedef struct {
    const Matrix *matrix;
    const State *state;
    float *result; /* (rows, stride) */
    int rows, stride, add, tiles;
} Matmul;

/* One tile of a matrix times `tokens` neighbouring rows of activations. */
INLINE void multiply_tile(const Matmul *p, int tile, int row, const int tokens, const int bits,
                          const int grouped) {
    const Matrix *m = p->matrix;
    /* With few tokens, several sums per token: additions to one sum wait for each other. */
    enum { MAX_SUMS = TOKENS > 4 ? TOKENS : 4 };
    const int parts = tokens == 1 ? 4 : tokens == 2 ? 2 : 1;
    const int groups = m->columns / GROUP_SIZE, bytes = LANES * GROUP_SIZE * bits / 8;
    const int offset = bits == 4 ? OFFSET4 : OFFSET8;
    const uint8_t *codes = m->codes + (int64_t)tile * groups * bytes;
    const Half *scales = (const Half *)m->scales + (int64_t)tile * groups * LANES;
    const Quad *x = (const Quad *)p->state->codes + (int64_t)row * m->columns / 4;
    const float *x_scales = p->state->scales + row * groups;
    const int32_t *x_sums = p->state->sums + row * groups;
    const int quads = m->columns / 4;
    /* Quads in a sum. */
    const int span = SUM4_IN_16_BITS && bits == 4 ? GROUP_SIZE / 8 : GROUP_SIZE / 4;
    F total[TOKENS] = {{0}};
    for (int g = 0; g < groups; g++, codes += bytes, x += GROUP_SIZE / 4) {
        I whole[TOKENS];
        UNROLL for (int t = 0; t < tokens; t++) whole[t] = (I){0} - offset * x_sums[t * groups + g];
        for (int begin = 0; begin < GROUP_SIZE / 4; begin += span) {
            I sum[MAX_SUMS] = {{0}};
            for (int q = begin; q < begin + span; q += parts) {
                UNROLL for (int part = 0; part < parts; part++) {
                    const int quad = q + part;
                    Weights w;
                    if (bits == 8) w = load_weights(codes + quad * LANES * 4);
                    else if (quad < GROUP_SIZE / 8) w = low(load_weights(codes + quad * LANES * 4));
                    else w = high(load_weights(codes + (quad - GROUP_SIZE / 8) * LANES * 4));
                    UNROLL for (int t = 0; t < tokens; t++)
                        sum[t * parts + part] =
                            multiply(sum[t * parts + part], w, x[t * quads + quad], bits);
                }
            }
            UNROLL for (int t = 0; t < tokens; t++)
                whole[t] += add_up(sum + t * parts, parts, bits);
        }
        UNROLL for (int t = 0; t < tokens; t++) {
            F scale = splat(x_scales[t * groups + g]);
            if (grouped) scale *= load_half(scales + g * LANES);
            total[t] = multiply_add(__builtin_convertvector(whole[t], F), scale, total[t]);
        }
    }
    UNROLL for (int t = 0; t < tokens; t++) {
        float *result = p->result + (int64_t)(row + t) * p->stride + tile * LANES;
        if (!grouped) total[t] *= load((const float *)m->scales + tile * LANES);
        if (m->bias) total[t] += load(m->bias + tile * LANES);
        if (p->add) total[t] += load(result);
        *(F *)result = total[t];
    }
}

INLINE void multiply_rows(const Matmul *p, int tile, const int bits, const int grouped) {
    int row = 0;
    for (; row + TOKENS <= p->rows; row += TOKENS)
        multiply_tile(p, tile, row, TOKENS, bits, grouped);
    for (; row + 2 <= p->rows; row += 2) multiply_tile(p, tile, row, 2, bits, grouped);
    if (row < p->rows) multiply_tile(p, tile, row, 1, bits, grouped);
}

static void multiply_tiles(void *task, int item) {
    const Matmul *p = task;
    const Matrix *m = p->matrix;
    int end = (item + 1) * p->tiles, tiles = m->rows / LANES;
    for (int tile = item * p->tiles; tile < end && tile < tiles; tile++) {
        if (m->bits == 4 && m->grouped) multiply_rows(p, tile, 4, 1);
        else if (m->bits == 4) multiply_rows(p, tile, 4, 0);
        else if (m->grouped) multiply_rows(p, tile, 8, 1);
        else multiply_rows(p, tile, 8, 0);
    }
}

/* result (rows, stride) = quantized activations x matrix^T + its bias [+ result if `add`]. */
static void matmul(const Matrix *m, const State *state, int rows, float *result, int stride,
                    int add, int threads) {
    /* Each item has at least 16 KiB of weights; eight items a thread if there is enough. */
    int tiles = m->rows / LANES, least = 16384 * 8 / (LANES * m->columns * m->bits) + 1;
    int each = tiles / (8 * threads);
    each = each > least ? each : least;
    Matmul task = {m, state, result, rows, stride, add, each};
    pool_run(threads, (tiles + each - 1) / each, multiply_tiles, &task);
}
