/* A small forward pass of llama, qwen2 and qwen3 models, to show how an engine is recorded.
 *
 *     engine MODEL.gguf PLAN.txt [TRACE] [--bug NAME]
 *
 * Runs the token ids of a plan that `firstdiff capture reference` wrote, and records what it
 * computes in the folder TRACE. The lines marked with //+ are all that recording takes. Plain loops
 * in f32; f32 and f16 weights. --bug plants a mistake: `engine` alone lists them.
 */
#include "gguf.h"
#include "firstdiff.h" //+

static const char *const BUGS[] = {
    "embd-scaled",          "norm-eps-1e-2",          "qkv-bias-zero",
    "rope-base-1e4",        "rope-decode-from-zero",  "rope-pairs-interleaved",
    "rope-position-plus-one", "k-stored-before-rope", "decode-overwrites-last",
    "kv-head-modulo",       "scale-missing",          "mask-off-by-one",
    "softmax-unnormalised", "wo-transposed",          "attn-residual-missing",
    "gelu-for-silu",        "gate-up-swapped",        "final-norm-missing",
};
static const char *bug = "";

static int planted(const char *name)
{
    return !strcmp(bug, name);
}

typedef struct {
    float *attn_norm, *wq, *wk, *wv, *bq, *bk, *bv, *q_norm, *k_norm, *wo;
    float *ffn_norm, *gate, *up, *down;
} layer_weights;

typedef struct {
    int layers, E, Hq, Hk, D, F, V, interleaved; /* interleaved: rope turns (2i, 2i+1) */
    float eps, theta;
    float *embd, *final_norm, *output, *rope_factors;
    layer_weights *layer;
} model;

/* Activations of all tokens of a step, and the KV cache. */
typedef struct {
    int capacity; /* positions in the cache */
    float *x, *norm, *q, *k, *v, *scores, *probs, *heads, *y, *gate, *up, *act, *logits;
    float *k_cache; /* [layer][head][position][dim] */
    float *v_cache; /* [layer][head][dim][position] */
} state;

static firstdiff_trace *recorder; //+

/* A weight of a layer. One that must be there ends the program if it is not. */
static float *weight(const gguf_file *g, int layer, const char *part, int count, int required)
{
    char name[64];
    float *data;
    if (layer < 0)
        snprintf(name, sizeof name, "%s", part);
    else
        snprintf(name, sizeof name, "blk.%d.%s", layer, part);
    data = gguf_tensor(g, name, (uint64_t)count);
    if (!data && required) {
        fprintf(stderr, "%s has no tensor %s\n", g->path, name);
        exit(2);
    }
    if (data) //+
        firstdiff_weight(recorder, name, FIRSTDIFF_F32, data, //+
                         firstdiff_rows(gguf_rows(g, name), (size_t)count / gguf_rows(g, name))); //+
    return data;
}

static int size_of(const gguf_file *g, const char *architecture, const char *key, int absent)
{
    char name[96];
    double value;
    snprintf(name, sizeof name, "%s.%s", architecture, key);
    value = gguf_number(g, name, absent);
    if (!(value >= 1 && value < 1e8)) {
        fprintf(stderr, "%s: %s is missing or is not a size\n", g->path, name);
        exit(2);
    }
    return (int)value;
}

static void load_layer(const gguf_file *g, const model *m, int l, layer_weights *w)
{
    int E = m->E, q = m->Hq * m->D, k = m->Hk * m->D;
    w->attn_norm = weight(g, l, "attn_norm.weight", E, 1);
    w->wq = weight(g, l, "attn_q.weight", q * E, 1);
    w->wk = weight(g, l, "attn_k.weight", k * E, 1);
    w->wv = weight(g, l, "attn_v.weight", k * E, 1);
    w->bq = planted("qkv-bias-zero") ? NULL : weight(g, l, "attn_q.bias", q, 0);
    w->bk = planted("qkv-bias-zero") ? NULL : weight(g, l, "attn_k.bias", k, 0);
    w->bv = planted("qkv-bias-zero") ? NULL : weight(g, l, "attn_v.bias", k, 0);
    w->q_norm = weight(g, l, "attn_q_norm.weight", m->D, 0);
    w->k_norm = weight(g, l, "attn_k_norm.weight", m->D, 0);
    w->wo = weight(g, l, "attn_output.weight", E * q, 1);
    w->ffn_norm = weight(g, l, "ffn_norm.weight", E, 1);
    w->gate = weight(g, l, "ffn_gate.weight", m->F * E, 1);
    w->up = weight(g, l, "ffn_up.weight", m->F * E, 1);
    w->down = weight(g, l, "ffn_down.weight", E * m->F, 1);
}

