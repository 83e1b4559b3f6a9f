/* Records rows of some tokens, a sequence that began before, and the ids of the plan; or makes one mistake.
 *
 *     rows FOLDER PLAN [MISTAKE]
 *
 * Element i of what is written is i mod 61. */
#include "firstdiff.h"

enum { T = 5, E = 9, HQ = 6, HK = 2, D = 4, V = 13, BEFORE = 16 };

static const char *mistake = "";

static int is(const char *name)
{
    return !strcmp(mistake, name);
}

int main(int count, char **arguments)
{
    static float values[4096];
    int32_t ids[8];
    size_t i, n, step, first = BEFORE;
    const size_t some[2] = {0, T - 1}, other[2] = {1, 3}, descending[2] = {3, 1}, outside[2] = {1, T};
    firstdiff_trace *fd;
    if (count < 3)
        return 2;
    mistake = count > 3 ? arguments[3] : "";
    for (i = 0; i < sizeof values / sizeof *values; i++)
        values[i] = (float)(i % 61);
    fd = firstdiff_begin(arguments[1], arguments[2], "rows");
    for (step = 0; (n = firstdiff_plan_step(arguments[2], step, ids, 8)); step++) {
        for (i = 0; i < n; i++)
            printf("%ld%s", (long)ids[i], i + 1 < n ? " " : "\n");
        firstdiff_step_at(fd, ids, n, first - (step && is("position")));
        first += n;
        if (step) {
            firstdiff_f32(fd, "logits", -1, values, 1);
            continue;
        }
        firstdiff_f32(fd, "q", 0, values, n);
        if (is("blocks"))
            for (i = 0; i < 21; i += 8)
                firstdiff_f32(fd, "k_cache", 0, values, i + 8 < 21 ? 8 : 21 - i);
        else
            firstdiff_f32(fd, "k_cache", 0, values, BEFORE + T);
        if (is("cache"))
            firstdiff_of_tokens(fd, "k_cache", 0, FIRSTDIFF_F32, values, firstdiff_heads(2, HK, D), some);
        firstdiff_of_tokens(fd, "layer_out", 1, FIRSTDIFF_F32, values, firstdiff_rows(2, E), other);
        firstdiff_of_tokens(fd, "final_norm", 0, FIRSTDIFF_F32, values, firstdiff_rows(2, E),
                            is("descending") ? descending : is("outside") ? outside : some);
        firstdiff_f32(fd, "logits", -1, values, is("logits") ? 2 : 1);
    }
    printf("then %lu\n", (unsigned long)firstdiff_plan_decode(arguments[2]));
    return firstdiff_end(fd);
}
