/* What a block does to each row on its own: embedding, norm, activation function, quantization. */

/* Quantizes a row of activations to 8 bits: in each group the largest magnitude becomes 127. A group
   with a number that is not finite gets the scale NaN, which reaches the logits. */
static void quantize_row(const State *state, int row, int columns, const float *x) {
    int8_t *codes = state->codes + (int64_t)row * columns;
    for (int g = 0; g < columns / GROUP_SIZE; g++, x += GROUP_SIZE, codes += GROUP_SIZE) {
        const I magnitude = (I){0} + 0x7fffffff;
        /* Magnitudes are ordered as their bits are, with infinity and NaN above all others. */
        I most = {0};
        for (int i = 0; i < GROUP_SIZE; i += LANES) {
            I bits = (I)load(x + i) & magnitude, larger = bits > most;
            most = (bits & larger) | (most & ~larger);
        }
        int32_t top = 0;
        for (int i = 0; i < LANES; i++) top = most[i] > top ? most[i] : top;
        float largest = ((F)((I){0} + top))[0];
        int finite = isfinite(largest);
        /* 127 / largest is infinite for smaller ones. */
        float inverse = finite && largest > 1e-36f ? 127 / largest : 0;
        I sum = {0};
        for (int i = 0; i < GROUP_SIZE; i += LANES) {
            I code = finite ? round_to_int(load(x + i) * inverse) : (I){0};
            sum += code;
            *(Bytes *)(codes + i) = __builtin_convertvector(code, Bytes);
        }
        int32_t whole = 0;
        for (int i = 0; i < LANES; i++) whole += sum[i];
        state->scales[row * (columns / GROUP_SIZE) + g] = finite ? largest / 127 : NAN;
        state->sums[row * (columns / GROUP_SIZE) + g] = whole;
    }
}

/* LayerNorm if there is a bias, else RMSNorm, times `factor`; `to` may be `x`. */
INLINE void normalize(Norm norm, float eps, const float *x, float *to, int size, float factor) {
    if (!norm.weight) {
        for (int i = 0; i < size; i += LANES) *(F *)(to + i) = load(x + i) * factor;
        return;
    }
    F sum = {0};
    float mean = 0;
    if (norm.bias) {
        for (int i = 0; i < size; i += LANES) sum += load(x + i);
        mean = sum_lanes(sum) / size;
        sum = (F){0};
    }
    for (int i = 0; i < size; i += LANES) sum += (load(x + i) - mean) * (load(x + i) - mean);
    float scale = factor / sqrtf(sum_lanes(sum) / size + eps);
    for (int i = 0; i < size; i += LANES) {
        F y = (load(x + i) - mean) * scale * load(norm.weight + i);
        if (norm.bias) y += load(norm.bias + i);
        *(F *)(to + i) = y;
    }
}

/* The part of a call that goes through the blocks at once: `count` tokens of each sequence, the
   first at position `start`. Row `sequence * count + i` is the i-th token of a sequence. */
typedef struct {
    const Model *model;
    const State *state;
    const Block *block;
    const int32_t *tokens;
    int block_index, sequences, token_stride, start, count, threads;
    Norm norm;
    int every, first; /* normed row i is row `first + i * every` of `residual` */
    float *states;    /* where the final states go: that of a sequence's first token, and so on */
} Chunk;

INLINE void embed(const Table *table, int row, int width, float *to, int add) {
    int size = width / table->groups;
    for (int i = 0; i < width; i++) {
        int64_t index = (int64_t)row * width + i;
        float value = table->codes
                          ? table->codes[index] * table->scales[row * table->groups + i / size]
                          : table->values[index];
        to[i] = add ? to[i] + value : value;
    }
}

static void embed_row(void *task, int row) {
    const Chunk *s = task;
    const Model *m = s->model;
    int sequence = row / s->count, i = row % s->count;
    float *x = s->state->residual + (int64_t)row * m->width;
    embed(&m->tokens, s->tokens[sequence * s->token_stride + i], m->width, x, 0);
    if (m->embedding_scale != 1)
        for (int j = 0; j < m->width; j++) x[j] *= m->embedding_scale;
    if (m->positions.codes || m->positions.values) embed(&m->positions, s->start + i, m->width, x, 1);
}

static void norm_row(void *task, int row) {
    const Chunk *s = task;
    int width = s->model->width;
    float *normed = s->state->attention_out + (int64_t)row * width;
    const float *x = s->state->residual + (int64_t)(s->first + row * s->every) * width;
    normalize(s->norm, s->model->norm_eps, x, normed, width, 1);
    quantize_row(s->state, row, width, normed);
}

/* Adds what left a sublayer, after its norm, to the residual stream. */
static void add_normed_row(void *task, int row) {
    const Chunk *s = task;
    int width = s->model->width;
    float *added = s->state->hidden + (int64_t)row * width;
    float *x = s->state->residual + (int64_t)row * width;
    normalize(s->norm, s->model->norm_eps, added, added, width, 1);
    for (int i = 0; i < width; i += LANES) *(F *)(x + i) = load(x + i) + load(added + i);
}

static void final_state_row(void *task, int row) {
    const Chunk *s = task;
    int width = s->model->width;
    int64_t token = (int64_t)(row / s->count) * s->token_stride + row % s->count;
    const float *x = s->state->residual + (int64_t)row * width;
    normalize(s->norm, s->model->norm_eps, x, s->states + token * width, width, 1);
}

static void attention_out_row(void *task, int row) {
    const Chunk *s = task;
    int columns = s->block->out.columns;
    quantize_row(s->state, row, columns, s->state->attention_out + (int64_t)row * columns);
}

/* silu or gelu, by its tanh approximation, of the gate: both are gate * sigmoid(inner). */
static void activate_row(void *task, int row) {
    const Chunk *s = task;
    int rows = s->block->up.rows, size = s->block->down.columns;
    float *x = s->state->hidden + (int64_t)row * rows;
    for (int i = 0; i < size; i += LANES) {
        F gate = load(x + i), inner = gate;
        if (s->model->gelu) inner = 1.5957691216f * (gate + 0.044715f * gate * gate * gate);
        F y = gate / (1 + exp_approx(-inner));
        if (s->model->gated) y *= load(x + size + i);
        *(F *)(x + i) = y;
    }
    quantize_row(s->state, row, size, x);
}