static model load(const gguf_file *g)
{
    model m;
    char arch[16], name[96];
    int l;
    gguf_string(g, "general.architecture", arch, sizeof arch);
    if (strcmp(arch, "llama") && strcmp(arch, "qwen2") && strcmp(arch, "qwen3"))
        gguf_die(g, "is not a llama, qwen2 or qwen3 model");
    m.layers = size_of(g, arch, "block_count", 0);
    m.E = size_of(g, arch, "embedding_length", 0);
    m.Hq = size_of(g, arch, "attention.head_count", 0);
    m.Hk = size_of(g, arch, "attention.head_count_kv", m.Hq);
    m.D = size_of(g, arch, "attention.key_length", m.E / m.Hq);
    m.F = size_of(g, arch, "feed_forward_length", 0);
    m.interleaved = (strcmp(arch, "llama") == 0) != planted("rope-pairs-interleaved");
    snprintf(name, sizeof name, "%s.rope.freq_base", arch);
    m.theta = planted("rope-base-1e4") ? 10000.0f : (float)gguf_number(g, name, 10000.0);
    snprintf(name, sizeof name, "%s.attention.layer_norm_rms_epsilon", arch);
    m.eps = planted("norm-eps-1e-2") ? 1e-2f : (float)gguf_number(g, name, 1e-5);
    m.V = (int)gguf_rows(g, "token_embd.weight");
    m.embd = weight(g, -1, "token_embd.weight", m.V * m.E, 1);
    m.final_norm = weight(g, -1, "output_norm.weight", m.E, 1);
    m.output = weight(g, -1, "output.weight", m.V * m.E, 0);
    m.rope_factors = weight(g, -1, "rope_freqs.weight", m.D / 2, 0);
    if (!m.output)
        m.output = m.embd;
    m.layer = gguf_alloc(g, (uint64_t)m.layers, sizeof *m.layer);
    for (l = 0; l < m.layers; l++)
        load_layer(g, &m, l, &m.layer[l]);
    return m;
}

static state allocate(const gguf_file *g, const model *m, int most, int capacity)
{
    state s;
    uint64_t T = (uint64_t)most, C = (uint64_t)capacity, E = (uint64_t)m->E, F = (uint64_t)m->F;
    uint64_t q = (uint64_t)(m->Hq * m->D), k = (uint64_t)(m->Hk * m->D), Hq = (uint64_t)m->Hq;
    float **const parts[] = {&s.x, &s.norm, &s.q, &s.k, &s.v, &s.scores, &s.probs, &s.heads, &s.y,
                             &s.gate, &s.up, &s.act, &s.logits, &s.k_cache, &s.v_cache};
    const uint64_t counts[] = {T * E, T * E, T * q, T * k, T * k, T * Hq * C, T * Hq * C, T * q,
                               T * E, T * F, T * F, T * F, T * (uint64_t)m->V,
                               (uint64_t)m->layers * k * C, (uint64_t)m->layers * k * C};
    size_t i;
    for (i = 0; i < sizeof parts / sizeof *parts; i++)
        *parts[i] = gguf_alloc(g, counts[i], sizeof(float));
    s.capacity = capacity;
    return s;
}

static void rms_norm(float *out, const float *x, const float *w, int rows, int n, float eps)
{
    for (; rows--; out += n, x += n) {
        float sum = 0, scale;
        int i;
        for (i = 0; i < n; i++)
            sum += x[i] * x[i];
        scale = 1.0f / sqrtf(sum / (float)n + eps);
        for (i = 0; i < n; i++)
            out[i] = x[i] * scale * (w ? w[i] : 1.0f);
    }
}

