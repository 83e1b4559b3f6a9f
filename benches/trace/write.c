/* What recording costs beside writing the same bytes: both by turns, each into files of its own that
 * are removed outside of the timing.
 *
 *     write FOLDER PLAN STEPS TOKENS REPEATS
 *
 * prints a line of nanoseconds, plain and recorded, for each repeat. */
#include "firstdiff.h"

#include <time.h>

/* Of the plan; every site but the caches and scores, whose size depends on the positions. */
enum { LAYERS = 6, EMBD = 896, HEADS = 14, KV_HEADS = 2, DIM = 64, FF = 4864 };

static const struct {
    const char *site;
    size_t width;
} sites[] = {
    {"attn_norm", EMBD},        {"q", HEADS * DIM},        {"k", KV_HEADS * DIM},
    {"v", KV_HEADS * DIM},      {"q_rope", HEADS * DIM},   {"k_rope", KV_HEADS * DIM},
    {"attn_out", HEADS * DIM},  {"o_proj", EMBD},          {"attn_residual", EMBD},
    {"ffn_norm", EMBD},         {"ffn_gate", FF},          {"ffn_up", FF},
    {"ffn_act", FF},            {"ffn_down", EMBD},        {"layer_out", EMBD},
};
enum { SITES = sizeof sites / sizeof *sites };

static double now(void)
{
    struct timespec time;
    timespec_get(&time, TIME_UTC);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static void step_path(char *path, size_t room, const char *folder, int step)
{
    snprintf(path, room, "%s/step-%04d.safetensors", folder, step);
}

/* Writes the tensors of a run with plain fwrite, a file a step. */
static int plain(const char *folder, int steps, size_t tokens, const float *values)
{
    /* As many bytes as the recorded step has before its data. */
    static char header[(8 + LAYERS * 24 * 192 + 256 + 4095) / 4096 * 4096];
    char path[1200];
    int step, layer, failed = 0;
    size_t i;
    for (step = 0; step < steps; step++) {
        FILE *file;
        step_path(path, sizeof path, folder, step);
        file = fopen(path, "wb");
        if (!file)
            return 1;
        failed |= fwrite(header, 1, sizeof header, file) != sizeof header;
        for (layer = 0; layer < LAYERS; layer++)
            for (i = 0; i < SITES; i++)
                failed |= fwrite(values, sites[i].width * sizeof *values, tokens, file) != tokens;
        failed |= fclose(file);
    }
    return failed;
}

static int recorded(const char *folder, const char *plan, int steps, size_t tokens,
                    const float *values)
{
    static int32_t ids[4096];
    firstdiff_trace *fd = firstdiff_begin(folder, plan, "bench");
    int step, layer;
    size_t i;
    for (step = 0; step < steps; step++) {
        firstdiff_step(fd, ids, tokens);
        for (layer = 0; layer < LAYERS; layer++)
            for (i = 0; i < SITES; i++)
                firstdiff_f32(fd, sites[i].site, layer, values, tokens);
    }
    return firstdiff_end(fd);
}

static void clear(const char *folder, int steps)
{
    char path[1200];
    for (; steps >= 0; steps--) {
        step_path(path, sizeof path, folder, steps);
        remove(path);
    }
    snprintf(path, sizeof path, "%s/manifest.json", folder);
    remove(path);
    remove(folder);
}

int main(int count, char **arguments)
{
    char folder[900];
    int steps, repeats, repeat;
    size_t tokens, i, most;
    float *values;
    if (count != 6)
        return 2;
    steps = atoi(arguments[3]), tokens = (size_t)atoi(arguments[4]), repeats = atoi(arguments[5]);
    most = tokens * FF;
    values = (float *)malloc(most * sizeof *values);
    if (!values || tokens > 4096)
        return 1;
    for (i = 0; i < most; i++)
        values[i] = (float)(i % 8191) - 4095.0f;
    for (repeat = 0; repeat < repeats; repeat++) {
        double spent[2], start;
        int turn;
        for (turn = 0; turn < 2; turn++) {
            /* The first of the two has the emptier page cache: it is each in turn. */
            int record = (turn + repeat) % 2;
            snprintf(folder, sizeof folder, "%s/%d-%d", arguments[1], repeat, record);
            if (!record)
                mkdir(folder, 0777);
            start = now();
            if (record ? recorded(folder, arguments[2], steps, tokens, values)
                       : plain(folder, steps, tokens, values))
                return 1;
            spent[record] = now() - start;
            clear(folder, steps);
        }
        printf("%.0f %.0f\n", spent[0], spent[1]);
    }
    free(values);
    return 0;
}
