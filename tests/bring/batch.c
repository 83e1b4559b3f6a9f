/* Records a step of two sequences, padded on the left to one length, and one of a token of each, with a cache in
 * pages.
 *
 *     batch FOLDER PLAN [single | behind | prefix]
 *
 * With `single`, one sequence instead, of which two tokens are rejected. With `behind`, one that begins behind a
 * prefix; with `prefix`, one of a batch that does.
 *
 * Row r of what is written is r, its last axis counting in hundredths. */
#include "firstdiff.h"

enum { HQ = 6, HK = 2, D = 4, V = 13, SLOTS = 12, PAGE = 2 };

static float values[1024];

/* Fills rows of that many lines of some elements. */
static const float *rows(size_t n, size_t lines, size_t width)
{
    size_t i;
    for (i = 0; i < n * lines * width; i++)
        values[i] = (float)(i / (lines * width)) + (float)(i % width) / 100.0f;
    return values;
}

int main(int count, char **arguments)
{
    const int32_t padded[6] = {1, 2, 3, 0, 4, 5}, decoded[2] = {6, 7};
    const size_t long_blocks[2] = {4, 1}, short_blocks[2] = {0, 5}, keys[3] = {1, 2, 3}, last[2] = {2, 5};
    firstdiff_sequence sequences[2];
    firstdiff_trace *fd;
    if (count < 3)
        return 2;
    memset(sequences, 0, sizeof sequences);
    fd = firstdiff_begin(arguments[1], arguments[2], "batch");
    if (count > 3 && !strcmp(arguments[3], "behind")) {
        firstdiff_step_behind(fd, padded, 3, decoded, 2);
        firstdiff_step(fd, decoded, 1);
        firstdiff_f32(fd, "k_cache", 0, rows(6, HK, D), 6);
        return firstdiff_end(fd);
    }
    if (count > 3 && !strcmp(arguments[3], "prefix")) {
        sequences[0].first_position = 3, sequences[0].n = 2, sequences[0].prefix = padded;
        firstdiff_batch(fd, decoded, 2, 0, 0, 0, sequences, 1);
        sequences[0].first_position = 5, sequences[0].n = 1, sequences[0].prefix = NULL;
        firstdiff_batch(fd, decoded, 1, 0, 0, 0, sequences, 1);
        return firstdiff_end(fd);
    }
    if (count > 3) {
        firstdiff_step(fd, padded, 3);
        firstdiff_f32(fd, "q", 0, rows(3, HQ, D), 3);
        firstdiff_removed(fd, 1, 2);
        firstdiff_step(fd, decoded, 1);
        firstdiff_f32(fd, "k_cache", 0, rows(2, HK, D), 2);
        return firstdiff_end(fd);
    }
    sequences[0].n = 3, sequences[0].blocks = long_blocks;
    sequences[1].sequence = 7, sequences[1].first_row = 4, sequences[1].n = 2;
    sequences[1].blocks = short_blocks;
    firstdiff_batch(fd, padded, 6, SLOTS, PAGE, 0, sequences, 2);
    firstdiff_f32(fd, "q", 0, rows(6, HQ, D), 6);
    firstdiff_f32(fd, "k_cache", 0, rows(SLOTS, HK, D), SLOTS);
    firstdiff_f32(fd, "scores", 0, rows(6, HQ, 3), 6);
    firstdiff_of_tokens(fd, "logits", -1, FIRSTDIFF_F32, rows(2, 1, V), firstdiff_rows(2, V), last);
    sequences[0].first_position = 3, sequences[0].n = 1;
    sequences[1].first_position = 2, sequences[1].first_row = 1, sequences[1].n = 1;
    sequences[1].keys = keys;
    firstdiff_batch(fd, decoded, 2, SLOTS, PAGE, 0, sequences, 2);
    firstdiff_f32(fd, "k_cache", 0, rows(SLOTS, HK, D), SLOTS);
    firstdiff_f32(fd, "scores", 0, rows(2, HQ, 4), 2);
    sequences[0].first_position = 2, sequences[0].removed_first = 2, sequences[0].removed_count = 2;
    firstdiff_batch(fd, decoded, 1, SLOTS, PAGE, 0, sequences, 1);
    return firstdiff_end(fd);
}