/* out: (rows, n), x: (rows, inputs), w: (n, inputs) */
static void linear(float *out, const float *x, const float *w, const float *bias, int rows, int n,
                   int inputs, int transposed)
{
    int row, i, j, along = transposed ? n : 1, across = transposed ? 1 : inputs;
    for (row = 0; row < rows; row++)
        for (i = 0; i < n; i++) {
            const float *of_output = w + (ptrdiff_t)i * across;
            float sum = 0;
            for (j = 0; j < inputs; j++)
                sum += of_output[(ptrdiff_t)j * along] * x[row * inputs + j];
            out[row * n + i] = bias ? sum + bias[i] : sum;
        }
}

static void rope(const model *m, float *x, int rows, int heads, int first)
{
    int row, head, i;
    if (planted("rope-position-plus-one"))
        first++;
    if (planted("rope-decode-from-zero") && first > 0)
        first = 0;
    for (row = 0; row < rows; row++)
        for (head = 0; head < heads; head++)
            for (i = 0; i < m->D / 2; i++) {
                float *h = x + (row * heads + head) * m->D;
                float *a = h + (m->interleaved ? 2 * i : i);
                float *b = h + (m->interleaved ? 2 * i + 1 : i + m->D / 2);
                double turn = pow(m->theta, -2.0 * i / m->D) * (first + row);
                float angle = (float)(m->rope_factors ? turn / m->rope_factors[i] : turn);
                float c = cosf(angle), s = sinf(angle), old = *a;
                *a = old * c - *b * s;
                *b = old * s + *b * c;
            }
}

/* Puts the keys and values of the step's tokens into the layer's cache. */
static void append(const model *m, state *s, float *k_cache, float *v_cache, int T, int first)
{
    int t, h, d, late = planted("decode-overwrites-last") && first > 0;
    for (t = 0; t < T; t++)
        for (h = 0; h < m->Hk; h++)
            for (d = 0; d < m->D; d++) {
                int at = (t * m->Hk + h) * m->D + d, position = first + t - late;
                k_cache[(h * s->capacity + position) * m->D + d] = s->k[at];
                v_cache[(h * m->D + d) * s->capacity + position] = s->v[at];
            }
}

/* Attention of one query head of one token over the keys [0, position]. scores and probs: (P) */
static void attend(const model *m, const state *s, const float *q, const float *keys,
                   const float *values, float *scores, float *probs, float *out, int position)
{
    float scale = planted("scale-missing") ? 1.0f : 1.0f / sqrtf((float)m->D), most, sum = 0;
    int seen = planted("mask-off-by-one") && position > 0 ? position : position + 1, j, d;
    for (j = 0; j <= position; j++) {
        scores[j] = 0;
        for (d = 0; d < m->D; d++)
            scores[j] += q[d] * keys[j * m->D + d];
        scores[j] *= scale;
    }
    for (j = 1, most = scores[0]; j < seen; j++)
        most = scores[j] > most ? scores[j] : most;
    for (j = 0; j <= position; j++) {
        probs[j] = j < seen ? expf(scores[j] - most) : 0.0f;
        sum += probs[j];
    }
    for (j = 0; j <= position; j++)
        probs[j] /= planted("softmax-unnormalised") ? 1.0f : sum;
    for (d = 0; d < m->D; d++)
        for (j = 0, out[d] = 0; j <= position; j++)
            out[d] += probs[j] * values[d * s->capacity + j];
}

static void attention(const model *m, state *s, const float *k_cache, const float *v_cache, int T,
                      int first)
{
    int t, h, P = first + T, head = m->D * s->capacity;
    memset(s->scores, 0, sizeof(float) * (size_t)(T * m->Hq * P));
    memset(s->probs, 0, sizeof(float) * (size_t)(T * m->Hq * P));
    for (t = 0; t < T; t++)
        for (h = 0; h < m->Hq; h++) {
            int kv = planted("kv-head-modulo") ? h % m->Hk : h / (m->Hq / m->Hk);
            int at = t * m->Hq + h;
            attend(m, s, s->q + at * m->D, k_cache + kv * head, v_cache + kv * head,
                   s->scores + at * P, s->probs + at * P, s->heads + at * m->D, first + t);
        }
}

