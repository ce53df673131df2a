/* A transformer with integer weights on a CPU: tokens in, the logits of the next token out.

   native.py compiles this file on the user's machine; engine.py fills the structs and calls `feed`.
   `decode` serves packing.py: it is here because there is one library.
   All memory is the caller's. Shapes are those of model.py; a row is one token of one sequence.

   Products: weights are 8 or 4 bit codes, each token's activations become 8 bit codes with one
   scale for every GROUP columns, and the products of codes are summed exactly, as integers. Every
   sum of floats has an order that depends on the shapes alone, so neither the number of threads
   nor what else is computed in the same call changes a bit of the result.

   Vectors are GCC's (clang has them too); only the integer product and half floats need
   intrinsics, which are chosen by what the compiler may use. */

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#else
#define PAUSE() ((void)0)
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define VNNI 1
#define LANES 16 /* floats in a vector, rows of weights in a tile, keys in a block */
#define TOKENS 8 /* activations that one pass over a tile serves: as many as registers hold */
#elif defined(__AVX2__)
#define LANES 8
#define TOKENS 8
#else
#define LANES 8
#define TOKENS 4
#endif
#define GROUP 64       /* columns that share a scale */
#define OFFSET4 8      /* added to a 4 bit code, which is then unsigned */
#define CHUNK_ROWS 128 /* rows that pass through all layers together: they stay in the cache */
#define CHUNK_KEYS 256 /* keys between two looks at the largest score */
#define QUERIES 4      /* queries that share a pass over the keys */
#define STRIP (LANES == 16 ? 4 : 2) /* vectors of a query's sum that stay in registers */
#define MAX_WORKERS 255
#define SPINS 4000 /* looks for work before a worker sleeps: about 0.1 ms */

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float F __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t I __attribute__((vector_size(4 * LANES), may_alias));
typedef int8_t Bytes __attribute__((vector_size(LANES), may_alias));
#ifdef __AVX2__
typedef uint32_t Eight __attribute__((vector_size(32), may_alias));
#endif
typedef int32_t Quad __attribute__((may_alias)); /* 4 codes of neighbouring columns */

/* What engine.py fills in ------------------------------------------------------------------ */

#if defined(__F16C__)
typedef uint16_t Half;
#else
typedef float Half;
#endif

typedef struct {
    const uint8_t *codes; /* tiles of LANES rows x 4 columns, as `pack` leaves them */
    const void *scales;   /* grouped: Half (rows / LANES, groups, LANES); else float (rows) */
    const float *bias;    /* (rows) or NULL */
    int32_t rows, columns, bits, grouped;
} Matrix;

typedef struct {
    const float *weight, *bias; /* a bias makes it a LayerNorm */
} Norm;

typedef struct {
    const int8_t *codes; /* (rows, width), or NULL where there are values */
    const float *scales; /* (rows, groups) */
    const float *values; /* (rows, width) */
    int32_t groups;
} Table;

typedef struct {
    Norm attention_norm, query_norm, key_norm, feed_forward_norm;
    Matrix qkv, out, up, down;
} Layer;

typedef struct {
    const Layer *layers;
    Table tokens, positions;
    const float *cosines, *sines; /* (context, head_size) or NULL */
    Norm final_norm;
    Matrix head;
    int32_t layer_count, heads, kv_heads, head_size, width, ff_width, context, vocab;
} Model;

typedef struct {
    Half *keys;    /* (layers, batch, kv_heads, context / LANES, head_size, LANES) */
    Half *values;  /* (layers, batch, kv_heads, context, head_size); context a multiple of LANES */
    float *stream; /* (rows, width) */
    float *wide;   /* (rows, the most rows of any matrix but the head) */
    float *mixed;  /* (rows, heads * head_size) */
    int8_t *codes; /* (rows, the most columns of any matrix) */
    float *scales; /* (rows, the most groups) */
    int32_t *sums; /* the same */
    int32_t batch;
} State;

int32_t lanes(void) { return LANES; }
int32_t half_bytes(void) { return sizeof(Half); }
int32_t chunk_rows(void) { return CHUNK_ROWS; }

/* Range decoding --------------------------------------------------------------------------- */

#define TABLE (1 << 14)
#define LOW (1u << 16)

/* Fills `symbols`, of which each has `counts` places of the TABLE, from the states of `lanes` lanes
   and the `end` words; returns the place in `words` after the last one taken, or one beyond `end`
   where there are too few. */
