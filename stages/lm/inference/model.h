/* The structs that engine.py fills in. It has the same fields in the same order, and compares the
   offsets in `struct_layout` with its own. All memory belongs to the caller. */

#include <stddef.h>

#if defined(__F16C__)
typedef uint16_t Half;
#else
typedef float Half;
#endif

typedef struct {
    const uint8_t *codes; /* packed: see packing.h */
    const void *scales;   /* grouped: Half (rows / LANES, groups, LANES); else float (rows) */
    const float *bias;    /* (rows) or NULL */
    int32_t rows, columns, bits, grouped;
} Matrix;

typedef struct {
    const float *weight, *bias; /* LayerNorm if there is a bias, else RMSNorm; NULL: no norm */
} Norm;

typedef struct {
    const int8_t *codes; /* (rows, width), or NULL if `values` is set */
    const float *scales; /* (rows, groups) */
    const float *values; /* (rows, width) */
    int32_t groups;
} Table;

typedef struct {
    Norm attention_norm, query_norm, key_norm, attention_post_norm;
    Norm feed_forward_norm, feed_forward_post_norm;
    Matrix qkv, out, up, down;
    const float *cosines, *sines; /* (context, head_size), or NULL if heads are not rotated */
    int32_t window; /* keys that a query sees, its own included; 0: all */
} Block;

typedef struct {
    const Block *blocks;
    Table tokens, positions;
    Norm final_norm;
    Matrix head;
    float norm_eps, embedding_scale;
    int32_t layers, heads, kv_heads, head_size, width, padded_vocab;
    int32_t norm_all_heads; /* as one vector, instead of each */
    int32_t gelu, gated;    /* the activation function: GELU instead of SiLU; times `up` */
} Model;

typedef struct {
    Half *keys;           /* (layers, batch, kv_heads, room / LANES, head_size, LANES) */
    Half *values;         /* (layers, batch, kv_heads, room, head_size) */
    float *residual;      /* (rows, width) */
    float *hidden;        /* (rows, max of the rows of qkv and up) */
    float *attention_out; /* (rows, max(width, heads * head_size)); also holds normed rows */
    int8_t *codes;        /* quantized activations (rows, max columns of a matrix) */
    float *scales;        /* (rows, max groups of a matrix) */
    int32_t *sums;        /* of the codes of each group, like `scales` */
    int32_t batch, room; /* tokens that the cache has room for, a multiple of LANES */
} State; /* a row is one token of one sequence */

#define SIZE(type) {#type, sizeof(type)}
#define AT(type, field) {#type "." #field, offsetof(type, field)}

const struct {
    const char *name;
    int64_t bytes;
} struct_layout[] = {
    SIZE(Matrix), AT(Matrix, codes), AT(Matrix, scales), AT(Matrix, bias), AT(Matrix, rows),
    AT(Matrix, columns), AT(Matrix, bits), AT(Matrix, grouped),
    SIZE(Norm), AT(Norm, weight), AT(Norm, bias),
    SIZE(Table), AT(Table, codes), AT(Table, scales), AT(Table, values), AT(Table, groups),
    SIZE(Block), AT(Block, attention_norm), AT(Block, query_norm), AT(Block, key_norm),
    AT(Block, attention_post_norm), AT(Block, feed_forward_norm),
    AT(Block, feed_forward_post_norm), AT(Block, qkv), AT(Block, out), AT(Block, up),
    AT(Block, down), AT(Block, cosines), AT(Block, sines), AT(Block, window),
    SIZE(Model), AT(Model, blocks), AT(Model, tokens), AT(Model, positions), AT(Model, final_norm),
    AT(Model, head), AT(Model, norm_eps), AT(Model, embedding_scale), AT(Model, layers),
    AT(Model, heads), AT(Model, kv_heads), AT(Model, head_size), AT(Model, width),
    AT(Model, padded_vocab), AT(Model, norm_all_heads), AT(Model, gelu), AT(Model, gated),
    SIZE(State), AT(State, keys), AT(State, values), AT(State, residual), AT(State, hidden),
    AT(State, attention_out), AT(State, codes), AT(State, scales), AT(State, sums),
    AT(State, batch), AT(State, room),
    {NULL, 0},
};

/* The sizes that depend on the processor. */

int32_t lanes(void) { return LANES; }
int32_t half_bytes(void) { return sizeof(Half); }
int32_t chunk_rows(void) { return CHUNK_ROWS; }