static float activation(float x)
{
    if (planted("gelu-for-silu"))
        return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    return x / (1.0f + expf(-x));
}

static void add(float *x, const float *y, int n, int missing)
{
    int i;
    for (i = 0; i < n; i++)
        x[i] = missing ? y[i] : x[i] + y[i];
}

#define TAP(site, part) firstdiff_f32(fd, #site, l, s->part, (size_t)T) //+

/* x through layer l; the step's T tokens follow `first` others. */
static void forward_layer(const model *m, state *s, int l, int T, int first, firstdiff_trace *fd)
{
    const layer_weights *w = &m->layer[l];
    int E = m->E, D = m->D, Hq = m->Hq, Hk = m->Hk, F = m->F, P = first + T, C = s->capacity, i;
    int S = C * D; /* stride of a head in the cache */
    float *kc = s->k_cache + l * Hk * S, *vc = s->v_cache + l * Hk * S;

    rms_norm(s->norm, s->x, w->attn_norm, T, E, m->eps);
    linear(s->q, s->norm, w->wq, w->bq, T, Hq * D, E, 0);
    linear(s->k, s->norm, w->wk, w->bk, T, Hk * D, E, 0);
    linear(s->v, s->norm, w->wv, w->bv, T, Hk * D, E, 0);
    TAP(attn_norm, norm), TAP(q, q), TAP(k, k), TAP(v, v); //+
    if (w->q_norm && w->k_norm) {
        rms_norm(s->q, s->q, w->q_norm, T * Hq, D, m->eps);
        rms_norm(s->k, s->k, w->k_norm, T * Hk, D, m->eps);
        TAP(q_norm, q), TAP(k_norm, k); //+
    }
    if (planted("k-stored-before-rope"))
        append(m, s, kc, vc, T, first);
    rope(m, s->q, T, Hq, first);
    rope(m, s->k, T, Hk, first);
    TAP(q_rope, q), TAP(k_rope, k); //+
    if (!planted("k-stored-before-rope"))
        append(m, s, kc, vc, T, first);
    firstdiff_tensor(fd, "k_cache", l, FIRSTDIFF_F32, kc, firstdiff_strided(P, D, Hk, S, D, 1)); //+
    firstdiff_tensor(fd, "v_cache", l, FIRSTDIFF_F32, vc, firstdiff_strided(P, 1, Hk, S, D, C)); //+
    attention(m, s, kc, vc, T, first);
    linear(s->y, s->heads, w->wo, NULL, T, E, Hq * D, planted("wo-transposed"));
    TAP(scores, scores), TAP(probs, probs), TAP(attn_out, heads), TAP(o_proj, y); //+
    add(s->x, s->y, T * E, planted("attn-residual-missing"));
    rms_norm(s->norm, s->x, w->ffn_norm, T, E, m->eps);
    linear(s->gate, s->norm, w->gate, NULL, T, F, E, 0);
    linear(s->up, s->norm, w->up, NULL, T, F, E, 0);
    TAP(attn_residual, x), TAP(ffn_norm, norm), TAP(ffn_gate, gate), TAP(ffn_up, up); //+
    for (i = 0; i < T * F; i++)
        s->act[i] = planted("gate-up-swapped") ? activation(s->up[i]) * s->gate[i]
                                               : activation(s->gate[i]) * s->up[i];
    linear(s->y, s->act, w->down, NULL, T, E, F, 0);
    add(s->x, s->y, T * E, 0);
    TAP(ffn_act, act), TAP(ffn_down, y), TAP(layer_out, x); //+
}

/* One step: the logits of all T tokens in s->logits. */
static void forward(const model *m, state *s, const int32_t *ids, int T, int first,
                    firstdiff_trace *fd)
{
    int t, i, l = 0;
    float scale = planted("embd-scaled") ? sqrtf((float)m->E) : 1.0f;
    for (t = 0; t < T; t++)
        for (i = 0; i < m->E; i++)
            s->x[t * m->E + i] = m->embd[(size_t)ids[t] * (size_t)m->E + (size_t)i] * scale;
    firstdiff_step(fd, ids, (size_t)T); //+
    TAP(embd, x); //+
    for (l = 0; l < m->layers; l++)
        forward_layer(m, s, l, T, first, fd);
    if (planted("final-norm-missing"))
        memcpy(s->norm, s->x, sizeof(float) * (size_t)(T * m->E));
    else
        rms_norm(s->norm, s->x, m->final_norm, T, m->E, m->eps);
    linear(s->logits, s->norm, m->output, NULL, T, m->V, m->E, 0);
    TAP(final_norm, norm), TAP(logits, logits); //+
}

