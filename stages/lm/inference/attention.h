/* Rotary positions, the key/value cache and attention. */

INLINE void rotate(float *x, const float *cosines, const float *sines, int size) {
    int half = size / 2;
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosines[i] - b * sines[i];
        x[i + half] = b * cosines[i] + a * sines[i];
    }
}

/* Scores of `queries` queries with `blocks` blocks of LANES keys, stored from column `first` on. */
INLINE void score_keys(const int queries, const int blocks, const float *const *query,
                       const Half *keys, int size, float (*scores)[CHUNK_KEYS], int first) {
    F sum[QUERIES][4] = {{{0}}};
    for (int i = 0; i < size; i++)
        UNROLL for (int b = 0; b < blocks; b++) {
            F key = load_half(keys + (b * size + i) * LANES);
            UNROLL for (int q = 0; q < queries; q++)
                sum[q][b] = multiply_add(splat(query[q][i]), key, sum[q][b]);
        }
    UNROLL for (int q = 0; q < queries; q++)
        UNROLL for (int b = 0; b < blocks; b++)
            *(F *)(scores[q] + first + b * LANES) = sum[q][b];
}

/* Adds the values of `keys` keys, weighted by `weights`, to `strip` vectors of each query's output,
   which is first multiplied by `keep`. */
INLINE void weigh_values(const int queries, const int strip, float *const *out,
                         const Half *values, int size, const float (*weights)[CHUNK_KEYS],
                         int keys, const float *keep) {
    F sum[QUERIES][STRIP];
    UNROLL for (int q = 0; q < queries; q++)
        UNROLL for (int v = 0; v < strip; v++) sum[q][v] = load(out[q] + v * LANES) * keep[q];
    for (int k = 0; k < keys; k++, values += size)
        UNROLL for (int v = 0; v < strip; v++) {
            F value = load_half(values + v * LANES);
            UNROLL for (int q = 0; q < queries; q++)
                sum[q][v] = multiply_add(splat(weights[q][k]), value, sum[q][v]);
        }
    UNROLL for (int q = 0; q < queries; q++)
        UNROLL for (int v = 0; v < strip; v++) *(F *)(out[q] + v * LANES) = sum[q][v];
}

/* Softmax attention of queries that see the first `visible[q]` keys each, but of these only the
   last `window` if there is one. The softmax is online
   (Milakov & Gimelshein 2018): scores come CHUNK_KEYS at a time, and what has been summed so far is
   scaled down whenever a larger score appears. */
INLINE void attend(const int queries, const float *const *query, float *const *out,
                   const int *visible, const Half *keys, const Half *values, int size,
                   int window) {
    float scores[QUERIES][CHUNK_KEYS] __attribute__((aligned(64)));
    float max_score[QUERIES], total[QUERIES], keep[QUERIES];
    I lane_index;
    for (int i = 0; i < LANES; i++) lane_index[i] = i;
    for (int q = 0; q < queries; q++) {
        max_score[q] = -INFINITY, total[q] = 0;
        memset(out[q], 0, sizeof(float) * size);
    }
    int longest = visible[queries - 1];
    int begin = window && visible[0] > window ? (visible[0] - window) / CHUNK_KEYS * CHUNK_KEYS : 0;
    for (int first = begin; first < longest; first += CHUNK_KEYS) {
        int length = longest - first < CHUNK_KEYS ? longest - first : CHUNK_KEYS;
        int blocks = (length + LANES - 1) / LANES, b = 0;
        const int together = queries == 1 ? 4 : 2;
        const Half *chunk = keys + (int64_t)first * size;
        for (; b + together <= blocks; b += together)
            score_keys(queries, together, query, chunk + b * size * LANES, size, scores, b * LANES);
        for (; b < blocks; b++)
            score_keys(queries, 1, query, chunk + b * size * LANES, size, scores, b * LANES);
        for (int q = 0; q < queries; q++) {
            F best = splat(-INFINITY), sum = {0};
            const I limit = (I){0} + (visible[q] - first);
            const I least = (I){0} + (window ? visible[q] - window - first : 0);
            for (b = 0; b < blocks; b++) {
                I mask = (lane_index + b * LANES < limit) & (lane_index + b * LANES >= least);
                best = maximum(blend(mask, load(scores[q] + b * LANES), best), best);
            }
            float before = max_score[q], now = max_lane(best);
            max_score[q] = now = now > before ? now : before;
            for (b = 0; b < blocks; b++) {
                I mask = (lane_index + b * LANES < limit) & (lane_index + b * LANES >= least);
                F exps = exp_approx(load(scores[q] + b * LANES) - now);
                exps = (F)((I)exps & mask);
                sum += exps;
                *(F *)(scores[q] + b * LANES) = exps;
            }
            keep[q] = exp_approx(splat(before - now))[0];
            total[q] = total[q] * keep[q] + sum_lanes(sum);
        }
        int offset = 0;
        const float(*weights)[CHUNK_KEYS] = (const float(*)[CHUNK_KEYS])scores;
        const Half *from = values + (int64_t)first * size;
        for (; offset < size; offset += (size - offset < STRIP * LANES ? 1 : STRIP) * LANES) {
            float *part[QUERIES];
            for (int q = 0; q < queries; q++) part[q] = out[q] + offset;
            if (size - offset < STRIP * LANES)
                weigh_values(queries, 1, part, from + offset, size, weights, length, keep);
            else
                weigh_values(queries, STRIP, part, from + offset, size, weights, length, keep);
        }
    }
    for (int q = 0; q < queries; q++)
        for (int i = 0; i < size; i += LANES) *(F *)(out[q] + i) = load(out[q] + i) / total[q];
}

