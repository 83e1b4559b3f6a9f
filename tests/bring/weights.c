/* Records weights in every layout and format, or makes one mistake.
 *
 *     weights FOLDER PLAN [MISTAKE]
 *
 * Element i of a weight is i mod 61 less 30. */
#include "firstdiff.h"

enum { ROWS = 300, COLS = 240, SMALL = 24 };

static float wide[ROWS * COLS];
static double small[SMALL];
static uint16_t bf16[SMALL], f16[3] = {0x3c00, 0x8001, 0x7bff};

static int to_host(void *host, const void *device, size_t bytes)
{
    memcpy(host, (const char *)wide + ((uintptr_t)device - 4096), bytes);
    return 0;
}

int main(int count, char **arguments)
{
    const char *mistake = count > 3 ? arguments[3] : "";
    const int32_t ids[5] = {1, 2, 3, 4, 5};
    firstdiff_trace *fd = firstdiff_begin(arguments[1], arguments[2], "weights");
    int i;
    for (i = 0; i < ROWS * COLS; i++)
        wide[i] = (float)(i % 61 - 30);
    for (i = 0; i < SMALL; i++) {
        float x = (float)(i % 61 - 30);
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        small[i] = x, bf16[i] = (uint16_t)(bits >> 16);
    }
    if (!strcmp(mistake, "late"))
        firstdiff_step(fd, ids, 5);
    if (!strcmp(mistake, "name"))
        firstdiff_weight(fd, "a\"b", FIRSTDIFF_F32, wide, firstdiff_rows(1, 4));
    if (!strcmp(mistake, "empty"))
        firstdiff_weight(fd, "a", FIRSTDIFF_F32, wide, firstdiff_rows(0, 4));
    if (!strcmp(mistake, "null"))
        firstdiff_weight(fd, "a", FIRSTDIFF_F32, NULL, firstdiff_rows(1, 4));
    firstdiff_weight(fd, "blk.0.ffn_up.weight", FIRSTDIFF_F32, wide, firstdiff_rows(ROWS, COLS));
    /* Columns first: the same memory, transposed. */
    firstdiff_weight(fd, "turned=blk.0.ffn_up.weight", FIRSTDIFF_F32, wide,
                     firstdiff_strided(COLS, 1, ROWS, COLS, 1, 1));
    firstdiff_weight(fd, "qk=blk.0.attn_q.weight[0:2] blk.0.attn_k.weight", FIRSTDIFF_F64, small,
                     firstdiff_rows(4, 6));
    firstdiff_weight(fd, "narrow", FIRSTDIFF_BF16, bf16, firstdiff_rows(1, SMALL));
    firstdiff_weight(fd, "half", FIRSTDIFF_F16, f16, firstdiff_rows(1, 3));
    firstdiff_device(fd, to_host);
    firstdiff_weight(fd, "device", FIRSTDIFF_F32, (const void *)4096, firstdiff_rows(ROWS, COLS));
    firstdiff_device(fd, NULL);
    firstdiff_step(fd, ids, 5);
    return firstdiff_end(fd);
}
