/* Runs the ids of a plan through llama2.c, whose run.c lies beside this file with the lines that record it.
 *
 *     driver MODEL.bin PLAN.txt TRACE
 */
#include "firstdiff.h"

static firstdiff_trace *fd_trace;
static float *fd_scores; /* (n_heads, seq_len), before the softmax */

/* The engine has a key and value head for each query head: the first of each group is the model's. */
#define MODEL_HEADS(p, rows) \
    firstdiff_strided(rows, (p)->dim, (size_t)(p)->n_kv_heads, \
                      (p)->dim / (p)->n_kv_heads, (size_t)((p)->dim / (p)->n_heads), 1)

#define main llama2_c_main
#include "run.c"
#undef main

static void put_weight(const char *own, const float *data, int rows, int width, int layer)
{
    char names[128];
    snprintf(names, sizeof names, "blk.%d.%s.weight", layer, own);
    firstdiff_weight(fd_trace, names, FIRSTDIFF_F32, data, firstdiff_rows((size_t)rows, (size_t)width));
}

/* A matrix that has the model's heads as often as query heads read them: the first of each. */
static void put_heads(const char *own, const float *data, const Config *p, int layer)
{
    char names[128];
    size_t d = (size_t)p->dim, head = d / (size_t)p->n_heads;
    snprintf(names, sizeof names, "blk.%d.%s.weight", layer, own);
    firstdiff_weight(fd_trace, names, FIRSTDIFF_F32, data,
                     firstdiff_strided((size_t)p->n_kv_heads, p->dim / p->n_kv_heads * p->dim, head, p->dim, d, 1));
}

static void put_weights(const Config *p, const TransformerWeights *w)
{
    int l, d = p->dim, f = p->hidden_dim;
    firstdiff_weight(fd_trace, "token_embd.weight", FIRSTDIFF_F32, w->token_embedding_table,
                     firstdiff_rows((size_t)p->vocab_size, (size_t)d));
    for (l = 0; l < p->n_layers; l++) {
        put_weight("attn_norm", w->rms_att_weight + l * d, 1, d, l);
        put_weight("attn_q", w->wq + l * d * d, d, d, l);
        put_heads("attn_k", w->wk + l * d * d, p, l);
        put_heads("attn_v", w->wv + l * d * d, p, l);
        put_weight("attn_output", w->wo + l * d * d, d, d, l);
        put_weight("ffn_norm", w->rms_ffn_weight + l * d, 1, d, l);
        put_weight("ffn_gate", w->w1 + l * d * f, f, d, l);
        put_weight("ffn_down", w->w2 + l * d * f, d, f, l);
        put_weight("ffn_up", w->w3 + l * d * f, f, d, l);
    }
    firstdiff_weight(fd_trace, "output_norm.weight", FIRSTDIFF_F32, w->rms_final_weight, firstdiff_rows(1, (size_t)d));
}

static float *checkpoint(const char *path, Config *config)
{
    FILE *file = fopen(path, "rb");
    float *data;
    long size;
    if (!file || fread(config, sizeof *config, 1, file) != 1)
        return NULL;
    fseek(file, 0, SEEK_END);
    size = ftell(file) - (long)sizeof *config;
    fseek(file, sizeof *config, SEEK_SET);
    data = malloc((size_t)size);
    if (data && fread(data, 1, (size_t)size, file) != (size_t)size)
        data = NULL;
    fclose(file);
    return data;
}

int main(int count, char **arguments)
{
    Config config;
    TransformerWeights weights;
    RunState state;
    int32_t ids[64];
    size_t step, n, t;
    int pos = 0;
    float *data = count == 4 ? checkpoint(arguments[1], &config) : NULL;
    if (!data) {
        fprintf(stderr, "usage: driver MODEL.bin PLAN.txt TRACE; the model must be a checkpoint of llama2.c\n");
        return 2;
    }
    checkpoint_init_weights(&weights, &config, data, config.vocab_size > 0);
    config.vocab_size = abs(config.vocab_size);
    malloc_run_state(&state, &config);
    fd_scores = calloc((size_t)(config.n_heads * config.seq_len), sizeof *fd_scores);
    fd_trace = firstdiff_begin(arguments[3], arguments[2], "llama2.c");
    put_weights(&config, &weights);
    for (step = 0; (n = firstdiff_plan_step(arguments[2], step, ids, 64)); step++) {
        firstdiff_step(fd_trace, ids, n);
        for (t = 0; t < n && pos < config.seq_len; t++)
            transformer(ids[t], pos++, &config, &state, &weights);
    }
    return firstdiff_end(fd_trace);
}