/* Norms all query heads of a row of qkv products as one vector, and all key heads. */
static void norm_heads_row(void *task, int row) {
    const Chunk *s = task;
    const Model *m = s->model;
    int size = m->head_size, stride = (m->heads + 2 * m->kv_heads) * size;
    float *query = s->state->hidden + (int64_t)row * stride, *key = query + m->heads * size;
    normalize(s->block->query_norm, m->norm_eps, query, query, m->heads * size, 1);
    normalize(s->block->key_norm, m->norm_eps, key, key, m->kv_heads * size, 1);
}

/* Normalizes and rotates the queries and keys of a chunk on one key/value head, in `rows`, the qkv
   products of its sequence; appends the keys and values to the cache. */
static void prepare_head(const Chunk *s, float *rows, int head, Half *keys, Half *values) {
    const Model *m = s->model;
    int size = m->head_size, shared = m->heads / m->kv_heads;
    int stride = (m->heads + 2 * m->kv_heads) * size;
    const Norm none = {0};
    Norm query_norm = m->norm_all_heads ? none : s->block->query_norm;
    Norm key_norm = m->norm_all_heads ? none : s->block->key_norm;
    for (int i = 0; i < s->count; i++) {
        int position = s->start + i;
        float *query = rows + (int64_t)i * stride + head * shared * size;
        float *key = rows + (int64_t)i * stride + (m->heads + head) * size;
        float *value = key + m->kv_heads * size;
        float scale = 1 / sqrtf((float)size);
        for (int q = 0; q < shared; q++)
            normalize(query_norm, m->norm_eps, query + q * size, query + q * size, size, scale);
        normalize(key_norm, m->norm_eps, key, key, size, 1);
        if (s->block->cosines) {
            const float *cosines = s->block->cosines + (int64_t)position * size;
            const float *sines = s->block->sines + (int64_t)position * size;
            for (int q = 0; q < shared; q++) rotate(query + q * size, cosines, sines, size);
            rotate(key, cosines, sines, size);
        }
        Half *column = keys + (int64_t)(position / LANES) * size * LANES + position % LANES;
        for (int j = 0; j < size; j += LANES) {
            Half block[LANES] __attribute__((aligned(64)));
            store_half(load(key + j), block);
            for (int l = 0; l < LANES; l++) column[(j + l) * LANES] = block[l];
            store_half(load(value + j), values + (int64_t)position * size + j);
        }
    }
}

/* Attention of all queries of a chunk that share one key/value head of one sequence. */
static void attend_head(void *task, int item) {
    const Chunk *s = task;
    const Model *m = s->model;
    int sequence = item / m->kv_heads, head = item % m->kv_heads, size = m->head_size;
    int shared = m->heads / m->kv_heads, stride = (m->heads + 2 * m->kv_heads) * size;
    int64_t cache = (int64_t)s->block_index * s->state->batch * m->kv_heads + item;
    Half *keys = s->state->keys + cache * s->state->room * size;
    Half *values = s->state->values + cache * s->state->room * size;
    float *rows = s->state->hidden + (int64_t)sequence * s->count * stride;
    float *attention_out = s->state->attention_out + (int64_t)sequence * s->count * m->heads * size;
    prepare_head(s, rows, head, keys, values);
    int all = s->count * shared, window = s->block->window;
    for (int i = 0; i < all;) {
        const float *query[QUERIES];
        float *out[QUERIES];
        int visible[QUERIES], together = all - i < QUERIES ? 1 : QUERIES;
        for (int q = 0; q < together; q++) {
            int token = (i + q) / shared, offset = (head * shared + (i + q) % shared) * size;
            query[q] = rows + (int64_t)token * stride + offset;
            out[q] = attention_out + (int64_t)token * m->heads * size + offset;
            visible[q] = s->start + token + 1;
        }
        if (together == 1) attend(1, query, out, visible, keys, values, size, window);
        else attend(QUERIES, query, out, visible, keys, values, size, window);
        i += together;
    }
}
