/* A transformer with quantized weights on a CPU: tokens in, logits of the next token out.

   native.py compiles this file on the user's machine as one unit; engine.py fills in the structs of
   model.h and calls `pack` and `feed`; rans.py calls `decode`, which shares the library.

     platform.h   vector types and block sizes     rows.h        norms, embeddings, activations
     model.h      structs shared with Python       matmul.h      integer matrix products
     rans.h       entropy decoding, its stream     packing.h     the layout of packed weights
     vectors.h    float vectors                    attention.h   keys, values and softmax
     pool.h       threads

   Weights are 8 or 4 bit codes. Each token's activations are quantized to 8 bits with one scale for
   every GROUP_SIZE columns. Every sum of floats has an order that depends on the shapes alone, so
   that neither the number of threads nor other sequences in a call change a bit of the result.

   Vectors are GCC's extension, which clang has too; only integer products, half floats and rANS use
   intrinsics, chosen by what the compiler may use. */

#include "platform.h"
#include "model.h"
#include "rans.h"
#include "vectors.h"
#include "pool.h"
#include "packing.h"
#include "matmul.h"
#include "rows.h"
#include "attention.h"

static void each_row(Chunk *s, int rows, Work *work) { pool_run(s->threads, rows, work, s); }

/* Adds matrix x activations to the residual stream, after a norm if the family has one there. */
static void add_to_residual(Chunk *s, const Matrix *matrix, Norm norm) {
    int rows = s->sequences * s->count, width = s->model->width;
    if (!norm.weight) {
        matmul(matrix, s->state, rows, s->state->residual, width, 1, s->threads);
        return;
    }
    matmul(matrix, s->state, rows, s->state->hidden, width, 0, s->threads);
    s->norm = norm;
    each_row(s, rows, add_normed_row);
}

static void forward_blocks(Chunk *s) {
    const Model *m = s->model;
    const State *state = s->state;
    int rows = s->sequences * s->count;
    s->first = 0, s->every = 1;
    each_row(s, rows, embed_row);
    for (int block = 0; block < m->layers; block++) {
        const Block *b = s->block = m->blocks + block;
        s->block_index = block;
        s->norm = b->attention_norm;
        each_row(s, rows, norm_row);
        matmul(&b->qkv, state, rows, state->hidden, b->qkv.rows, 0, s->threads);
        if (m->norm_all_heads) each_row(s, rows, norm_heads_row);
        pool_run(s->threads, s->sequences * m->kv_heads, attend_head, s);
        each_row(s, rows, attention_out_row);
        add_to_residual(s, &b->out, b->attention_post_norm);
        s->norm = b->feed_forward_norm;
        each_row(s, rows, norm_row);
        matmul(&b->up, state, rows, state->hidden, b->up.rows, 0, s->threads);
        each_row(s, rows, activate_row);
        add_to_residual(s, &b->down, b->feed_forward_post_norm);
    }
}

/* Appends `tokens` (sequences, count) to the first `sequences` sequences of the state, each `start`
   tokens long; writes the logits (sequences, padded_vocab) after the last of them and, unless it is
   NULL, the final states of all to `states` (sequences, count, width). */
void feed(const Model *model, const State *state, const int32_t *tokens, int32_t sequences,
          int32_t count, int32_t start, float *logits, float *states, int32_t threads) {
    Chunk s = {.model = model, .state = state, .sequences = sequences, .token_stride = count};
    s.threads = pool_acquire(threads);
    int max_count = CHUNK_ROWS / sequences > 1 ? CHUNK_ROWS / sequences : 1;
    for (int done = 0; done < count; done += s.count) {
        s.start = start + done;
        s.count = count - done < max_count ? count - done : max_count;
        s.tokens = tokens + done;
        forward_blocks(&s);
        if (!states) continue;
        s.norm = model->final_norm, s.states = states + (int64_t)done * model->width;
        each_row(&s, sequences * s.count, final_state_row);
    }
    s.norm = model->final_norm, s.first = s.count - 1, s.every = s.count;
    each_row(&s, sequences, norm_row);
    matmul(&model->head, state, sequences, logits, model->padded_vocab, 0, s.threads);
    pool_release(s.threads);
}