/* The ids of the plan's steps, one after another; `ends` is where each step ends. `own` more steps have
 * tokens of the engine's own choice. */
typedef struct {
    int32_t *ids;
    int *ends, steps, most, total, own;
} plan;

/* Reads the plan: its steps, and room for the tokens that the engine chooses itself after them. */
static plan read_plan(const char *path, int n_vocab)
{
    plan p = {NULL, NULL, 0, 0, 0, 0};
    size_t n;
    int i;
    while ((n = firstdiff_plan_step(path, (size_t)p.steps, NULL, 0))) {
        p.ends = realloc(p.ends, sizeof *p.ends * (size_t)(p.steps + 1));
        p.ids = realloc(p.ids, sizeof *p.ids * ((size_t)p.total + n));
        if (!p.ends || !p.ids)
            exit(2);
        firstdiff_plan_step(path, (size_t)p.steps, p.ids + p.total, n);
        p.total += (int)n;
        p.ends[p.steps++] = p.total;
        p.most = (int)n > p.most ? (int)n : p.most;
    }
    for (i = 0; i < p.total && p.ids[i] >= 0 && p.ids[i] < n_vocab; i++)
        ;
    if (!p.total || i < p.total) {
        fprintf(stderr, "%s has no steps with ids of this model; give a plan.txt\n", path);
        exit(2);
    }
    p.own = (int)firstdiff_plan_decode(path);
    p.ids = realloc(p.ids, sizeof *p.ids * (size_t)(p.total + p.own));
    p.ends = realloc(p.ends, sizeof *p.ends * (size_t)(p.steps + p.own));
    if (!p.ends || !p.ids)
        exit(2);
    return p;
}

static int usage(void)
{
    size_t i;
    fprintf(stderr, "usage: engine MODEL.gguf PLAN.txt [TRACE] [--bug NAME]; bugs:\n");
    for (i = 0; i < sizeof BUGS / sizeof *BUGS; i++)
        fprintf(stderr, "  %s\n", BUGS[i]);
    return 2;
}

/* Takes `--bug NAME` from the end of the arguments; 0 where there is no such bug. */
static int take_bug(int *count, char **arguments)
{
    size_t i;
    if (*count < 3 || strcmp(arguments[*count - 2], "--bug"))
        return 1;
    for (i = 0; i < sizeof BUGS / sizeof *BUGS; i++)
        if (!strcmp(arguments[*count - 1], BUGS[i]))
            bug = BUGS[i];
    *count -= 2;
    return *bug != 0;
}

int main(int count, char **arguments)
{
    gguf_file g;
    model m;
    plan p;
    state s;
    int step, first = 0;
    if (!take_bug(&count, arguments) || count < 3 || count > 4)
        return usage();
    g = gguf_open(arguments[1]);
    firstdiff_trace *fd = firstdiff_begin(arguments[3], arguments[2], "c_engine"); //+
    recorder = fd; //+
    m = load(&g);
    p = read_plan(arguments[2], m.V);
    s = allocate(&g, &m, p.most, p.total + p.own);
    for (step = 0; step < p.steps; step++) {
        int T = p.ends[step] - first, best = 0, i;
        const float *last = s.logits + (T - 1) * m.V;
        forward(&m, &s, p.ids + first, T, first, fd);
        first = p.ends[step];
        for (i = 1; i < m.V; i++)
            best = last[i] > last[best] ? i : best;
        printf("step %d: %d tokens, then %d\n", step, T, best);
        if (step + 1 == p.steps && p.own-- > 0)
            p.ids[p.total++] = best, p.ends[p.steps++] = p.total;
    }
    return firstdiff_end(fd); //+
}