static int64_t decode_array(uint8_t *restrict symbols, int64_t size, const uint32_t *counts,
                            uint32_t *restrict states, int32_t lanes, const uint16_t *words,
                            int64_t place, int64_t end) {
    uint8_t symbol_at[TABLE];
    uint32_t step_of[256]; /* count << 16 | places of the symbols before */
    for (uint32_t symbol = 0, slot = 0; symbol < 256; slot += counts[symbol++]) {
        memset(symbol_at + slot, symbol, counts[symbol]);
        step_of[symbol] = counts[symbol] << 16 | slot;
    }
#ifdef __AVX2__
    uint8_t turns[256][8]; /* by a mask of lanes: which of the next words each of them takes */
    for (int mask = 0; mask < 256; mask++)
        for (int i = 0, taken = 0; i < 8; taken += mask >> i++ & 1) turns[mask][i] = taken;
#endif
    for (; size > 0; size -= lanes, symbols += lanes) {
        int count = size < lanes ? (int)size : lanes, i = 0;
#ifdef __AVX2__
        int whole = place + lanes + 8 <= end ? count : 0; /* eight words are read at once */
        for (; i + 8 <= whole; i += 8) {
            Eight state = (Eight)_mm256_loadu_si256((const void *)(states + i));
            Eight slot = state & (TABLE - 1), step = {0};
            UNROLL for (int k = 0; k < 8; k++) { /* the processor's own gathering is slower */
                symbols[i + k] = symbol_at[slot[k]];
                step[k] = step_of[symbol_at[slot[k]]];
            }
            state = state / TABLE * (step >> 16) + slot - (step & 0xFFFF);
            Eight empty = (Eight)(state < LOW);
            int mask = _mm256_movemask_ps((__m256)empty);
            __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(words + place)));
            __m256i turn = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)turns[mask]));
            Eight taken = (Eight)_mm256_permutevar8x32_epi32(next, turn);
            state = (~empty & state) | (empty & (state << 16 | taken));
            _mm256_storeu_si256((void *)(states + i), (__m256i)state);
            place += __builtin_popcount(mask);
        }
#endif
        for (; i < count; i++) {
            uint32_t state = states[i], slot = state & (TABLE - 1);
            uint32_t step = step_of[symbols[i] = symbol_at[slot]];
            state = state / TABLE * (step >> 16) + slot - (step & 0xFFFF);
            uint32_t empty = state < LOW; /* as a number: a branch would be guessed wrongly */
            if (place >= end && empty) return end + 1;
            uint32_t word = place < end ? words[place] : 0;
            states[i] = state << 16 * empty | (word & -empty);
            place += empty;
        }
    }
    return place;
}

/* A `Decode` of packing.py: `arrays` of `sizes` one after the other, each with 256 of the `tables`.
   All in one call, so that Python's other threads go on meanwhile. */
int64_t decode(uint8_t *symbols, const int64_t *sizes, const uint32_t *tables, int32_t arrays,
               uint32_t *states, int32_t lanes, const uint16_t *words, int64_t end) {
    int64_t place = 0;
    for (int32_t i = 0; i < arrays && place <= end; symbols += sizes[i++])
        place = decode_array(symbols, sizes[i], tables + 256 * i, states, lanes, words, place, end);
    return place;
}

/* Vectors ---------------------------------------------------------------------------------- */

INLINE F spread(float x) { return x - (F){0}; }
INLINE F at(const float *p) { return *(const F *)p; }
INLINE F choose(I mask, F yes, F no) { return (F)((mask & (I)yes) | (~mask & (I)no)); }
INLINE F larger(F a, F b) { return choose(a > b, a, b); }

