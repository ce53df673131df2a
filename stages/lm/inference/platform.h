/* What the compiler and the processor offer: vector types, their width, and sizes of blocks. */

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
#define LANES 16 /* floats in a vector = rows in a weight tile = keys in a cache block */
#define TOKENS 8 /* rows of activations multiplied by a tile at once: what the registers hold */
#elif defined(__AVX2__)
#define LANES 8
#define TOKENS 8
#else
#define LANES 8
#define TOKENS 4
#endif
#define GROUP_SIZE 64  /* columns that share a scale */
#define OFFSET4 8      /* added to a 4 bit code to make it unsigned */
#define CHUNK_ROWS 128 /* rows that pass through all blocks together: they stay in the CPU cache */
#define CHUNK_KEYS 256 /* keys per step of the online softmax */
#define QUERIES 4      /* queries that share one pass over the keys */
#define STRIP (LANES == 16 ? 4 : 2) /* vectors of an attention output held in registers */
#define MAX_WORKERS 255
#define SPINS 4000 /* checks for work before a worker sleeps: about 0.1 ms */

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float F __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t I __attribute__((vector_size(4 * LANES), may_alias));
typedef int8_t Bytes __attribute__((vector_size(LANES), may_alias));
#ifdef __AVX2__
typedef uint32_t Words __attribute__((vector_size(32), may_alias));
#endif
typedef int32_t Quad __attribute__((may_alias)); /* 4 codes of neighbouring columns of a row */
