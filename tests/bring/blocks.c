/* Records caches in blocks of q8_0 and in e5m2, whose bytes are (37 i + 11) mod 251; or makes one mistake.
 *
 *     blocks FOLDER PLAN [MISTAKE] */
#include "firstdiff.h"

enum { T = 5, HK = 2, D = 64, ROW = 68, ROOM = 8 };

int main(int count, char **arguments)
{
    static unsigned char bytes[T * HK * ROW], roomy[HK * ROOM * ROW];
    const int32_t ids[T] = {1, 2, 3, 4, 5};
    const char *mistake = count > 3 ? arguments[3] : "";
    size_t i, t, h, dim = strcmp(mistake, "rows") ? D : 48;
    firstdiff_trace *fd;
    if (count < 3)
        return 2;
    for (i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)((37 * i + 11) % 251);
    for (t = 0; t < T; t++)
        for (h = 0; h < HK; h++)
            memcpy(roomy + (h * ROOM + t) * ROW, bytes + (t * HK + h) * ROW, ROW);
    fd = firstdiff_begin(arguments[1], arguments[2], "blocks");
    firstdiff_step(fd, ids, T);
    if (!strcmp(mistake, "site"))
        firstdiff_tensor(fd, "k", 0, FIRSTDIFF_Q8_0, bytes, firstdiff_heads(T, HK, D));
    if (!strcmp(mistake, "stride"))
        firstdiff_tensor(fd, "k_cache", 0, FIRSTDIFF_Q8_0, bytes, firstdiff_strided(T, 130, HK, D, D, 1));
    if (!strcmp(mistake, "type"))
        firstdiff_tensor(fd, "k_cache", 0, (firstdiff_dtype)99, bytes, firstdiff_heads(T, HK, D));
    if (!strcmp(mistake, "weight"))
        firstdiff_weight(fd, "blk.0.attn_q.weight", FIRSTDIFF_Q8_0, bytes, firstdiff_rows(T, D));
    firstdiff_tensor(fd, "k_cache", 0, FIRSTDIFF_Q8_0, bytes, firstdiff_heads(T, HK, dim));
    /* Heads before positions, with room for more. */
    firstdiff_tensor(fd, "v_cache", 0, FIRSTDIFF_Q8_0, roomy, firstdiff_strided(T, D, HK, ROOM * D, D, 1));
    firstdiff_tensor(fd, "k_cache", 1, FIRSTDIFF_Q8_0, bytes, firstdiff_heads(T, HK, D));
    return firstdiff_end(fd);
}