/* a * b + c, rounded once where the processor can. */
INLINE F fused(F a, F b, F c) {
#if LANES == 16
    return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE float sum_of(F x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

INLINE float largest_of(F x) {
    float best = x[0];
    for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
    return best;
}

#if defined(__F16C__) && LANES == 16
INLINE F widen(const Half *p) { return (F)_mm512_cvtph_ps(_mm256_load_si256((const void *)p)); }
INLINE void narrow(F x, Half *p) {
    _mm256_store_si256((void *)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
INLINE F widen(const Half *p) { return (F)_mm256_cvtph_ps(_mm_load_si128((const void *)p)); }
INLINE void narrow(F x, Half *p) {
    _mm_store_si128((void *)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}
#else
INLINE F widen(const Half *p) { return at(p); }
INLINE void narrow(F x, Half *p) { *(F *)p = x; }
#endif

#define ROUNDER 12582912.0f /* 1.5 * 2^23: what is added to it is rounded to an integer */

INLINE I nearest(F x) { return (I)(x + ROUNDER) - (I)spread(ROUNDER); }

/* e^x to about 2 units in the last place; e^0 is exactly 1. */
INLINE F exponential(F x) {
    x = larger(x, spread(-87));
    x = choose(x < 88, x, spread(88));
    F n = (x * 1.44269504f + ROUNDER) - ROUNDER;
    F r = fused(n, spread(2.12194440e-4f), fused(n, spread(-0.693359375f), x));
    F p = fused(r, spread(1.0f / 5040), spread(1.0f / 720));
    p = fused(p, r, spread(1.0f / 120));
    p = fused(p, r, spread(1.0f / 24));
    p = fused(p, r, spread(1.0f / 6));
    p = fused(p, r, spread(0.5f));
    p = fused(p, r, spread(1));
    p = fused(p, r, spread(1));
    return (F)((I)p + (nearest(n) << 23));
}

/* Threads: one crew a process ---------------------------------------------------------------

   A loop's items are claimed one by one, so a worker that the system keeps waiting holds up
   nothing. Caller and workers take tickets: (generation, items, next item) in one number, so that
   a latecomer can never take an item of another loop than it believes. */

typedef void Work(void *task, int item);

static struct {
    pthread_mutex_t busy, lock;
    pthread_cond_t wake;
    _Atomic uint64_t ticket;
    _Atomic int done, sleepers, limit;
    int workers;
    Work *work;
    void *task;
} crew = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

#define FIELD 24 /* bits of a ticket's two lower fields */
#define GENERATION(ticket) ((ticket) >> 2 * FIELD)

static void help(void) {
    const uint64_t field = (1 << FIELD) - 1;
    for (;;) {
        uint64_t ticket = atomic_fetch_add(&crew.ticket, 1);
        uint64_t item = ticket & field;
        if (item >= (ticket >> FIELD & field)) return;
        crew.work(crew.task, (int)item);
        atomic_fetch_add(&crew.done, 1);
    }
}

static void *worker(void *argument) {
    int number = (int)(intptr_t)argument;
    uint64_t seen = 0;
    for (;;) {
        int spins = 0;
        while (spins < SPINS && GENERATION(crew.ticket) == seen) spins++, PAUSE();
        if (spins == SPINS || number >= crew.limit) {
            pthread_mutex_lock(&crew.lock);
            for (;;) {
                int wanted = number < crew.limit;
                crew.sleepers += wanted; /* before the look at the ticket: `parallel` reverses it */
                int ready = wanted && GENERATION(crew.ticket) != seen;
                if (!ready) pthread_cond_wait(&crew.wake, &crew.lock);
                crew.sleepers -= wanted;
                if (ready) break;
            }
            pthread_mutex_unlock(&crew.lock);
        }
        seen = GENERATION(crew.ticket);
        help();
    }
    return NULL;
}

static void after_fork(void) { /* threads are not inherited */
    pthread_mutex_init(&crew.busy, NULL);
    pthread_mutex_init(&crew.lock, NULL);
    pthread_cond_init(&crew.wake, NULL);
    crew.workers = crew.sleepers = crew.limit = 0;
    crew.ticket = GENERATION(crew.ticket) << 2 * FIELD; /* what another thread was at is void */
}

/* The threads that the caller may use until `dismiss`: just its own where another has the crew. */
static int muster(int threads) {
    if (threads < 2 || pthread_mutex_trylock(&crew.busy)) return 1;
    static int prepared;
    if (!prepared) prepared = 1, pthread_atfork(NULL, NULL, after_fork);
    sigset_t all, before; /* signals are for the program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    while (crew.workers < threads - 1 && crew.workers < MAX_WORKERS) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)crew.workers)) break;
        pthread_detach(thread);
        crew.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (crew.limit != threads - 1) {
        pthread_mutex_lock(&crew.lock);
        crew.limit = threads - 1;
        pthread_cond_broadcast(&crew.wake);
        pthread_mutex_unlock(&crew.lock);
    }
    return threads;
}

static void dismiss(int threads) {
    if (threads > 1) pthread_mutex_unlock(&crew.busy);
}

/* Do `items` pieces of work, in any order. */
static void parallel(int threads, int items, Work *work, void *task) {
    if (threads == 1 || items < 2) {
        for (int i = 0; i < items; i++) work(task, i);
        return;
    }
    crew.work = work;
    crew.task = task;
    crew.done = 0;
    crew.ticket = (GENERATION(crew.ticket) + 1) << 2 * FIELD | (uint64_t)items << FIELD;
    if (crew.sleepers) {
        pthread_mutex_lock(&crew.lock);
        pthread_cond_broadcast(&crew.wake);
        pthread_mutex_unlock(&crew.lock);
    }
    help();
    for (int spins = 0; crew.done < items; spins++) {
        if (spins < SPINS) PAUSE();
        else sched_yield();
    }
}

/* Packing ---------------------------------------------------------------------------------- */

/* Whether all of `count` codes fit 4 bits. */
int32_t fits_4_bits(const int8_t *codes, int64_t count) {
    for (int64_t begin = 0; begin < count; begin += 4096) {
        int64_t end = begin + 4096 < count ? begin + 4096 : count;
        uint8_t beyond = 0;
        for (int64_t i = begin; i < end; i++) beyond |= (uint8_t)(codes[i] + 8) & 0xf0;
        if (beyond) return 0;
    }
    return 1;
}

#if defined(VNNI) /* multiplies unsigned weights by signed activations */
#define FLIP 0x80808080 /* from a signed code to code + 128 */
#define OFFSET8 128
#else
#define FLIP 0
#define OFFSET8 0
#endif

/* Where the codes of 4 columns of row `r` lie in a tile: side by side for the instructions that
   multiply and add four. Else two columns side by side, and rows of the tile's second half between
   those of its first, so that shifts alone take them apart. */
INLINE void put_quad(uint8_t *tile, int r, uint32_t quad) {
#if defined(__AVX2__)
    memcpy(tile + 4 * r, &quad, 4);
#else
    int place = r < LANES / 2 ? 4 * r : 4 * r - 2 * LANES + 2;
    memcpy(tile + place, &quad, 2);
    quad >>= 16;
    memcpy(tile + place + 2 * LANES, &quad, 2);
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
    /* Of 4 bit codes, the second half of a group lies in the upper nibbles. */
    const int quads = GROUP / 4 * p->bits / 8;
    for (int group = 0; group < p->columns; group += GROUP)
        for (int q = 0; q < quads; q++, to += 4 * LANES)
            for (int r = 0; r < LANES; r++) {
                uint32_t quad, other;
                const int8_t *place = from + (int64_t)r * p->columns + group + 4 * q;
                memcpy(&quad, place, 4);
                if (p->bits == 8) quad ^= FLIP;
                else {
                    memcpy(&other, place + GROUP / 2, 4);
                    quad = (quad & 0x0f0f0f0f) | (other & 0x0f0f0f0f) << 4;
                    quad ^= 0x88888888; /* from a signed code to code + 8 */
                }
                put_quad(to, r, quad);
            }
}

/* Row-major codes (rows, columns) into tiles. */
void pack(const int8_t *codes, uint8_t *packed, int32_t rows, int32_t columns, int32_t bits,
          int32_t threads) {
    Packing task = {codes, packed, rows, columns, bits};
    int crowd = muster(threads);
    parallel(crowd, rows / LANES, pack_tile, &task);
    dismiss(crowd);
}

/* Products --------------------------------------------------------------------------------- */

/* Add to each sum the products of one quad of columns. `Weights` is what `multiply` needs of the
   LANES x 4 codes, the same for every token. */
#if defined(VNNI)
typedef __m512i Weights;
INLINE Weights weights(const uint8_t *p) { return _mm512_load_si512(p); }
INLINE Weights low(Weights w) { return _mm512_and_si512(w, _mm512_set1_epi8(0x0f)); }
INLINE Weights high(Weights w) { return low(_mm512_srli_epi16(w, 4)); }
INLINE I multiply(I sum, Weights w, Quad x, int bits) {
    (void)bits;
    return (I)_mm512_dpbusd_epi32((__m512i)sum, w, _mm512_set1_epi32(x));
}
#elif defined(__AVX2__)
typedef __m256i Weights;
INLINE Weights weights(const uint8_t *p) { return _mm256_load_si256((const void *)p); }
INLINE Weights low(Weights w) { return _mm256_and_si256(w, _mm256_set1_epi8(0x0f)); }
INLINE Weights high(Weights w) { return low(_mm256_srli_epi16(w, 4)); }
#define NARROW4 1 /* sums of 4 bit codes are 16 bits wide for half a group: 8 * 2 * 15 * 127 fits */
INLINE I multiply(I sum, Weights w, Quad x, int bits) {
    __m256i quad = _mm256_set1_epi32(x);
    if (bits == 4) return (I)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16(w, quad));
    /* Pairs of products are added in 16 bits, with saturation: 2 * 255 * 127 would not fit, so
       8 bit codes are signed and their signs go to the activations. */
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(quad, w));
    return sum + (I)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
INLINE I gathered(const I *sums, int count, int bits) {
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
INLINE Weights weights(const uint8_t *p) { return *(const Weights *)p; }
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

#if !defined(NARROW4)
#define NARROW4 0
INLINE I gathered(const I *sums, int count, int bits) {
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
} Product;

/* A tile of a matrix times `tokens` neighbouring rows of activations. */
INLINE void multiply_tile(const Product *p, int tile, int row, const int tokens, const int bits,
                          const int grouped) {
    const Matrix *m = p->matrix;
    /* Few tokens need several sums each, or every product would wait for the one before it. */
    enum { MOST = TOKENS > 4 ? TOKENS : 4 };
    const int parts = tokens == 1 ? 4 : tokens == 2 ? 2 : 1;
    const int groups = m->columns / GROUP, bytes = LANES * GROUP * bits / 8;
    const int offset = bits == 4 ? OFFSET4 : OFFSET8;
    const uint8_t *codes = m->codes + (int64_t)tile * groups * bytes;
    const Half *scales = (const Half *)m->scales + (int64_t)tile * groups * LANES;
    const Quad *x = (const Quad *)p->state->codes + (int64_t)row * m->columns / 4;
    const float *x_scales = p->state->scales + row * groups;
    const int32_t *x_sums = p->state->sums + row * groups;
    const int quads = m->columns / 4;
    const int span = NARROW4 && bits == 4 ? GROUP / 8 : GROUP / 4; /* quads in a sum */
    F total[TOKENS] = {{0}};
    for (int g = 0; g < groups; g++, codes += bytes, x += GROUP / 4) {
        I whole[TOKENS];
        UNROLL for (int t = 0; t < tokens; t++) whole[t] = (I){0} - offset * x_sums[t * groups + g];
        for (int begin = 0; begin < GROUP / 4; begin += span) {
            I sum[MOST] = {{0}};
            for (int q = begin; q < begin + span; q += parts) {
                UNROLL for (int part = 0; part < parts; part++) {
                    const int quad = q + part;
                    Weights w;
                    if (bits == 8) w = weights(codes + quad * LANES * 4);
                    else if (quad < GROUP / 8) w = low(weights(codes + quad * LANES * 4));
                    else w = high(weights(codes + (quad - GROUP / 8) * LANES * 4));
                    UNROLL for (int t = 0; t < tokens; t++)
                        sum[t * parts + part] =
                            multiply(sum[t * parts + part], w, x[t * quads + quad], bits);
                }
            }
            UNROLL for (int t = 0; t < tokens; t++)
                whole[t] += gathered(sum + t * parts, parts, bits);
        }
        UNROLL for (int t = 0; t < tokens; t++) {
            F scale = spread(x_scales[t * groups + g]);
            if (grouped) scale *= widen(scales + g * LANES);
            total[t] = fused(__builtin_convertvector(whole[t], F), scale, total[t]);
        }
    }
    UNROLL for (int t = 0; t < tokens; t++) {
        float *result = p->result + (int64_t)(row + t) * p->stride + tile * LANES;
        if (!grouped) total[t] *= at((const float *)m->scales + tile * LANES);
        if (m->bias) total[t] += at(m->bias + tile * LANES);
        if (p->add) total[t] += at(result);
        *(F *)result = total[t];
    }
}

INLINE void multiply_rows(const Product *p, int tile, const int bits, const int grouped) {
    int row = 0;
    for (; row + TOKENS <= p->rows; row += TOKENS)
        multiply_tile(p, tile, row, TOKENS, bits, grouped);
    for (; row + 2 <= p->rows; row += 2) multiply_tile(p, tile, row, 2, bits, grouped);
    if (row < p->rows) multiply_tile(p, tile, row, 1, bits, grouped);
}

static void multiply_tiles(void *task, int item) {
    const Product *p = task;
    const Matrix *m = p->matrix;
    int end = (item + 1) * p->tiles, tiles = m->rows / LANES;
    for (int tile = item * p->tiles; tile < end && tile < tiles; tile++) {
        if (m->bits == 4 && m->grouped) multiply_rows(p, tile, 4, 1);
        else if (m->bits == 4) multiply_rows(p, tile, 4, 0);
        else if (m->grouped) multiply_rows(p, tile, 8, 1);
        else multiply_rows(p, tile, 8, 0);
    }
}

/* result (rows, stride) = [result +] quantized activations x matrix, + its bias. */
static void product(const Matrix *m, const State *state, int rows, float *result, int stride,
                    int add, int threads) {
    /* Items of at least 16 KiB of weights, eight a thread where there are as many. */
    int tiles = m->rows / LANES, least = 16384 * 8 / (LANES * m->columns * m->bits) + 1;
    int each = tiles / (8 * threads);
    each = each > least ? each : least;
    Product task = {m, state, result, rows, stride, add, each};
    parallel(threads, (tiles + each - 1) / each, multiply_tiles, &task);
}

/* What happens to each row ------------------------------------------------------------------ */

/* Codes, scales and sums of a row of activations: in each group the largest becomes 127. */
static void quantize_row(const State *state, int row, int columns, const float *x) {
    int8_t *codes = state->codes + (int64_t)row * columns;
    for (int g = 0; g < columns / GROUP; g++, x += GROUP, codes += GROUP) {
        const I magnitude = (I){0} + 0x7fffffff;
        F most = {0};
        for (int i = 0; i < GROUP; i += LANES) most = larger((F)((I)at(x + i) & magnitude), most);
        float largest = largest_of(most);
        float inverse = largest > 0 ? 127 / largest : 0;
        I sum = {0};
        for (int i = 0; i < GROUP; i += LANES) {
            I code = nearest(at(x + i) * inverse);
            sum += code;
            *(Bytes *)(codes + i) = __builtin_convertvector(code, Bytes);
        }
        int32_t whole = 0;
        for (int i = 0; i < LANES; i++) whole += sum[i];
        state->scales[row * (columns / GROUP) + g] = largest / 127;
        state->sums[row * (columns / GROUP) + g] = whole;
    }
}

/* LayerNorm where there is a bias, else RMSNorm; `to` may be `x`. */
INLINE void normalise(Norm norm, const float *x, float *to, int size, float factor) {
    F sum = {0};
    float mean = 0;
    if (norm.bias) {
        for (int i = 0; i < size; i += LANES) sum += at(x + i);
        mean = sum_of(sum) / size;
        sum = (F){0};
    }
    for (int i = 0; i < size; i += LANES) sum += (at(x + i) - mean) * (at(x + i) - mean);
    float scale = factor / sqrtf(sum_of(sum) / size + (norm.bias ? 1e-5f : 1e-6f));
    for (int i = 0; i < size; i += LANES) {
        F y = (at(x + i) - mean) * scale * at(norm.weight + i);
        if (norm.bias) y += at(norm.bias + i);
        *(F *)(to + i) = y;
    }
}

/* A call, and the chunk of it that passes through the layers: `count` tokens of each sequence,
   the first at position `start`. Row `sequence * count + i` is its i-th. */
typedef struct {
    const Model *model;
    const State *state;
    const Layer *layer;
    const int32_t *tokens;
    int layer_number, sequences, token_stride, start, count, threads;
    Norm norm;
    int every, first; /* normed row i is row `first + i * every` of the stream */
} Step;

INLINE void look_up(const Table *table, int row, int width, float *to, int add) {
    int size = width / table->groups;
    for (int i = 0; i < width; i++) {
        int64_t place = (int64_t)row * width + i;
        float value = table->codes
                          ? table->codes[place] * table->scales[row * table->groups + i / size]
                          : table->values[place];
        to[i] = add ? to[i] + value : value;
    }
}

static void embed_row(void *task, int row) {
    const Step *s = task;
    const Model *m = s->model;
    int sequence = row / s->count, i = row % s->count;
    float *x = s->state->stream + (int64_t)row * m->width;
    look_up(&m->tokens, s->tokens[sequence * s->token_stride + i], m->width, x, 0);
    if (!m->cosines) look_up(&m->positions, s->start + i, m->width, x, 1);
}

static void norm_row(void *task, int row) {
    const Step *s = task;
    int width = s->model->width;
    float *normed = s->state->mixed + (int64_t)row * width;
    const float *x = s->state->stream + (int64_t)(s->first + row * s->every) * width;
    normalise(s->norm, x, normed, width, 1);
    quantize_row(s->state, row, width, normed);
}

static void mixed_row(void *task, int row) {
    const Step *s = task;
    int columns = s->layer->out.columns;
    quantize_row(s->state, row, columns, s->state->mixed + (int64_t)row * columns);
}

/* silu(gate) * up, or gelu(up) by its tanh approximation: x * sigmoid of something both. */
static void activate_row(void *task, int row) {
    const Step *s = task;
    int rows = s->layer->up.rows, size = s->layer->down.columns;
    float *x = s->state->wide + (int64_t)row * rows;
    for (int i = 0; i < size; i += LANES) {
        F gate = at(x + i), inner = gate;
        if (rows == size) inner = 1.5957691216f * (gate + 0.044715f * gate * gate * gate);
        F y = gate / (1 + exponential(-inner));
        if (rows != size) y *= at(x + size + i);
        *(F *)(x + i) = y;
    }
    quantize_row(s->state, row, size, x);
}

/* Attention -------------------------------------------------------------------------------- */

INLINE void rotate(float *x, const float *cosines, const float *sines, int size) {
    int half = size / 2;
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosines[i] - b * sines[i];
        x[i + half] = b * cosines[i] + a * sines[i];
    }
}

/* Scores of `blocks` blocks of keys for `queries` queries. */
INLINE void score(const int queries, const int blocks, const float *const *query, const Half *keys,
                  int size, float (*scores)[CHUNK_KEYS], int first) {
    F sum[QUERIES][4] = {{{0}}};
    for (int i = 0; i < size; i++)
        UNROLL for (int b = 0; b < blocks; b++) {
            F key = widen(keys + (b * size + i) * LANES);
            UNROLL for (int q = 0; q < queries; q++) sum[q][b] = fused(spread(query[q][i]), key, sum[q][b]);
        }
    UNROLL for (int q = 0; q < queries; q++)
        UNROLL for (int b = 0; b < blocks; b++)
            *(F *)(scores[q] + first + b * LANES) = sum[q][b];
}

/* `strip` vectors of each query's mixture of values. */
INLINE void mix(const int queries, const int strip, float *const *to, const Half *values, int size,
                const float (*shares)[CHUNK_KEYS], int keys, const float *keep) {
    F sum[QUERIES][STRIP];
    UNROLL for (int q = 0; q < queries; q++)
        UNROLL for (int v = 0; v < strip; v++) sum[q][v] = at(to[q] + v * LANES) * keep[q];
    for (int k = 0; k < keys; k++, values += size)
        UNROLL for (int v = 0; v < strip; v++) {
            F value = widen(values + v * LANES);
            UNROLL for (int q = 0; q < queries; q++) sum[q][v] = fused(spread(shares[q][k]), value, sum[q][v]);
        }
    UNROLL for (int q = 0; q < queries; q++)
        UNROLL for (int v = 0; v < strip; v++) *(F *)(to[q] + v * LANES) = sum[q][v];
}

/* Softmax attention of queries that see `seen[q]` keys each, `CHUNK_KEYS` at a time: what has been
   summed is scaled down whenever a larger score appears (Milakov & Gimelshein 2018). */
INLINE void attend(const int queries, const float *const *query, float *const *to, const int *seen,
                   const Half *keys, const Half *values, int size) {
    float scores[QUERIES][CHUNK_KEYS] __attribute__((aligned(64)));
    float most[QUERIES], total[QUERIES], keep[QUERIES];
    I places; /* of a block's keys */
    for (int i = 0; i < LANES; i++) places[i] = i;
    for (int q = 0; q < queries; q++) {
        most[q] = -INFINITY, total[q] = 0;
        memset(to[q], 0, sizeof(float) * size);
    }
    int longest = seen[queries - 1];
    for (int first = 0; first < longest; first += CHUNK_KEYS) {
        int length = longest - first < CHUNK_KEYS ? longest - first : CHUNK_KEYS;
        int blocks = (length + LANES - 1) / LANES, b = 0;
        const int together = queries == 1 ? 4 : 2;
        const Half *chunk = keys + (int64_t)first * size;
        for (; b + together <= blocks; b += together)
            score(queries, together, query, chunk + b * size * LANES, size, scores, b * LANES);
        for (; b < blocks; b++)
            score(queries, 1, query, chunk + b * size * LANES, size, scores, b * LANES);
        for (int q = 0; q < queries; q++) {
            F best = spread(-INFINITY), sum = {0};
            const I limit = (I){0} + (seen[q] - first);
            for (b = 0; b < blocks; b++) {
                I visible = places + b * LANES < limit;
                best = larger(choose(visible, at(scores[q] + b * LANES), best), best);
            }
            float before = most[q], now = largest_of(best);
            most[q] = now = now > before ? now : before;
            for (b = 0; b < blocks; b++) {
                I visible = places + b * LANES < limit;
                F share = exponential(at(scores[q] + b * LANES) - now);
                share = (F)((I)share & visible);
                sum += share;
                *(F *)(scores[q] + b * LANES) = share;
            }
            keep[q] = exponential(spread(before - now))[0];
            total[q] = total[q] * keep[q] + sum_of(sum);
        }
        int place = 0;
        const float(*shares)[CHUNK_KEYS] = (const float(*)[CHUNK_KEYS])scores;
        const Half *from = values + (int64_t)first * size;
        for (; place < size; place += (size - place < STRIP * LANES ? 1 : STRIP) * LANES) {
            float *part[QUERIES];
            for (int q = 0; q < queries; q++) part[q] = to[q] + place;
            if (size - place < STRIP * LANES)
                mix(queries, 1, part, from + place, size, shares, length, keep);
            else
                mix(queries, STRIP, part, from + place, size, shares, length, keep);
        }
    }
    for (int q = 0; q < queries; q++)
        for (int i = 0; i < size; i += LANES) *(F *)(to[q] + i) = at(to[q] + i) / total[q];
}

/* All of a chunk's queries on one key/value head of one sequence. */
static void attend_head(void *task, int item) {
    const Step *s = task;
    const Model *m = s->model;
    int sequence = item / m->kv_heads, head = item % m->kv_heads, size = m->head_size;
    int shared = m->heads / m->kv_heads, stride = (m->heads + 2 * m->kv_heads) * size;
    int64_t context = (m->context + LANES - 1) / LANES * LANES;
    int64_t place = (int64_t)s->layer_number * s->state->batch * m->kv_heads + item;
    Half *keys = s->state->keys + place * context * size;
    Half *values = s->state->values + place * context * size;
    float *rows = s->state->wide + (int64_t)sequence * s->count * stride;
    float *mixed = s->state->mixed + (int64_t)sequence * s->count * m->heads * size;
    for (int i = 0; i < s->count; i++) {
        int position = s->start + i;
        float *query = rows + (int64_t)i * stride + head * shared * size;
        float *key = rows + (int64_t)i * stride + (m->heads + head) * size;
        float *value = key + m->kv_heads * size;
        float scale = 1 / sqrtf((float)size);
        if (m->cosines) {
            const float *cosines = m->cosines + (int64_t)position * size;
            const float *sines = m->sines + (int64_t)position * size;
            for (int q = 0; q < shared; q++) {
                normalise(s->layer->query_norm, query + q * size, query + q * size, size, scale);
                rotate(query + q * size, cosines, sines, size);
            }
            normalise(s->layer->key_norm, key, key, size, 1);
            rotate(key, cosines, sines, size);
        } else {
            for (int q = 0; q < shared * size; q++) query[q] *= scale;
        }
        Half *column = keys + (int64_t)(position / LANES) * size * LANES + position % LANES;
        for (int j = 0; j < size; j += LANES) {
            Half block[LANES] __attribute__((aligned(64)));
            narrow(at(key + j), block);
            for (int l = 0; l < LANES; l++) column[(j + l) * LANES] = block[l];
            narrow(at(value + j), values + (int64_t)position * size + j);
        }
    }
    int all = s->count * shared;
    for (int i = 0; i < all;) {
        const float *query[QUERIES];
        float *to[QUERIES];
        int seen[QUERIES], together = all - i < QUERIES ? 1 : QUERIES;
        for (int q = 0; q < together; q++) {
            int token = (i + q) / shared, offset = (head * shared + (i + q) % shared) * size;
            query[q] = rows + (int64_t)token * stride + offset;
            to[q] = mixed + (int64_t)token * m->heads * size + offset;
            seen[q] = s->start + token + 1;
        }
        if (together == 1) attend(1, query, to, seen, keys, values, size);
        else attend(QUERIES, query, to, seen, keys, values, size);
        i += together;
    }
}

/* The whole model -------------------------------------------------------------------------- */

static void each_row(Step *s, int rows, Work *work) { parallel(s->threads, rows, work, s); }

static void step(Step *s) {
    const Model *m = s->model;
    const State *state = s->state;
    int rows = s->sequences * s->count;
    s->first = 0, s->every = 1;
    each_row(s, rows, embed_row);
    for (int layer = 0; layer < m->layer_count; layer++) {
        const Layer *l = s->layer = m->layers + layer;
        s->layer_number = layer;
        s->norm = l->attention_norm;
        each_row(s, rows, norm_row);
        product(&l->qkv, state, rows, state->wide, l->qkv.rows, 0, s->threads);
        parallel(s->threads, s->sequences * m->kv_heads, attend_head, s);
        each_row(s, rows, mixed_row);
        product(&l->out, state, rows, state->stream, m->width, 1, s->threads);
        s->norm = l->feed_forward_norm;
        each_row(s, rows, norm_row);
        product(&l->up, state, rows, state->wide, l->up.rows, 0, s->threads);
        each_row(s, rows, activate_row);
        product(&l->down, state, rows, state->stream, m->width, 1, s->threads);
    }
}

/* Lengthen the first `sequences` of the state, now `start` tokens long, by their rows of `tokens`
   (sequences, count); logits (sequences, vocab) after the last. */
void feed(const Model *model, const State *state, const int32_t *tokens, int32_t sequences,
          int32_t count, int32_t start, float *logits, int32_t threads) {
    Step s = {.model = model, .state = state, .sequences = sequences, .token_stride = count};
    s.threads = muster(threads);
    int most = CHUNK_ROWS / sequences > 1 ? CHUNK_ROWS / sequences : 1;
    for (int done = 0; done < count; done += s.count) {
        s.start = start + done;
        s.count = count - done < most ? count - done : most;
        s.tokens = tokens + done;
        step(&s);
    }
    s.norm = model->final_norm, s.first = s.count - 1, s.every = s.count;
    each_row(&s, sequences, norm_row);
    product(&model->head, state, sequences, logits, model->vocab, 0, s.threads);
    dismiss(s.threads);
}
