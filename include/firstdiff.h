/* firstdiff.h: records your engine's tensors, for `firstdiff explain` to compare with llama.cpp.
 *
 * C99 and C++11; no dependency, nothing to link. The plan lists the sites, and so does `firstdiff sites`;
 * docs/trace-format.md describes them.
 *
 *     firstdiff capture reference -m model.gguf -p "Once upon a time" -o ref
 *
 *     firstdiff_trace *fd = firstdiff_begin("mine", "ref/plan.txt", "my engine");
 *     firstdiff_weight(fd, "blk.0.attn_q.weight", FIRSTDIFF_F16, wq, firstdiff_rows(n_out, n_in));
 *     for (step = 0; (n = firstdiff_plan_step("ref/plan.txt", step, ids, room)); step++) {
 *         firstdiff_step(fd, ids, n);                     // then your own, of `firstdiff plan`
 *         ...
 *         firstdiff_f32(fd, "q", layer, q, n);            // firstdiff_tensor: any type and layout
 *         ...
 *     }
 *     firstdiff_end(fd);
 *
 *     firstdiff explain mine --reference ref -m model.gguf
 *
 * Record each weight as the engine holds it after loading. firstdiff compares it with the file's tensor and reports
 * a wrong weight before its consequences. Of a large weight only some rows are recorded.
 *
 * You may leave out any site. Record a tensor when it has been computed, before it is overwritten. An engine that
 * runs one token at a time records one row at a time: rows are stacked in the order of the calls. If only some of
 * the step's tokens have a row, list them with firstdiff_of_tokens; a single row of logits is taken as the last
 * token's. A step may have any number of tokens. If the first step follows a cached prefix, call firstdiff_step_at.
 * For a step of several sequences, padded or with a paged cache, call firstdiff_batch. If positions left the cache
 * since the previous step (rejected drafts, or the oldest of a context shift), declare them before the step with
 * firstdiff_removed.
 *
 * For tensors on a device, pass a function that copies to the host, once, after firstdiff_begin:
 *
 *     static int to_host(void *host, const void *device, size_t bytes) {
 *         return cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost) != cudaSuccess;
 *     }
 *     firstdiff_device(fd, to_host);                      // synchronise your own streams in it
 *
 * With several processes that each hold a part of the model, each passes its rank and how its sites are sharded: an
 * axis (head, neuron, vocab, token, position, ...) applies to all sites that have it, SITE=AXIS to one, and
 * SITE=partial marks partial sums before an all-reduce. All other sites are whole on every rank:
 *
 *     firstdiff_begin_rank("mine", "ref/plan.txt", "my engine", rank, world,
 *                          "head neuron o_proj=partial ffn_down=partial");
 *
 * Each rank writes a subfolder of `mine`, and firstdiff reads them as one trace. Record a sharded site as this rank
 * has it; one sharded by token or position in a single call.
 *
 * Nothing aborts: the first mistake is printed to stderr, recording stops, firstdiff_end returns 1 and firstdiff
 * rejects the folder as unfinished. It also rejects the folder of a killed run; `firstdiff validate mine` reports
 * what is readable in it. If the folder is NULL, nothing is recorded, so firstdiff_begin(getenv("FIRSTDIFF_TRACE"),
 * ...) may stay in a program. If FIRSTDIFF_OFF is defined, every call compiles to nothing. Use a trace from one
 * thread only.
 */
#ifndef FIRSTDIFF_H
#define FIRSTDIFF_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct firstdiff_trace firstdiff_trace;

/* The format of the elements in memory; they are written as they are. Those from FIRSTDIFF_Q8_0 on are of caches
 * only: ggml's blocks, and numbers of 8 bits. Counts and strides are of elements all the same. */
typedef enum {
    FIRSTDIFF_F32,
    FIRSTDIFF_F16,
    FIRSTDIFF_BF16,
    FIRSTDIFF_F64,
    FIRSTDIFF_Q8_0,
    FIRSTDIFF_Q4_0,
    FIRSTDIFF_Q4_1,
    FIRSTDIFF_Q5_0,
    FIRSTDIFF_Q5_1,
    FIRSTDIFF_E4M3,
    FIRSTDIFF_E5M2
} firstdiff_dtype;

/* The most axes of a site. */
#define FIRSTDIFF_AXES 5

/* The memory layout: the count and stride, in elements, of each axis in the site's order, such as (rows, width) or
 * (rows, heads, dim). Unused axes have count 1. */
typedef struct {
    size_t n[FIRSTDIFF_AXES];
    ptrdiff_t stride[FIRSTDIFF_AXES];
} firstdiff_axes;

/* A sequence's part of a step of several: `n` rows from `first_row` on, of positions from `first_position` on. */
typedef struct {
    unsigned sequence; /* its number, the same in every step */
    size_t first_position, first_row, n;
    /* The blocks that hold its positions from 0 on, as many as they need; NULL if no cache is recorded. */
    const size_t *blocks;
    const size_t *keys; /* the key of each position; NULL if keys are positions */
    size_t removed_first, removed_count; /* positions that left its cache since its previous step */
    /* In its first step, the ids of the first_position positions before it, if known; else NULL. */
    const int32_t *prefix;
} firstdiff_sequence;

/* Copies from a device to the host; 0 if it did. */
typedef int (*firstdiff_copy)(void *host, const void *device, size_t bytes);

/* Any layout, given as count and stride of each axis. Heads before tokens, with room for `capacity`
 * positions: firstdiff_strided(n, dim, n_head, capacity * dim, dim, 1). The k of a fused qkv, from
 * the address of its first k on: firstdiff_strided(n, qkv_width, n_head_kv, dim, dim, 1).
 * Transposed values: firstdiff_strided(n, 1, n_head_kv, dim * capacity, dim, capacity). */
static inline firstdiff_axes firstdiff_strided(size_t n0, ptrdiff_t stride0, size_t n1,
                                               ptrdiff_t stride1, size_t n2, ptrdiff_t stride2)
{
    firstdiff_axes axes;
    int i;
    for (i = 3; i < FIRSTDIFF_AXES; i++)
        axes.n[i] = 1, axes.stride[i] = 1;
    axes.n[0] = n0, axes.n[1] = n1, axes.n[2] = n2;
    axes.stride[0] = stride0, axes.stride[1] = stride1, axes.stride[2] = stride2;
    return axes;
}

/* (rows, width), one row after another. */
static inline firstdiff_axes firstdiff_rows(size_t rows, size_t width)
{
    return firstdiff_strided(rows, (ptrdiff_t)width, width, 1, 1, 1);
}

/* (rows, heads, dim), one row after another. */
static inline firstdiff_axes firstdiff_heads(size_t rows, size_t heads, size_t dim)
{
    return firstdiff_strided(rows, (ptrdiff_t)(heads * dim), heads, (ptrdiff_t)dim, dim, 1);
}

/* What to run: these two read the plan, whether anything is recorded or not. */
/* Copies at most `room` ids of a step of a plan. Returns the number of ids in the step; 0 if the plan has no such
 * step or cannot be read. */
static inline size_t firstdiff_plan_step(const char *plan, size_t step, int32_t *ids, size_t room)
{
    FILE *file = plan ? fopen(plan, "rb") : NULL;
    char word[16];
    size_t n = 0, at = 0;
    int is_found = 0, is_id = 0, c;
    long long id = 0;
    /* A line's key is looked at, and the rest of the line passed over. */
    while (file && !is_found && fscanf(file, "%15s", word) == 1) {
        is_found = !strcmp(word, "tokens") && at++ == step;
        for (c = 0; !is_found && c != '\n' && c != EOF;)
            c = fgetc(file);
    }
    /* To the end of the line; of one with anything but ids there are none. */
    for (c = is_found ? fgetc(file) : EOF; is_found; c = fgetc(file)) {
        if (c >= '0' && c <= '9') {
            id = 10 * id + (c - '0');
            is_id = 1;
        } else {
            if (is_id && n++ < room)
                ids[n - 1] = (int32_t)id;
            is_id = 0, id = 0;
            is_found = c == ' ' || c == '\r';
        }
        if (id > 2147483647 || (!is_found && c != '\n')) {
            n = 0;
            break;
        }
    }
    if (file)
        fclose(file);
    return n;
}

/* Returns how many tokens the plan asks the engine to choose itself, after its steps. */
static inline size_t firstdiff_plan_decode(const char *plan)
{
    FILE *file = plan ? fopen(plan, "rb") : NULL;
    char word[16];
    unsigned long n = 0;
    int c;
    while (file && fscanf(file, "%15s", word) == 1) {
        if (!strcmp(word, "decode") && fscanf(file, "%lu", &n) != 1)
            n = 0;
        for (c = 0; c != '\n' && c != EOF;)
            c = fgetc(file);
    }
    if (file)
        fclose(file);
    return (size_t)n;
}

#ifdef FIRSTDIFF_OFF

/* Nothing is evaluated; sizeof keeps the compiler from calling the arguments unused. */
#define FIRSTDIFF_UNUSED(pointer) sizeof((const void *)(pointer))
#define firstdiff_begin(folder, plan, engine)                                                      \
    ((firstdiff_trace *)(0 * (FIRSTDIFF_UNUSED(folder) + FIRSTDIFF_UNUSED(plan) +                  \
                              FIRSTDIFF_UNUSED(engine))))
#define firstdiff_begin_rank(folder, plan, engine, rank, world, split)                             \
    ((firstdiff_trace *)(0 * (FIRSTDIFF_UNUSED(folder) + FIRSTDIFF_UNUSED(plan) +                  \
                              FIRSTDIFF_UNUSED(engine) + sizeof(rank) + sizeof(world) +            \
                              FIRSTDIFF_UNUSED(split))))
#define firstdiff_storage(fd, dtype) ((void)(sizeof(fd) + sizeof(dtype)))
#define firstdiff_device(fd, copy) ((void)sizeof(fd), (void)(copy))
#define firstdiff_weight(fd, names, dtype, data, axes)                                             \
    ((void)(sizeof(fd) + FIRSTDIFF_UNUSED(names) + sizeof(dtype) + FIRSTDIFF_UNUSED(data) +        \
            sizeof(axes)))
#define firstdiff_step(fd, tokens, n)                                                              \
    ((void)(sizeof(fd) + FIRSTDIFF_UNUSED(tokens) + sizeof(n)))
#define firstdiff_step_at(fd, tokens, n, first_position)                                           \
    ((void)(sizeof(fd) + FIRSTDIFF_UNUSED(tokens) + sizeof(n) + sizeof(first_position)))
#define firstdiff_batch(fd, tokens, n, slots, block_size, keys, sequences, count)                  \
    ((void)(sizeof(fd) + FIRSTDIFF_UNUSED(tokens) + sizeof(n) + sizeof(slots) +                    \
            sizeof(block_size) + sizeof(keys) + FIRSTDIFF_UNUSED(sequences) + sizeof(count)))
#define firstdiff_step_behind(fd, prefix, length, tokens, n)                                       \
    ((void)(sizeof(fd) + FIRSTDIFF_UNUSED(prefix) + sizeof(length) + FIRSTDIFF_UNUSED(tokens) +    \
            sizeof(n)))
#define firstdiff_removed(fd, first, count)                                                        \
    ((void)(sizeof(fd) + sizeof(first) + sizeof(count)))
#define firstdiff_of_tokens(fd, site, layer, dtype, data, axes, tokens)                            \
    ((void)(sizeof(fd) + FIRSTDIFF_UNUSED(site) + sizeof(layer) + sizeof(dtype) +                  \
            FIRSTDIFF_UNUSED(data) + sizeof(axes) + FIRSTDIFF_UNUSED(tokens)))
#define firstdiff_tensor(fd, site, layer, dtype, data, axes)                                       \
    ((void)(sizeof(fd) + FIRSTDIFF_UNUSED(site) + sizeof(layer) + sizeof(dtype) +                  \
            FIRSTDIFF_UNUSED(data) + sizeof(axes)))
#define firstdiff_f32(fd, site, layer, data, rows)                                                 \
    ((void)(sizeof(fd) + FIRSTDIFF_UNUSED(site) + sizeof(layer) + FIRSTDIFF_UNUSED(data) +         \
            sizeof(rows)))
#define firstdiff_end(fd) (0 * (int)sizeof(fd))

#else

#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>
#ifdef _WIN32
#include <direct.h>
#else
#include <sys/stat.h>
#endif

/* The version of docs/trace-format.md that is written. */
#define FIRSTDIFF_FORMAT_VERSION 6
#define FIRSTDIFF_PATH 1024
/* Bytes of a site's name with its layer, and of its entry in a step file's header. */
#define FIRSTDIFF_NAME 144
#define FIRSTDIFF_ENTRY (FIRSTDIFF_NAME + 52 + 21 * (FIRSTDIFF_AXES + 2))
/* Bytes that are held back, so that small tensors are written together. */
#define FIRSTDIFF_PENDING 65536
/* Elements up to which a weight is recorded whole; else the most rows of it, and the elements that they may
 * have together, but for the least rows. */
#define FIRSTDIFF_WHOLE 65536
#define FIRSTDIFF_SAMPLED_ROWS 32
#define FIRSTDIFF_SAMPLED 262144
#define FIRSTDIFF_LEAST_ROWS 4

typedef unsigned long long firstdiff_u64;

/* The sites of a name that are alike: a line of the plan, whose words these are. */
typedef struct {
    char *name, *layers, *axes, *sizes;
    int section;              /* whether its layers come after those of all groups before */
    const char *split;        /* how it is split, or NULL where it is whole */
    firstdiff_u64 first, count; /* of its entries */
} firstdiff_group;

/* A tensor of the open step. */
typedef struct {
    int dtype; /* a firstdiff_dtype, or -1 where it is not recorded */
    firstdiff_u64 n[FIRSTDIFF_AXES];
    firstdiff_u64 offset; /* of its first byte after the header */
    firstdiff_u64 rows;   /* written so far */
    firstdiff_u64 missed; /* positions of a cache that was not whole */
} firstdiff_entry;

/* Text that grows. */
typedef struct {
    char *text;
    size_t length, size;
} firstdiff_text;

struct firstdiff_trace {
    char folder[FIRSTDIFF_PATH];
    char engine[256], name[256], blake3[80], architecture[64], run[40];
    firstdiff_u64 n_vocab;
    char *plan;                /* the text that the groups' words lie in */
    firstdiff_group *groups;   /* in the order of the plan */
    size_t n_groups, last;     /* last: the group that was found last */
    int rank, world;           /* a world of 0 where there are no ranks */
    firstdiff_dtype storage;
    firstdiff_copy copy;
    int failed;
    FILE *manifest;      /* manifest.json.unfinished: always whole JSON of the steps so far */
    long manifest_tail;  /* where its closing brackets begin */
    FILE *weights;       /* weights.bin, until the first step */
    char *listed;        /* the manifest's entries of the weights */
    size_t listed_length, listed_room;
    firstdiff_u64 weight_bytes;
    FILE *file;          /* the open step's */
    firstdiff_u64 steps;      /* begun so far */
    int32_t *tokens;     /* of the open step */
    firstdiff_u64 n_tokens, first_position;
    firstdiff_u64 room, data; /* bytes of header, and of tensors so far */
    firstdiff_u64 at;         /* of the data, where the file stands */
    firstdiff_entry *entries; /* of each group, one for each of its layers */
    size_t n_entries;
    unsigned char *buffer, *host;
    size_t buffer_size, host_size;
    firstdiff_text rows;      /* of the open step: which tokens rows are of, as JSON without its braces */
    firstdiff_text quantised; /* the same of the types of caches in blocks */
    char *batch;   /* of the open step: its sequences as JSON, or NULL */
    firstdiff_u64 slots, keys, sequences;
    firstdiff_u64 removed[2], next_removed[2]; /* first and count: before the open step, and before the next */
    int32_t *prefix; /* the ids before the first step, until it is listed; or NULL */
    char *pending; /* what stdio holds back of the open step's file */
};

/* The place of a word in a list of words with commas, or -1; `length` of the word. */
static inline int firstdiff_word(const char *list, const char *word, size_t length)
{
    int place;
    for (place = 0; *list; place++) {
        size_t own = strcspn(list, ",");
        if (own == length && !strncmp(list, word, own))
            return place;
        list += own + (list[own] == ',');
    }
    return -1;
}

/* How many axes a group has. */
static inline int firstdiff_n_axes(const firstdiff_group *group)
{
    const char *at = group->axes;
    int n = 1;
    while ((at = strchr(at, ',')))
        n++, at++;
    return n;
}

/* Which axis of a group is cut by its split; -1 where it is whole or a partial sum. */
static inline int firstdiff_cut(const firstdiff_group *group)
{
    return group->split ? firstdiff_word(group->axes, group->split, strlen(group->split)) : -1;
}

/* The place of a layer among those of a group, "0-3,5"; -1 where it has not that layer. A site outside of
 * layers has "-" and the place 0 whatever the layer. `count` becomes the number of layers. */
static inline long long firstdiff_layer(const firstdiff_group *group, int layer, firstdiff_u64 *count)
{
    const char *at = group->layers;
    long long place = -1;
    *count = 1;
    if (*at == '-')
        return 0;
    for (*count = 0; *at;) {
        char *end;
        long first = strtol(at, &end, 10), last = *end == '-' ? strtol(end + 1, &end, 10) : first;
        if (layer >= first && layer <= last)
            place = (long long)*count + layer - first;
        *count += last >= first ? (firstdiff_u64)(last - first + 1) : 0;
        at = *end == ',' ? end + 1 : "";
    }
    return place;
}

/* The layer at a place of a group; -1 outside of layers. */
static inline long firstdiff_layer_at(const firstdiff_group *group, firstdiff_u64 place)
{
    const char *at = group->layers;
    while (*at && *at != '-') {
        char *end;
        long first = strtol(at, &end, 10), last = *end == '-' ? strtol(end + 1, &end, 10) : first;
        if (place <= (firstdiff_u64)(last - first))
            return first + (long)place;
        place -= (firstdiff_u64)(last - first + 1);
        at = *end == ',' ? end + 1 : "";
    }
    return -1;
}

/* The number that a size such as 64, T or 2*T+3 stands for; `end` becomes the place after it. */
static inline long long firstdiff_size(const char *at, long long tokens, long long positions,
                                       const char **end)
{
    long long sum = 0;
    while (*at && *at != ',') {
        long long term = *at == '-' ? -1 : 1;
        at += *at == '-' || *at == '+';
        while (*at && !strchr(",+-", *at)) {
            char *after = (char *)at + 1;
            term *= *at == 'T'   ? tokens
                    : *at == 'P' ? positions
                    : *at == 'F' ? tokens == positions
                    : *at == '*' ? 1
                                 : (long long)strtoull(at, &after, 10);
            at = after > at ? after : at + 1;
        }
        sum += term;
    }
    *end = at + (*at == ',');
    return sum;
}

/* Prints the first mistake; from then on nothing is recorded. */
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
static inline void firstdiff_fail(firstdiff_trace *fd, const char *format, ...)
{
    va_list arguments;
    if (fd->failed)
        return;
    fd->failed = 1;
    fprintf(stderr, "firstdiff: %s: ", fd->folder);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "; recording stops\n");
}

static inline void firstdiff_path(const firstdiff_trace *fd, char *path, const char *file)
{
    snprintf(path, FIRSTDIFF_PATH + 64, "%s/%s", fd->folder, file);
}

static inline void firstdiff_step_path(const firstdiff_trace *fd, char *path, firstdiff_u64 step)
{
    char file[64];
    snprintf(file, sizeof file, "step-%04llu.safetensors", step);
    firstdiff_path(fd, path, file);
}

/* Copies text for a JSON string: quotes and backslashes escaped, control characters left out. */
static inline void firstdiff_json(char *out, size_t room, const char *text)
{
    size_t at = 0;
    for (; *text && at + 3 < room; text++) {
        if (*text == '"' || *text == '\\')
            out[at++] = '\\';
        if ((unsigned char)*text >= ' ')
            out[at++] = *text;
    }
    out[at] = 0;
}

/* A number of digits alone, up to `most`; -1 where it is none. */
static inline long long firstdiff_digits(const char *at, size_t length, long long most)
{
    long long number = 0;
    size_t i;
    for (i = 0; i < length; i++) {
        if (at[i] < '0' || at[i] > '9')
            return -1;
        number = 10 * number + (at[i] - '0');
        if (number > most)
            return -1;
    }
    return length ? number : -1;
}

/* Whether a text is a size: a sum of products of numbers, T, P and F, and no number below 1 alone. */
static inline int firstdiff_is_size(const char *text, size_t length)
{
    const long long most = 1LL << 40;
    long long sums[6] = {0, 0, 0, 0, 0, 0}; /* of 1, T, P, F, T*P and T*T */
    int sign = length && *text == '-' ? -1 : 1;
    size_t at = sign < 0;
    for (;;) {
        long long number = 1, factor;
        int n_letters[3] = {0, 0, 0}, letters, place;
        for (;; at++) {
            size_t n = 0;
            const char *letter;
            while (at + n < length && !strchr("*+-", text[at + n]))
                n++;
            letter = n == 1 ? strchr("TPF", text[at]) : NULL;
            if (letter) {
                n_letters[*letter == 'T' ? 0 : *letter == 'P' ? 1 : 2]++;
            } else {
                factor = firstdiff_digits(text + at, n, most);
                if (factor < 0 || (factor && number > most / factor))
                    return 0;
                number *= factor;
            }
            at += n;
            if (at >= length || text[at] != '*')
                break;
        }
        letters = n_letters[0] + n_letters[1] + n_letters[2];
        if (letters > 2 || n_letters[1] > 1 || (n_letters[2] && letters > 1))
            return 0;
        place = letters == 2 ? 5 - n_letters[1] : n_letters[0] ? 1 : n_letters[1] ? 2 : n_letters[2] ? 3 : 0;
        sums[place] += sign * number;
        if (sums[place] > most || sums[place] < -most)
            return 0;
        if (at >= length)
            return sums[0] > 0 || sums[1] || sums[2] || sums[3] || sums[4] || sums[5];
        sign = text[at++] == '-' ? -1 : 1;
    }
}

/* Whether a text is layers that ascend, such as 0-3,5, or "-". */
static inline int firstdiff_are_layers(const char *at)
{
    long long before = -1;
    if (!strcmp(at, "-"))
        return 1;
    for (;;) {
        size_t run = strcspn(at, ","), n = strcspn(at, ",-");
        long long first = firstdiff_digits(at, n, 1023), last = first;
        if (n < run)
            last = firstdiff_digits(at + n + 1, run - n - 1, 1023);
        if (first <= before || last < first)
            return 0;
        before = last;
        if (!at[run])
            return 1;
        at += run + 1;
    }
}

/* What is wrong with the words of a site by themselves, or NULL. */
static inline const char *firstdiff_site_fault(const firstdiff_group *group)
{
    static const char *const axes = "token,position,head,dim,key,channel,neuron,vocab,expert,slot,element";
    static const char *const once = "embd,final_norm,logits";
    static const char *const in_layer =
        "attn_norm,q,k,v,q_norm,k_norm,q_rope,k_rope,k_cache,v_cache,scores,probs,attn_out,o_proj,"
        "attn_residual,ffn_norm,ffn_gate,ffn_up,ffn_act,ffn_down,layer_out";
    static const char *const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    const char *axis = group->axes, *size = group->sizes;
    size_t length = strlen(group->name);
    int is_in_layer = group->layers[0] != '-';
    if (!length || strspn(group->name, letters) != length || length + 16 > FIRSTDIFF_NAME ||
        group->name[0] == '.' || group->name[length - 1] == '.')
        return "an invalid name";
    if (!firstdiff_are_layers(group->layers))
        return "layers that are invalid or do not ascend";
    if (firstdiff_word(is_in_layer ? once : in_layer, group->name, length) >= 0)
        return "no layer and should be in one, or vice versa";
    for (;;) {
        size_t n = strcspn(axis, ","), m = strcspn(size, ",");
        if (firstdiff_word(axes, axis, n) < 0)
            return "an unknown axis";
        if (!firstdiff_is_size(size, m))
            return "an invalid size";
        if (!axis[n] || !size[m])
            return axis[n] || size[m] ? "different numbers of axes and sizes" : NULL;
        axis += n + 1, size += m + 1;
    }
}

/* Whether two groups of one name have a site in common. */
static inline int firstdiff_overlap(const firstdiff_group *a, const firstdiff_group *b)
{
    firstdiff_u64 place, count;
    if (strcmp(a->name, b->name) || (a->layers[0] == '-') != (b->layers[0] == '-'))
        return 0;
    for (place = 0; a->layers[0] != '-' && place < a->count; place++)
        if (firstdiff_layer(b, (int)firstdiff_layer_at(a, place), &count) >= 0)
            return 1;
    return a->layers[0] == '-';
}

/* Whether a text is UTF-8, as JSON wants it. */
static inline int firstdiff_is_utf8(const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    while (*at) {
        int more = *at >= 0xf0 ? 3 : *at >= 0xe0 ? 2 : 1;
        unsigned long code, least = more == 3 ? 0x10000 : more == 2 ? 0x800 : 0x80;
        if (*at < 0x80) {
            at++;
            continue;
        }
        code = *at++ & (0x3fu >> more);
        for (; more; more--, at++) {
            if ((*at & 0xc0) != 0x80)
                return 0;
            code = code << 6 | (*at & 0x3f);
        }
        if (code < least || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
            return 0;
    }
    return 1;
}

/* Refuses a plan. */
static inline void firstdiff_no_plan(firstdiff_trace *fd, const char *path, const char *key, const char *reason)
{
    firstdiff_fail(fd, "%s is not a firstdiff plan: %.80s %s; give the plan.txt of a reference's trace", path,
                   key, reason);
}

/* What the lines of a plan have had so far. */
typedef struct {
    const char *path;
    int section;
    char has[5];              /* of model, blake3, architecture, n_vocab and decode */
    firstdiff_u64 steps, tokens;
    long long largest;        /* id */
} firstdiff_plan_lines;

/* Takes the words of a site in the plan, "NAME LAYERS AXES SIZES". */
static inline void firstdiff_plan_site(firstdiff_trace *fd, firstdiff_plan_lines *lines, char *line)
{
    firstdiff_group group, *groups;
    const char *fault;
    char **words[4];
    size_t other;
    int i;
    memset(&group, 0, sizeof group);
    words[0] = &group.name, words[1] = &group.layers;
    words[2] = &group.axes, words[3] = &group.sizes;
    for (i = 0; i < 4 && line; i++) {
        *words[i] = line;
        line = strchr(line, ' ');
        if (line)
            *line++ = 0;
    }
    if (i < 4 || line) {
        firstdiff_no_plan(fd, lines->path, "a site", "does not have four words");
        return;
    }
    fault = firstdiff_site_fault(&group);
    if (fault) {
        firstdiff_fail(fd, "%s is not a firstdiff plan: site %.80s has %s; give the plan.txt of a reference's "
                           "trace", lines->path, group.name, fault);
        return;
    }
    if (firstdiff_n_axes(&group) > FIRSTDIFF_AXES) {
        firstdiff_fail(fd, "%s has a site %s with more axes than this header reads; use the header of the "
                           "firstdiff that wrote the plan", lines->path, group.name);
        return;
    }
    group.section = lines->section;
    group.first = fd->n_entries;
    firstdiff_layer(&group, 0, &group.count);
    /* Each line is held to those before it. */
    if (fd->n_groups >= 1 << 14 || fd->n_entries + (size_t)group.count > 1 << 17) {
        firstdiff_no_plan(fd, lines->path, "it", "has too many sites");
        return;
    }
    for (other = 0; other < fd->n_groups; other++)
        if (firstdiff_overlap(&group, &fd->groups[other])) {
            firstdiff_no_plan(fd, lines->path, group.name, "appears twice");
            return;
        }
    fd->n_entries += (size_t)group.count;
    /* Room for twice as many whenever their number is a power of two. */
    if (!(fd->n_groups & (fd->n_groups - 1))) {
        size_t room = fd->n_groups ? 2 * fd->n_groups : 1;
        groups = (firstdiff_group *)realloc(fd->groups, room * sizeof group);
        if (!groups) {
            firstdiff_fail(fd, "out of memory");
            return;
        }
        fd->groups = groups;
    }
    fd->groups[fd->n_groups++] = group;
}

/* Takes the ids of a step, which are for firstdiff_plan_step: they are only checked. */
static inline void firstdiff_plan_tokens(firstdiff_trace *fd, firstdiff_plan_lines *lines, const char *at)
{
    for (;; at++) {
        size_t n = strcspn(at, " ");
        long long id = firstdiff_digits(at, n, 2147483647);
        if (id < 0) {
            firstdiff_no_plan(fd, lines->path, "tokens", "has a word that is not an id");
            return;
        }
        lines->tokens++;
        if (id > lines->largest)
            lines->largest = id;
        at += n;
        if (!*at)
            break;
    }
    lines->steps++;
}

/* Takes a line of the plan, "key value". */
static inline void firstdiff_plan_line(firstdiff_trace *fd, firstdiff_plan_lines *lines, char *line)
{
    static const char *const keys = "model,blake3,architecture,n_vocab,decode";
    char *value = strchr(line, ' ');
    int key;
    if (!*line)
        return;
    if (!strcmp(line, "section")) {
        lines->section = 1;
        return;
    }
    if (value)
        *value++ = 0;
    key = firstdiff_word(keys, line, strlen(line));
    if (value && !strcmp(line, "tokens")) {
        firstdiff_plan_tokens(fd, lines, value);
    } else if (value && !strcmp(line, "site")) {
        firstdiff_plan_site(fd, lines, value);
        lines->section = 0;
    } else if (!value || key < 0) {
        firstdiff_no_plan(fd, lines->path, line, "is not a line of a plan");
    } else if (lines->has[key]++) {
        firstdiff_no_plan(fd, lines->path, line, "appears twice");
    } else if (key == 0) {
        firstdiff_json(fd->name, sizeof fd->name, value);
    } else if (key == 1) {
        firstdiff_json(fd->blake3, sizeof fd->blake3, value);
        if (strlen(value) != 64 || strspn(value, "0123456789abcdef") != 64)
            firstdiff_no_plan(fd, lines->path, line, "is not 64 lowercase hex digits");
    } else if (key == 2) {
        firstdiff_json(fd->architecture, sizeof fd->architecture, value);
    } else {
        long long number = firstdiff_digits(value, strlen(value), key == 3 ? 1 << 24 : 1 << 16);
        if (number < (key == 3))
            firstdiff_no_plan(fd, lines->path, line, "is not a number, or is too large");
        else if (key == 3)
            fd->n_vocab = (firstdiff_u64)number;
    }
}

/* Reads which model is run, and its sites. */
static inline void firstdiff_read_plan(firstdiff_trace *fd, const char *path)
{
    FILE *file = path ? fopen(path, "rb") : NULL;
    const size_t most = (size_t)64 << 20;
    size_t length = 0, room = 0, got = 1;
    firstdiff_plan_lines lines;
    char *line;
    int key;
    static const char *const needed[4] = {"model", "blake3", "architecture", "n_vocab"};
    memset(&lines, 0, sizeof lines);
    lines.path = path;
    if (!file) {
        firstdiff_fail(fd, "cannot read the plan %s; give the plan.txt of a reference's trace",
                       path ? path : "(null)");
        return;
    }
    while (got && length <= most) {
        char *plan;
        room = 2 * room + 65536;
        plan = (char *)realloc(fd->plan, room);
        if (!plan)
            break;
        fd->plan = plan;
        got = fread(fd->plan + length, 1, room - length - 1, file);
        length += got;
    }
    fclose(file);
    if (length > most) {
        firstdiff_no_plan(fd, path, "it", "is longer than 64 MiB");
        return;
    }
    if (!fd->plan || got) {
        firstdiff_fail(fd, "out of memory");
        return;
    }
    fd->plan[length] = 0;
    if (strlen(fd->plan) != length)
        firstdiff_no_plan(fd, path, "it", "has a NUL byte");
    else if (!firstdiff_is_utf8(fd->plan))
        firstdiff_no_plan(fd, path, "it", "is not UTF-8 text");
    else if (!length || fd->plan[length - 1] != '\n')
        firstdiff_no_plan(fd, path, "it", "is truncated: it does not end with a newline");
    for (line = fd->plan; line && !fd->failed;) {
        char *next = strchr(line, '\n');
        if (next) {
            *next = 0;
            if (next > line && next[-1] == '\r')
                next[-1] = 0;
            next++;
        }
        firstdiff_plan_line(fd, &lines, line);
        line = next;
    }
    for (key = 0; key < 4 && !fd->failed; key++)
        if (!lines.has[key])
            firstdiff_no_plan(fd, path, needed[key], "is missing");
    if (!fd->failed && !fd->n_groups)
        firstdiff_no_plan(fd, path, "it", "has no site");
    if (!fd->failed && (!lines.steps || lines.steps > 1 << 16 || lines.tokens > 1 << 20))
        firstdiff_no_plan(fd, path, "it", "has no tokens, or too many");
    if (!fd->failed && (firstdiff_u64)lines.largest >= fd->n_vocab)
        firstdiff_no_plan(fd, path, "tokens", "has an id that is not below n_vocab");
}

/* A name that no other run has: in the manifest and in every step file, so that files of two runs
 * are not taken for one. */
static inline void firstdiff_name_run(firstdiff_trace *fd)
{
    firstdiff_u64 seed[2] = {0, 0};
    FILE *random = fopen("/dev/urandom", "rb");
    if (random) {
        if (fread(seed, 1, sizeof seed, random) != sizeof seed)
            seed[0] = 0;
        fclose(random);
    }
    seed[0] ^= (firstdiff_u64)time(NULL) << 20 ^ (firstdiff_u64)clock();
    seed[1] ^= (firstdiff_u64)(uintptr_t)fd;
    snprintf(fd->run, sizeof fd->run, "%016llx%016llx", seed[0],
             seed[1]);
}

/* Removes what an earlier run left, the manifest first: a folder without it is no whole trace. */
static inline void firstdiff_clear(firstdiff_trace *fd)
{
    char path[FIRSTDIFF_PATH + 64];
    firstdiff_u64 step;
    FILE *plan;
    firstdiff_path(fd, path, "plan.txt");
    plan = fopen(path, "rb");
    if (plan) {
        fclose(plan);
        firstdiff_fail(fd, "the folder holds a reference's trace; choose another");
        return;
    }
    firstdiff_path(fd, path, "manifest.json");
    remove(path);
    firstdiff_path(fd, path, "manifest.json.blake3");
    remove(path);
    firstdiff_path(fd, path, "weights.bin");
    remove(path);
    for (step = 0;; step++) {
        firstdiff_step_path(fd, path, step);
        if (remove(path))
            break;
    }
    firstdiff_path(fd, path, "manifest.json.unfinished");
    fd->manifest = fopen(path, "wb");
    if (!fd->manifest)
        firstdiff_fail(fd, "cannot write %s; choose a folder you can write to", path);
}

/* Makes a folder and those that it lies in; what cannot be made is found out when a file is opened. */
static inline void firstdiff_make_folder(const char *folder)
{
    char part[FIRSTDIFF_PATH];
    size_t i;
    for (i = 1; i + 1 < sizeof part && folder[i - 1]; i++) {
        if (folder[i] && folder[i] != '/' && folder[i] != '\\')
            continue;
        memcpy(part, folder, i), part[i] = 0;
#ifdef _WIN32
        _mkdir(part);
#else
        mkdir(part, 0777);
#endif
    }
}

/* Takes one word of how sites are split: AXIS, SITE=AXIS, SITE=partial or SITE=replicated. */
static inline void firstdiff_split_word(firstdiff_trace *fd, const char *word, size_t length)
{
    /* Not dim, key and slot: what is summed or chosen over cannot be divided. */
    static const char *const names[10] = {"partial", "replicated", "token", "position", "head",
                                          "channel", "neuron", "vocab", "expert", "element"};
    const char *equal = (const char *)memchr(word, '=', length);
    size_t site = equal ? (size_t)(equal - word) : 0, skip = equal ? site + 1 : 0, at;
    int i, fits = 0;
    for (i = equal ? 0 : 2; i < 10; i++) {
        if (strlen(names[i]) != length - skip || strncmp(names[i], word + skip, length - skip))
            continue;
        for (at = 0; at < fd->n_groups; at++) {
            firstdiff_group *group = &fd->groups[at];
            if (equal && (strlen(group->name) != site || strncmp(group->name, word, site)))
                continue;
            if (i > 1 && firstdiff_word(group->axes, names[i], strlen(names[i])) < 0)
                continue;
            group->split = names[i];
            fits = 1;
        }
    }
    if (!fits)
        firstdiff_fail(fd, "\"%.*s\" does not say how a site is split; see docs/trace-format.md",
                       (int)length, word);
}

static inline void firstdiff_split(firstdiff_trace *fd, const char *words)
{
    while (words && *words && !fd->failed) {
        size_t length = strcspn(words, " ");
        if (length)
            firstdiff_split_word(fd, words, length);
        words += length + (words[length] == ' ');
    }
}

/* Bytes of a step file's header where every site is recorded. */
static inline firstdiff_u64 firstdiff_header_room(const firstdiff_trace *fd)
{
    firstdiff_u64 bytes = 0;
    size_t i;
    for (i = 0; i < fd->n_groups; i++) {
        size_t name = strlen(fd->groups[i].name) + 16;
        bytes += fd->groups[i].count * (FIRSTDIFF_ENTRY - FIRSTDIFF_NAME + name);
    }
    return bytes;
}

/* Starts the trace of one rank of `world`; all ranks pass the same folder. `split` declares how sites are sharded.
 * Otherwise like firstdiff_begin. */
static inline firstdiff_trace *firstdiff_begin_rank(const char *folder, const char *plan,
                                                    const char *engine, int rank, int world,
                                                    const char *split)
{
    firstdiff_trace *fd;
    size_t i;
    const int one = 1;
    if (!folder)
        return NULL;
    fd = (firstdiff_trace *)calloc(1, sizeof *fd);
    if (!fd)
        return NULL;
    snprintf(fd->folder, sizeof fd->folder, "%s", folder);
    firstdiff_json(fd->engine, sizeof fd->engine, engine ? engine : "an engine");
    if (strlen(folder) + 16 >= sizeof fd->folder)
        firstdiff_fail(fd, "the path is too long; choose a shorter one");
    if (world && (rank < 0 || rank >= world))
        firstdiff_fail(fd, "there is no rank %d of %d; ranks count from 0", rank, world);
    fd->rank = rank, fd->world = world;
    if (!*(const char *)&one)
        firstdiff_fail(fd, "this machine is big-endian and a trace is little-endian; record on a "
                           "little-endian machine");
    if (!fd->failed)
        firstdiff_read_plan(fd, plan);
    if (!fd->failed)
        firstdiff_split(fd, world ? split : NULL);
    if (fd->failed)
        return fd;
    fd->entries = (firstdiff_entry *)malloc(fd->n_entries * sizeof *fd->entries);
    if (!fd->entries) {
        firstdiff_fail(fd, "out of memory");
        return fd;
    }
    for (i = 0; i < fd->n_entries; i++)
        fd->entries[i].dtype = -1, fd->entries[i].missed = 0;
    /* The data begin a page of the file: a write across pages costs more. */
    fd->room = (8 + firstdiff_header_room(fd) + 256 + 4095) / 4096 * 4096 - 8;
    fd->pending = (char *)malloc(FIRSTDIFF_PENDING); /* without it, stdio has its own */
    firstdiff_name_run(fd);
    firstdiff_make_folder(folder);
    if (world) {
        snprintf(fd->folder + strlen(folder), 16, "/rank%d", rank);
        firstdiff_make_folder(fd->folder);
    }
    firstdiff_clear(fd);
    return fd;
}

/* Starts a trace in a folder; creates the folder, and replaces an earlier trace in it. `plan` is the plan.txt of
 * the reference's trace, `engine` a name for the report. Returns NULL if nothing is to be recorded; all other calls
 * accept NULL. */
static inline firstdiff_trace *firstdiff_begin(const char *folder, const char *plan,
                                               const char *engine)
{
    return firstdiff_begin_rank(folder, plan, engine, 0, 0, NULL);
}

/* Declares the format of weights, activations and cache, if it is not f32; sums are assumed to be f32. It sets the
 * tolerance for rounding. Call it before the first step.
 */
static inline void firstdiff_storage(firstdiff_trace *fd, firstdiff_dtype dtype)
{
    if (fd && (int)dtype > FIRSTDIFF_F64)
        firstdiff_fail(fd, "firstdiff_storage takes f32, f16, bf16 or f64, not a cache's blocks");
    else if (fd)
        fd->storage = dtype;
}

/* Sets the function that copies tensors to the host. */
static inline void firstdiff_device(firstdiff_trace *fd, firstdiff_copy copy)
{
    if (fd)
        fd->copy = copy;
}

/* Whether it is a type of this header. */
static inline int firstdiff_is_dtype(int dtype)
{
    return dtype >= FIRSTDIFF_F32 && dtype <= FIRSTDIFF_E5M2;
}

static inline int firstdiff_is_quantised(int dtype)
{
    return dtype >= FIRSTDIFF_Q8_0;
}

/* The name of a type, or that of a step file's. */
static inline const char *firstdiff_dtype_name(int dtype, int of_file)
{
    static const char *const names[] = {"f32",  "f16",  "bf16", "f64",  "q8_0", "q4_0",
                                        "q4_1", "q5_0", "q5_1", "e4m3", "e5m2"};
    static const char *const files[] = {"F32", "F16", "BF16", "F64"};
    return !of_file ? names[dtype] : firstdiff_is_quantised(dtype) ? "U8" : files[dtype];
}

/* Bytes of an element, or of a block. */
static inline size_t firstdiff_dtype_size(int dtype)
{
    static const unsigned char sizes[] = {4, 2, 2, 8, 34, 18, 20, 22, 24, 1, 1};
    return sizes[dtype];
}

/* Elements of a block. */
static inline size_t firstdiff_block(int dtype)
{
    return dtype >= FIRSTDIFF_Q8_0 && dtype <= FIRSTDIFF_Q5_1 ? 32 : 1;
}

static inline void firstdiff_write_shard(firstdiff_trace *fd)
{
    size_t i, j;
    int named = 0;
    if (!fd->world)
        return;
    fprintf(fd->manifest, "\"shard\": {\"rank\": %d, \"world\": %d, \"split\": {", fd->rank, fd->world);
    for (i = 0; i < fd->n_groups; i++) {
        const firstdiff_group *group = &fd->groups[i];
        /* The groups of one name are split alike. */
        for (j = 0; j < i && (!fd->groups[j].split || strcmp(fd->groups[j].name, group->name)); j++)
            ;
        if (group->split && j == i)
            fprintf(fd->manifest, "%s\"%s\": \"%s\"", named++ ? ", " : "", group->name,
                    group->split);
    }
    fprintf(fd->manifest, "}},\n");
}

/* Writes words with commas as a JSON list of strings, or of numbers where they are. */
static inline void firstdiff_write_words(FILE *file, const char *words)
{
    const char *before = "";
    while (*words) {
        size_t length = strcspn(words, ",");
        const char *quote = strspn(words, "0123456789") >= length ? "" : "\"";
        fprintf(file, "%s%s%.*s%s", before, quote, (int)length, words, quote);
        words += length + (words[length] == ',');
        before = ", ";
    }
}

/* Writes the sites that the model has. */
static inline void firstdiff_write_groups(firstdiff_trace *fd)
{
    size_t i;
    for (i = 0; i < fd->n_groups; i++) {
        const firstdiff_group *group = &fd->groups[i];
        firstdiff_u64 place;
        fprintf(fd->manifest, "%s{\"name\": \"%s\"", i ? ",\n" : "", group->name);
        if (*group->layers != '-')
            fprintf(fd->manifest, ", \"layers\": [");
        for (place = 0; *group->layers != '-' && place < group->count; place++)
            fprintf(fd->manifest, "%s%ld", place ? ", " : "", firstdiff_layer_at(group, place));
        fprintf(fd->manifest, "%s, \"axes\": [", *group->layers == '-' ? "" : "]");
        firstdiff_write_words(fd->manifest, group->axes);
        fprintf(fd->manifest, "], \"shape\": [");
        firstdiff_write_words(fd->manifest, group->sizes);
        fprintf(fd->manifest, "]%s}", group->section ? ", \"section\": true" : "");
    }
}

/* Ends the file of the weights, and lists them in the manifest. */
static inline void firstdiff_close_weights(firstdiff_trace *fd)
{
    int broken;
    if (!fd->weights)
        return;
    broken = ferror(fd->weights);
    broken |= fclose(fd->weights);
    fd->weights = NULL;
    if (broken)
        firstdiff_fail(fd, "cannot write weights.bin; free space on the disk");
    fprintf(fd->manifest, "\"weights\": {\"bytes\": %llu, \"tensors\": [\n%s\n]},\n", fd->weight_bytes,
            fd->listed);
}

/* Writes all of the manifest but its steps. */
static inline void firstdiff_open_manifest(firstdiff_trace *fd)
{
    const char *storage = firstdiff_dtype_name((int)fd->storage, 0);
    const char *wide = "{\"storage\": \"f32\", \"accumulator\": \"f32\"}";
    fprintf(fd->manifest,
            "{\n\"format_version\": %d,\n\"run\": \"%s\",\n"
            "\"producer\": {\"name\": \"%s\", \"version\": \"firstdiff.h\"},\n"
            "\"side\": \"engine\",\n\"model\": {\"name\": \"%s\", \"blake3\": \"%s\", "
            "\"architecture\": \"%s\", \"n_vocab\": %llu,\n\"sites\": [\n",
            FIRSTDIFF_FORMAT_VERSION, fd->run, fd->engine, fd->name, fd->blake3,
            fd->architecture, fd->n_vocab);
    firstdiff_write_groups(fd);
    fprintf(fd->manifest, "]},\n");
    fprintf(fd->manifest,
            "\"arithmetic\": {\"weights\": \"%s\", \"default\": {\"storage\": \"%s\", "
            "\"accumulator\": \"f32\"}",
            storage, storage);
    if (fd->storage == FIRSTDIFF_F16 || fd->storage == FIRSTDIFF_BF16)
        fprintf(fd->manifest, ", \"stages\": {\"scores\": %s, \"probs\": %s, \"logits\": %s}", wide,
                wide, wide);
    fprintf(fd->manifest, "},\n\"device\": \"%s\",\n", fd->engine);
    firstdiff_write_shard(fd);
    firstdiff_close_weights(fd);
    fprintf(fd->manifest, "\"steps\": [\n");
    fd->manifest_tail = ftell(fd->manifest);
    fprintf(fd->manifest, "]\n}\n");
    fflush(fd->manifest);
}

/* Adds the open step to the manifest, and closes the brackets anew. */
static inline void firstdiff_list_step(firstdiff_trace *fd, firstdiff_u64 sites)
{
    firstdiff_u64 i;
    fseek(fd->manifest, fd->manifest_tail, SEEK_SET);
    fprintf(fd->manifest, "%s{\"tokens\": [", fd->steps > 1 ? ",\n" : "");
    for (i = 0; i < fd->n_tokens; i++)
        fprintf(fd->manifest, "%s%ld", i ? ", " : "", (long)fd->tokens[i]);
    fprintf(fd->manifest,
            "], \"first_position\": %llu, \"file\": \"step-%04llu.safetensors\", "
            "\"bytes\": %llu, \"sites\": %llu",
            fd->first_position, fd->steps - 1, 8 + fd->room + fd->data, sites);
    if (fd->prefix) {
        for (i = 0; i < fd->first_position; i++)
            fprintf(fd->manifest, "%s%ld", i ? ", " : ", \"prefix\": [", (long)fd->prefix[i]);
        fprintf(fd->manifest, "%s", i ? "]" : "");
        free(fd->prefix);
        fd->prefix = NULL;
    }
    if (fd->removed[1])
        fprintf(fd->manifest, ", \"removed\": {\"first\": %llu, \"count\": %llu}", fd->removed[0], fd->removed[1]);
    if (fd->rows.length)
        fprintf(fd->manifest, ", \"rows\": {%s}", fd->rows.text);
    if (fd->quantised.length)
        fprintf(fd->manifest, ", \"quantised\": {%s}", fd->quantised.text);
    if (fd->batch)
        fprintf(fd->manifest, ", \"batch\": {%s]}", fd->batch);
    fputc('}', fd->manifest);
    fd->manifest_tail = ftell(fd->manifest);
    fprintf(fd->manifest, "\n]\n}\n");
    if (fflush(fd->manifest) || ferror(fd->manifest))
        firstdiff_fail(fd, "cannot write the manifest; free space on the disk");
}

/* A number of 8 bytes, the lowest first. */
static inline void firstdiff_write_u64(FILE *file, firstdiff_u64 value)
{
    int i;
    for (i = 0; i < 8; i++)
        fputc((int)(value >> (8 * i) & 255), file);
}

/* Moves to a byte of the open step's data, before `bytes` are written there. A seek empties the
 * buffer of the file, which costs more than a small tensor, so none is made in vain. */
static inline int firstdiff_seek(firstdiff_trace *fd, firstdiff_u64 offset, firstdiff_u64 bytes)
{
    int there = offset == fd->at;
    fd->at = offset + bytes;
    if (there)
        return 0;
    offset += 8 + fd->room;
#ifdef _WIN32
    return _fseeki64(fd->file, (long long)offset, SEEK_SET);
#else
    return offset > (firstdiff_u64)LONG_MAX ? 1 : fseek(fd->file, (long)offset, SEEK_SET);
#endif
}

/* Appends text, and a number, to a line; their new end. By hand, as printf took a third of the time of
 * a decoded token. */
static inline char *firstdiff_put(char *end, const char *text)
{
    size_t length = strlen(text);
    memcpy(end, text, length);
    return end + length;
}

static inline char *firstdiff_put_u64(char *end, firstdiff_u64 value)
{
    char digits[20];
    int n = 0;
    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        *end++ = digits[--n];
    return end;
}

/* Bytes of a tensor. */
static inline firstdiff_u64 firstdiff_bytes(const firstdiff_entry *entry)
{
    firstdiff_u64 bytes = firstdiff_dtype_size(entry->dtype);
    int i;
    for (i = 0; i < FIRSTDIFF_AXES; i++)
        bytes *= entry->n[i];
    return bytes;
}

/* Whether a tensor with one row is the last token's logits: then it has no other row, and as the last of
 * the file it needs no room for them. */
static inline int firstdiff_is_last(firstdiff_trace *fd, const firstdiff_group *group,
                                    firstdiff_entry *entry)
{
    if (fd->batch || strcmp(group->name, "logits") || entry->rows != 1 ||
        entry->offset + firstdiff_bytes(entry) != fd->data)
        return 0;
    entry->n[0] = 1;
    fd->data = entry->offset + firstdiff_bytes(entry);
    return 1;
}

/* Writes the entry of a tensor; how many bytes. */
static inline firstdiff_u64 firstdiff_write_entry(firstdiff_trace *fd, const firstdiff_group *group,
                                                  long layer, firstdiff_entry *entry)
{
    char line[FIRSTDIFF_ENTRY + 8], *end = line;
    firstdiff_u64 elements = 1;
    int i, axes = firstdiff_n_axes(group);
    if (entry->rows != entry->n[0] && !firstdiff_is_last(fd, group, entry))
        firstdiff_fail(fd, "step %llu: %s of layer %ld has %llu of %llu rows; record every token, or "
                           "name the recorded ones with firstdiff_of_tokens",
                       fd->steps - 1, group->name, layer, entry->rows, entry->n[0]);
    end = firstdiff_put(end, ",\"");
    if (layer >= 0) {
        end = firstdiff_put_u64(firstdiff_put(end, "blk."), (firstdiff_u64)layer);
        end = firstdiff_put(end, ".");
    }
    end = firstdiff_put(firstdiff_put(end, group->name), "\":{\"dtype\":\"");
    end = firstdiff_put(firstdiff_put(end, firstdiff_dtype_name(entry->dtype, 1)), "\",\"shape\":[");
    for (i = 0; i < axes; i++) {
        size_t of_last = i + 1 == axes && firstdiff_is_quantised(entry->dtype) ? firstdiff_dtype_size(entry->dtype) : 1;
        end = firstdiff_put_u64(firstdiff_put(end, i ? "," : ""), entry->n[i] * of_last);
        elements *= entry->n[i];
    }
    end = firstdiff_put_u64(firstdiff_put(end, "],\"data_offsets\":["), entry->offset);
    elements *= firstdiff_dtype_size(entry->dtype);
    end = firstdiff_put_u64(firstdiff_put(end, ","), entry->offset + elements);
    end = firstdiff_put(end, "]}");
    return fwrite(line, 1, (size_t)(end - line), fd->file);
}

/* Writes the entries of the tensors that were recorded, and forgets them; how many there are. */
static inline firstdiff_u64 firstdiff_write_entries(firstdiff_trace *fd, firstdiff_u64 *written)
{
    firstdiff_u64 sites = 0, place;
    size_t i;
    for (i = 0; i < fd->n_groups; i++) {
        const firstdiff_group *group = &fd->groups[i];
        for (place = 0; place < group->count; place++) {
            firstdiff_entry *entry = &fd->entries[group->first + place];
            if (entry->dtype < 0 && entry->missed)
                firstdiff_fail(fd, "step %llu: %s of layer %ld has %llu of %llu positions and was never completed: "
                                   "record it in one call, or leave it out",
                               fd->steps - 1, group->name, firstdiff_layer_at(group, place),
                               entry->missed, fd->first_position + fd->n_tokens);
            entry->missed = 0;
            if (entry->dtype < 0)
                continue;
            *written += firstdiff_write_entry(fd, group, firstdiff_layer_at(group, place), entry);
            entry->dtype = -1;
            sites++;
        }
    }
    return sites;
}

/* Writes the header of the open step's file and adds the step to the manifest. */
static inline void firstdiff_close_step(firstdiff_trace *fd)
{
    char spaces[4096];
    firstdiff_u64 sites, written, left;
    int broken;
    rewind(fd->file);
    firstdiff_write_u64(fd->file, fd->room);
    written = (firstdiff_u64)fprintf(fd->file,
                                     "{\"__metadata__\":{\"run\":\"%s\",\"step\":\"%llu\"}",
                                     fd->run, fd->steps - 1);
    sites = firstdiff_write_entries(fd, &written);
    fputc('}', fd->file);
    memset(spaces, ' ', sizeof spaces);
    for (left = fd->room - written - 1; left && !ferror(fd->file);) {
        size_t some = left < sizeof spaces ? (size_t)left : sizeof spaces;
        left -= fwrite(spaces, 1, some, fd->file);
    }
    broken = ferror(fd->file);
    broken |= fclose(fd->file);
    fd->file = NULL;
    if (broken)
        firstdiff_fail(fd, "cannot write step %llu; free space on the disk", fd->steps - 1);
    if (!fd->failed)
        firstdiff_list_step(fd, sites);
    fd->first_position += fd->n_tokens;
}

/* Starts a step whose first id has the given position: the number of ids of all previous steps, or, in the first
 * step, the length of a cached prefix. */
static inline void firstdiff_step_at(firstdiff_trace *fd, const int32_t *tokens, size_t n,
                                     size_t first_position)
{
    char path[FIRSTDIFF_PATH + 64];
    int32_t *copy;
    if (!fd || fd->failed)
        return;
    if (!n) {
        firstdiff_fail(fd, "step %llu has no tokens; pass its ids to firstdiff_step", fd->steps);
        return;
    }
    if (fd->file)
        firstdiff_close_step(fd);
    else
        firstdiff_open_manifest(fd), fd->first_position = first_position;
    fd->first_position -= fd->next_removed[1];
    memcpy(fd->removed, fd->next_removed, sizeof fd->removed);
    fd->next_removed[1] = 0;
    if (fd->first_position != first_position) {
        firstdiff_fail(fd, "step %llu begins at position %llu, not %llu; positions must follow the step "
                           "before", fd->steps, fd->first_position, (firstdiff_u64)first_position);
        return;
    }
    fd->rows.length = fd->quantised.length = 0;
    free(fd->batch);
    fd->batch = NULL;
    copy = (int32_t *)realloc(fd->tokens, n * sizeof *tokens);
    if (!copy) {
        firstdiff_fail(fd, "out of memory");
        return;
    }
    memcpy(copy, tokens, n * sizeof *tokens);
    fd->tokens = copy, fd->n_tokens = n, fd->data = 0;
    fd->at = (firstdiff_u64)-1;
    firstdiff_step_path(fd, path, fd->steps++);
    fd->file = fopen(path, "wb");
    if (!fd->file)
        firstdiff_fail(fd, "cannot write %s; choose a folder you can write to", path);
    else if (fd->pending)
        setvbuf(fd->file, fd->pending, _IOFBF, FIRSTDIFF_PENDING);
}

/* Starts a step that runs these ids through the model after those of all previous steps: the prompt, in one or
 * several steps, then decoded tokens. */
static inline void firstdiff_step(firstdiff_trace *fd, const int32_t *tokens, size_t n)
{
    if (fd)
        firstdiff_step_at(fd, tokens, n,
                          (size_t)(fd->first_position + (fd->file ? fd->n_tokens : 0) - fd->next_removed[1]));
}

/* Starts the first step after a cached prefix of `length` ids; its first position is `length`. */
static inline void firstdiff_step_behind(firstdiff_trace *fd, const int32_t *prefix, size_t length,
                                         const int32_t *tokens, size_t n)
{
    if (!fd || fd->failed)
        return;
    if (fd->file || !length) {
        firstdiff_fail(fd, "a prefix of %llu ids was passed with step %llu; pass it with the first step",
                       (firstdiff_u64)length, fd->steps);
        return;
    }
    firstdiff_step_at(fd, tokens, n, length);
    if (fd->failed)
        return;
    fd->prefix = (int32_t *)malloc(length * sizeof *prefix);
    if (fd->prefix)
        memcpy(fd->prefix, prefix, length * sizeof *prefix);
    else
        firstdiff_fail(fd, "out of memory");
}

/* Declares, before a step, that `count` positions from `first` on left the cache since the previous step; positions
 * after them moved down. In a batch, each sequence declares its own. */
static inline void firstdiff_removed(firstdiff_trace *fd, size_t first, size_t count)
{
    firstdiff_u64 positions = fd && fd->file ? fd->first_position + fd->n_tokens : 0;
    if (!fd || fd->failed || !count)
        return;
    if (first > positions || count > positions - first || fd->next_removed[1]) {
        firstdiff_fail(fd, "cannot remove %llu positions from %llu on: the cache holds %llu before step %llu",
                       (firstdiff_u64)count, (firstdiff_u64)first, positions, fd->steps);
        return;
    }
    fd->next_removed[0] = first, fd->next_removed[1] = count;
}

/* Appends numbers with commas as a field of JSON; their new end. */
static inline char *firstdiff_put_list(char *end, const char *field, const size_t *numbers, firstdiff_u64 n)
{
    firstdiff_u64 i;
    end = firstdiff_put(end, field);
    for (i = 0; i < n; i++)
        end = firstdiff_put_u64(firstdiff_put(end, i ? ", " : ""), (firstdiff_u64)numbers[i]);
    return firstdiff_put(end, "]");
}

/* Starts a step of several sequences. `tokens` has an id for each of the `n` rows of its tensors, including padding.
 * A cache has `slots` rows in all: position p of a sequence is in slot blocks[p / block_size] * block_size + p %
 * block_size. `keys` is the length of a key axis, or 0 for the positions of the longest sequence. A sequence's
 * first_position continues from its previous step; in its first step it is arbitrary. */
static inline void firstdiff_batch(firstdiff_trace *fd, const int32_t *tokens, size_t n, size_t slots,
                                   size_t block_size, size_t keys, const firstdiff_sequence *sequences,
                                   size_t count)
{
    size_t i, row, room = 160;
    firstdiff_u64 longest = 0;
    char *end;
    firstdiff_step(fd, tokens, n);
    if (!fd || fd->failed)
        return;
    block_size = block_size ? block_size : 1;
    for (i = 0; i < count; i++) {
        firstdiff_u64 positions = (firstdiff_u64)sequences[i].first_position + sequences[i].n;
        longest = positions > longest ? positions : longest;
        room += 256 + 22 * (sequences[i].n + 3 * (size_t)positions + 1);
    }
    fd->slots = slots, fd->keys = keys ? keys : longest, fd->sequences = count;
    fd->batch = (char *)malloc(room);
    if (!fd->batch) {
        firstdiff_fail(fd, "out of memory");
        return;
    }
    end = firstdiff_put_u64(firstdiff_put(fd->batch, "\"slots\": "), slots);
    end = firstdiff_put_u64(firstdiff_put(end, ", \"block_size\": "), block_size);
    end = firstdiff_put_u64(firstdiff_put(end, ", \"keys\": "), fd->keys);
    end = firstdiff_put(end, ", \"sequences\": [");
    for (i = 0; i < count; i++) {
        const firstdiff_sequence *own = &sequences[i];
        size_t positions = own->first_position + own->n;
        end = firstdiff_put_u64(firstdiff_put(end, i ? ", {\"sequence\": " : "{\"sequence\": "), own->sequence);
        end = firstdiff_put_u64(firstdiff_put(end, ", \"first_position\": "), own->first_position);
        for (row = 0; own->prefix && row < own->first_position; row++)
            end = firstdiff_put_u64(firstdiff_put(end, row ? ", " : ", \"prefix\": ["),
                                    (firstdiff_u64)own->prefix[row]);
        if (own->prefix && own->first_position)
            end = firstdiff_put(end, "]");
        if (own->removed_count) {
            end = firstdiff_put_u64(firstdiff_put(end, ", \"removed\": {\"first\": "), own->removed_first);
            end = firstdiff_put_u64(firstdiff_put(end, ", \"count\": "), own->removed_count);
            end = firstdiff_put(end, "}");
        }
        end = firstdiff_put(end, ", \"rows\": [");
        for (row = 0; row < own->n; row++)
            end = firstdiff_put_u64(firstdiff_put(end, row ? ", " : ""), own->first_row + row);
        end = firstdiff_put(end, "]");
        if (own->blocks)
            end = firstdiff_put_list(end, ", \"blocks\": [", own->blocks,
                                     positions / block_size + (positions % block_size > 0));
        if (own->keys)
            end = firstdiff_put_list(end, ", \"keys\": [", own->keys, positions);
        end = firstdiff_put(end, "}");
    }
    *end = 0;
}

/* The shape that a site has in the open step; axes that it has not count 1. */
static inline void firstdiff_shape(const firstdiff_trace *fd, const firstdiff_group *group,
                                   firstdiff_u64 n[FIRSTDIFF_AXES])
{
    long long positions = (long long)(fd->batch ? fd->keys : fd->first_position + fd->n_tokens);
    const char *at = group->sizes;
    int i;
    for (i = 0; i < FIRSTDIFF_AXES; i++) {
        long long size = *at ? firstdiff_size(at, (long long)fd->n_tokens, positions, &at) : 1;
        n[i] = size > 0 ? (firstdiff_u64)size : 0;
    }
    if (!fd->batch)
        return;
    /* A cache has the slots of all; what has neither tokens nor positions is there for each sequence. */
    if (!firstdiff_word(group->axes, "position", 8))
        n[0] = fd->slots;
    else if (!strpbrk(group->sizes, "TP"))
        n[0] *= fd->sequences;
}

/* Room of at least that many bytes, or NULL. */
static inline unsigned char *firstdiff_room(unsigned char **buffer, size_t *size, size_t bytes)
{
    if (*size < bytes) {
        free(*buffer);
        *buffer = (unsigned char *)malloc(bytes);
        *size = *buffer ? bytes : 0;
    }
    return *buffer;
}

/* The elements on the host, copied there if they are on a device: all bytes from the first in
 * memory to the last, in one call. */
static inline const unsigned char *firstdiff_on_host(firstdiff_trace *fd, const void *data,
                                                     const firstdiff_axes *axes, size_t size)
{
    ptrdiff_t low = 0, high = 0;
    int i;
    if (!fd->copy)
        return (const unsigned char *)data;
    for (i = 0; i < FIRSTDIFF_AXES; i++) {
        ptrdiff_t reach = (ptrdiff_t)(axes->n[i] - 1) * axes->stride[i];
        *(reach < 0 ? &low : &high) += reach;
    }
    if (!firstdiff_room(&fd->host, &fd->host_size, (size_t)(high - low + 1) * size)) {
        firstdiff_fail(fd, "out of memory");
        return NULL;
    }
    if (fd->copy(fd->host, (const unsigned char *)data + low * (ptrdiff_t)size,
                 (size_t)(high - low + 1) * size)) {
        firstdiff_fail(fd, "a copy from the device failed; check the pointer and the copy function");
        return NULL;
    }
    return fd->host - low * (ptrdiff_t)size;
}

/* The last axis that counts more than 1, or the first after the rows. */
static inline int firstdiff_inner(const firstdiff_u64 n[FIRSTDIFF_AXES])
{
    int inner = FIRSTDIFF_AXES - 1;
    while (inner > 1 && n[inner] == 1)
        inner--;
    return inner;
}

/* Puts the elements of an axis and of those after it one after another; keys that were not given are 0. */
static inline void firstdiff_gather(unsigned char *out, const unsigned char *from,
                                    const firstdiff_axes *axes, const firstdiff_u64 n[FIRSTDIFF_AXES],
                                    int axis, size_t size)
{
    int inner = firstdiff_inner(n), i;
    size_t width = size, at;
    for (i = axis + 1; i < FIRSTDIFF_AXES; i++)
        width *= (size_t)n[i];
    if (axis == inner && axes->stride[axis] == 1) {
        memcpy(out, from, axes->n[axis] * size);
        return;
    }
    for (at = 0; at < axes->n[axis]; at++) {
        const unsigned char *next = from + (ptrdiff_t)at * axes->stride[axis] * (ptrdiff_t)size;
        if (axis == inner)
            memcpy(out + at * size, next, size);
        else
            firstdiff_gather(out + at * width, next, axes, n, axis + 1, size);
    }
}

/* Whether the rows lie one after another, each in the site's own order. */
static inline int firstdiff_is_dense(const firstdiff_axes *axes, const firstdiff_u64 n[FIRSTDIFF_AXES])
{
    ptrdiff_t stride = 1;
    int i;
    for (i = FIRSTDIFF_AXES - 1; i >= 0; i--) {
        if (i && axes->n[i] != n[i])
            return 0;
        if (axes->n[i] != 1 && axes->stride[i] != stride)
            return 0;
        stride *= (ptrdiff_t)n[i];
    }
    return 1;
}

/* Writes the rows of one call after those that are there. */
static inline void firstdiff_write_rows(firstdiff_trace *fd, firstdiff_entry *entry,
                                        const void *data, const firstdiff_axes *axes)
{
    size_t size = firstdiff_dtype_size(entry->dtype), width = size, i;
    const unsigned char *host = firstdiff_on_host(fd, data, axes, size);
    int broken;
    if (!host)
        return;
    for (i = 1; i < FIRSTDIFF_AXES; i++)
        width *= (size_t)entry->n[i];
    broken = firstdiff_seek(fd, entry->offset + entry->rows * width, axes->n[0] * width);
    if (firstdiff_is_dense(axes, entry->n)) {
        broken |= fwrite(host, width, axes->n[0], fd->file) != axes->n[0];
    } else if (firstdiff_room(&fd->buffer, &fd->buffer_size, width)) {
        for (i = 0; i < axes->n[0] && !broken; i++) {
            memset(fd->buffer, 0, width);
            firstdiff_gather(fd->buffer, host + (ptrdiff_t)i * axes->stride[0] * (ptrdiff_t)size,
                             axes, entry->n, 1, size);
            broken |= fwrite(fd->buffer, width, 1, fd->file) != 1;
        }
    } else {
        firstdiff_fail(fd, "out of memory");
    }
    entry->rows += axes->n[0];
    if (broken)
        firstdiff_fail(fd, "cannot write step %llu; free space on the disk", fd->steps - 1);
}

/* The group of a site and its entry, or NULL where the plan has none of that name and layer. A site
 * outside of layers is found whatever the layer, unless one of that name is in it. */
static inline firstdiff_group *firstdiff_find(firstdiff_trace *fd, const char *site, int layer,
                                              firstdiff_entry **entry)
{
    firstdiff_group *global = NULL;
    size_t i;
    /* Sites are recorded in the order of the plan, more or less. */
    for (i = 0; i < fd->n_groups; i++) {
        size_t at = (fd->last + i) % fd->n_groups;
        firstdiff_group *group = &fd->groups[at];
        firstdiff_u64 count;
        long long place;
        if (strcmp(group->name, site))
            continue;
        place = firstdiff_layer(group, layer, &count);
        if (place < 0)
            continue;
        if (*group->layers == '-' && layer >= 0) {
            global = group;
            continue;
        }
        fd->last = at;
        *entry = &fd->entries[group->first + (firstdiff_u64)place];
        return group;
    }
    if (global)
        *entry = &fd->entries[global->first];
    else
        firstdiff_fail(fd, "the plan has no site %s of layer %d; `firstdiff sites` lists them", site,
                       layer);
    return global;
}

/* Begins a note on a tensor of the open step, of so many bytes after its name; where it goes on, or NULL. */
static inline char *firstdiff_note(firstdiff_trace *fd, firstdiff_text *notes, const firstdiff_group *group,
                                   int layer, size_t bytes)
{
    size_t needed = notes->length + FIRSTDIFF_NAME + 32 + bytes;
    char *end;
    if (needed > notes->size) {
        char *text = (char *)realloc(notes->text, 2 * needed);
        if (!text) {
            firstdiff_fail(fd, "out of memory");
            return NULL;
        }
        notes->text = text, notes->size = 2 * needed;
    }
    end = firstdiff_put(notes->text + notes->length, notes->length ? ", \"" : "\"");
    if (*group->layers != '-')
        end = firstdiff_put(firstdiff_put_u64(firstdiff_put(end, "blk."), (firstdiff_u64)layer), ".");
    return firstdiff_put(firstdiff_put(end, group->name), "\": ");
}

static inline void firstdiff_end_note(firstdiff_text *notes, char *end)
{
    *end = 0;
    notes->length = (size_t)(end - notes->text);
}

/* Notes which tokens of the open step the rows of a tensor are of. */
static inline void firstdiff_note_tokens(firstdiff_trace *fd, const firstdiff_group *group, int layer,
                                         const size_t *tokens, size_t n)
{
    char *end = firstdiff_note(fd, &fd->rows, group, layer, 22 * n);
    size_t i;
    if (!end)
        return;
    end = firstdiff_put(end, "[");
    for (i = 0; i < n; i++)
        end = firstdiff_put_u64(firstdiff_put(end, i ? ", " : ""), (firstdiff_u64)tokens[i]);
    firstdiff_end_note(&fd->rows, firstdiff_put(end, "]"));
}

/* Notes the type of a cache's blocks. */
static inline void firstdiff_note_type(firstdiff_trace *fd, const firstdiff_group *group, int layer, int dtype)
{
    char *end = firstdiff_note(fd, &fd->quantised, group, layer, 16);
    if (!end)
        return;
    end = firstdiff_put(firstdiff_put(end, "\""), firstdiff_dtype_name(dtype, 0));
    firstdiff_end_note(&fd->quantised, firstdiff_put(end, "\""));
}

/* Counts and strides in blocks instead of elements; 0 where blocks cannot lie so. */
static inline int firstdiff_in_blocks(firstdiff_trace *fd, const firstdiff_group *group, int layer, int dtype,
                                      firstdiff_axes *axes, firstdiff_u64 n[FIRSTDIFF_AXES])
{
    size_t block = firstdiff_block(dtype);
    int last = firstdiff_n_axes(group) - 1, i;
    const char *name = firstdiff_dtype_name(dtype, 0);
    if (firstdiff_word(group->axes, "position", 8)) {
        firstdiff_fail(fd, "%s of layer %d was given in blocks of %s but is not a cache: give its values", group->name,
                       layer, name);
        return 0;
    }
    if (axes->n[last] % block) {
        firstdiff_fail(fd, "%s of layer %d has rows of %llu elements, not a multiple of the %llu of a %s block",
                       group->name, layer, (firstdiff_u64)axes->n[last], (firstdiff_u64)block, name);
        return 0;
    }
    for (i = 0; i <= last; i++) {
        if (axes->n[i] != 1 && (i == last ? axes->stride[i] != 1 : axes->stride[i] % (ptrdiff_t)block)) {
            firstdiff_fail(fd, "%s of layer %d has a stride of %lld elements, not a multiple of the %llu of a %s "
                               "block", group->name, layer, (long long)axes->stride[i], (firstdiff_u64)block, name);
            return 0;
        }
        if (i < last)
            axes->stride[i] /= (ptrdiff_t)block;
    }
    axes->n[last] /= block, n[last] /= block;
    return 1;
}

/* Whether rows can be of those tokens: the site has one for each token, and they ascend. */
static inline int firstdiff_are_tokens(const firstdiff_trace *fd, const firstdiff_group *group,
                                       const size_t *tokens, size_t n)
{
    size_t i;
    int fit = !firstdiff_word(group->axes, "token", 5) && !firstdiff_word(group->sizes, "T", 1);
    for (i = 0; i < n; i++)
        fit = fit && tokens[i] < fd->n_tokens && (!i || tokens[i] > tokens[i - 1]);
    return fit;
}

/* Records rows of a tensor of the open step: those that come next, or those of `tokens`. */
static inline void firstdiff_record(firstdiff_trace *fd, const char *site, int layer,
                                    firstdiff_dtype dtype, const void *data, firstdiff_axes axes,
                                    const size_t *tokens)
{
    firstdiff_entry *entry = NULL;
    firstdiff_group *group;
    firstdiff_u64 n[FIRSTDIFF_AXES], elements = 1;
    int cut, key, fits, i;
    if (!fd || fd->failed)
        return;
    if (!fd->file) {
        firstdiff_fail(fd, "%s was recorded before the first step; call firstdiff_step first", site);
        return;
    }
    group = firstdiff_find(fd, site, layer, &entry);
    if (!group)
        return;
    if (!firstdiff_is_dtype((int)dtype)) {
        firstdiff_fail(fd, "%s of layer %d was given as type %d, which is not a firstdiff_dtype", site, layer,
                       (int)dtype);
        return;
    }
    firstdiff_shape(fd, group, n);
    cut = firstdiff_cut(group);
    key = firstdiff_word(group->axes, "key", 3);
    if (tokens) {
        if (!firstdiff_are_tokens(fd, group, tokens, axes.n[0]) || entry->dtype >= 0) {
            firstdiff_fail(fd, "step %llu: the rows of %s of layer %d are not those of ascending tokens of "
                               "the step, or were recorded before", fd->steps - 1, site, layer);
            return;
        }
        n[0] = axes.n[0];
    }
    if (cut >= 0 && (entry->dtype >= 0 || (axes.n[cut] && axes.n[cut] <= n[cut])))
        n[cut] = entry->dtype < 0 ? axes.n[cut] : entry->n[cut];
    if (cut == 0 && !axes.n[0])
        return; /* none of the step's tokens are this rank's */
    fits = axes.n[0] > 0;
    for (i = 1; i < FIRSTDIFF_AXES; i++)
        fits = fits && (i == key ? axes.n[i] <= n[i] : axes.n[i] == n[i]);
    if (fits && !firstdiff_word(group->axes, "position", 8) && axes.n[0] < n[0]) {
        entry->missed = axes.n[0];
        return;
    }
    if (fits && firstdiff_is_quantised((int)dtype) && !firstdiff_in_blocks(fd, group, layer, (int)dtype, &axes, n))
        return;
    if (fits && entry->dtype < 0) {
        if (firstdiff_is_quantised((int)dtype))
            firstdiff_note_type(fd, group, layer, (int)dtype);
        entry->dtype = (int)dtype, entry->rows = 0, entry->offset = fd->data;
        memcpy(entry->n, n, sizeof n);
        for (i = 0; i < FIRSTDIFF_AXES; i++)
            elements *= n[i];
        fd->data += elements * firstdiff_dtype_size((int)dtype);
    }
    if (!fits || axes.n[0] > n[0] - entry->rows || entry->dtype != (int)dtype) {
        firstdiff_fail(fd,
                       "step %llu: %s of layer %d was given as %s (%llu, %llu, %llu); expected (%llu, "
                       "%llu, %llu) of one type, and %llu rows came before",
                       fd->steps - 1, site, layer, firstdiff_dtype_name((int)dtype, 0),
                       (firstdiff_u64)axes.n[0], (firstdiff_u64)axes.n[1],
                       (firstdiff_u64)axes.n[2], n[0], n[1], n[2],
                       entry->dtype < 0 ? 0 : entry->rows);
        return;
    }
    if (tokens && axes.n[0] < fd->n_tokens)
        firstdiff_note_tokens(fd, group, layer, tokens, axes.n[0]);
    firstdiff_write_rows(fd, entry, data, &axes);
}

/* Records a tensor of the open step, or some of its rows. `layer` counts from 0 and is ignored for sites outside
 * layers. Scores and probs may have fewer keys than positions after the step: later keys are masked. A k_cache or
 * v_cache that grows token by token is recorded once, when it is complete; recording stops if it never is. */
static inline void firstdiff_tensor(firstdiff_trace *fd, const char *site, int layer,
                                    firstdiff_dtype dtype, const void *data, firstdiff_axes axes)
{
    firstdiff_record(fd, site, layer, dtype, data, axes, NULL);
}

/* The same for rows of some tokens: `tokens` has one number per row, ascending, counted from the step's first
 * token. */
static inline void firstdiff_of_tokens(firstdiff_trace *fd, const char *site, int layer,
                                       firstdiff_dtype dtype, const void *data, firstdiff_axes axes,
                                       const size_t *tokens)
{
    firstdiff_record(fd, site, layer, dtype, data, axes, tokens);
}

/* The same for contiguous f32 rows in the site's order. A sharded site has the same share on every rank, or one KV
 * head if there are fewer KV heads than ranks. */
static inline void firstdiff_f32(firstdiff_trace *fd, const char *site, int layer,
                                 const float *data, size_t rows)
{
    firstdiff_u64 n[FIRSTDIFF_AXES];
    firstdiff_entry *entry = NULL;
    firstdiff_group *group;
    firstdiff_axes axes;
    ptrdiff_t stride = 1;
    int cut, i;
    if (!fd || fd->failed || !(group = firstdiff_find(fd, site, layer, &entry)))
        return;
    firstdiff_shape(fd, group, n);
    cut = firstdiff_cut(group);
    if (cut > 0) {
        firstdiff_u64 world = (firstdiff_u64)fd->world;
        if (n[cut] % world && n[cut] > world) {
            firstdiff_fail(fd, "%s is not split evenly over the ranks; record it with firstdiff_tensor", site);
            return;
        }
        n[cut] = n[cut] < world ? 1 : n[cut] / world;
    }
    for (i = FIRSTDIFF_AXES - 1; i >= 0; i--) {
        axes.n[i] = i ? (size_t)n[i] : rows, axes.stride[i] = stride;
        stride *= (ptrdiff_t)axes.n[i];
    }
    firstdiff_tensor(fd, site, layer, FIRSTDIFF_F32, data, axes);
}

/* Adds text to the manifest's entries of the weights. */
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
static inline void firstdiff_list(firstdiff_trace *fd, const char *format, ...)
{
    va_list arguments;
    if (fd->listed_room - fd->listed_length < 512) {
        size_t room = 2 * fd->listed_room + 4096;
        char *listed = (char *)realloc(fd->listed, room);
        if (!listed) {
            firstdiff_fail(fd, "out of memory");
            return;
        }
        fd->listed = listed, fd->listed_room = room;
    }
    va_start(arguments, format);
    fd->listed_length += (size_t)vsnprintf(fd->listed + fd->listed_length, 512, format, arguments);
    va_end(arguments);
}

/* Lists the names of a weight, "[OWN=]TENSOR[ TENSOR ...]", of which the own one is that long. */
static inline void firstdiff_list_names(firstdiff_trace *fd, const char *names, size_t own)
{
    const char *at = names[own] == '=' ? names + own + 1 : names;
    const char *before = "";
    size_t length = strspn(names, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/[:]= ");
    if (names[length] || !own) {
        firstdiff_fail(fd, "\"%s\" is not the name of a weight; use the GGUF file's names", names);
        return;
    }
    firstdiff_list(fd, "%s{\"name\": \"%.*s\", \"of\": [", fd->listed_length ? ",\n" : "",
                   (int)(own < FIRSTDIFF_NAME ? own : FIRSTDIFF_NAME), names);
    for (; *at && !fd->failed; before = ", ") {
        length = strcspn(at, " ");
        if (!length || length > FIRSTDIFF_NAME || own > FIRSTDIFF_NAME)
            firstdiff_fail(fd, "\"%s\" has an empty name, or one that is too long", names);
        else
            firstdiff_list(fd, "%s\"%.*s\"", before, (int)length, at);
        at += length + (at[length] == ' ');
    }
}

/* The rows of a weight that are recorded; 0 of them where it is whole. They are the first, the last, and one of
 * each equal share between, chosen by the name. */
static inline firstdiff_u64 firstdiff_sample(const char *name, size_t length, firstdiff_u64 rows,
                                             firstdiff_u64 width, firstdiff_u64 *chosen)
{
    firstdiff_u64 count = FIRSTDIFF_SAMPLED / width, i;
    uint32_t state = 2166136261u;
    count = count > FIRSTDIFF_SAMPLED_ROWS ? FIRSTDIFF_SAMPLED_ROWS : count;
    count = count < FIRSTDIFF_LEAST_ROWS ? FIRSTDIFF_LEAST_ROWS : count;
    if (rows * width <= FIRSTDIFF_WHOLE || rows <= count)
        return 0;
    for (i = 0; i < length; i++)
        state = (state ^ (unsigned char)name[i]) * 16777619u;
    for (i = 0; i < count; i++) {
        firstdiff_u64 first = i * rows / count, next = (i + 1) * rows / count;
        state = state * 1664525u + 1013904223u;
        chosen[i] = !i ? 0 : i + 1 == count ? rows - 1 : first + (state >> 8) % (next - first);
    }
    return count;
}

/* An element as a number. */
static inline double firstdiff_number(int dtype, const unsigned char *at)
{
    uint16_t half = 0;
    uint32_t bits;
    float f32;
    double f64;
    if (dtype == FIRSTDIFF_F64)
        return memcpy(&f64, at, sizeof f64), f64;
    if (dtype == FIRSTDIFF_F32)
        return memcpy(&f32, at, sizeof f32), (double)f32;
    memcpy(&half, at, sizeof half);
    bits = (uint32_t)half << 16;
    if (dtype == FIRSTDIFF_F16) {
        uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
        if (!exponent)
            return (half >> 15 ? -1.0 : 1.0) * fraction / 16777216.0;
        exponent = exponent == 31 ? 255 : exponent + 112;
        bits = (uint32_t)(half >> 15) << 31 | exponent << 23 | fraction << 13;
    }
    return memcpy(&f32, &bits, sizeof f32), (double)f32;
}

/* Writes the rows that are chosen, or all, and then the sums of all where some are. */
static inline void firstdiff_write_weight(firstdiff_trace *fd, int dtype, const unsigned char *host,
                                          const firstdiff_axes *axes, int inner,
                                          const firstdiff_u64 *chosen, firstdiff_u64 count)
{
    size_t size = firstdiff_dtype_size(dtype), width = axes->n[inner], j;
    firstdiff_u64 rows = 1, row, next = 0;
    double *sums;
    int i;
    for (i = 0; i < inner; i++)
        rows *= axes->n[i];
    sums = (double *)malloc(sizeof *sums * (size_t)(count ? rows : 1));
    if (!sums || !firstdiff_room(&fd->buffer, &fd->buffer_size, width * size)) {
        firstdiff_fail(fd, "out of memory");
        free(sums);
        return;
    }
    for (row = 0; row < rows; row++) {
        const unsigned char *from = host;
        firstdiff_u64 left = row;
        for (i = inner - 1; i >= 0; left /= axes->n[i--])
            from += (ptrdiff_t)(left % axes->n[i]) * axes->stride[i] * (ptrdiff_t)size;
        for (j = 0; j < width; j++)
            memcpy(fd->buffer + j * size, from + (ptrdiff_t)j * axes->stride[inner] * (ptrdiff_t)size, size);
        if (count)
            for (j = 0, sums[row] = 0; j < width; j++)
                sums[row] += (double)(j + 1) * firstdiff_number(dtype, fd->buffer + j * size);
        if (!count || (next < count && chosen[next] == row)) {
            fwrite(fd->buffer, size, width, fd->weights);
            fd->weight_bytes += width * size, next++;
        }
    }
    if (count) {
        fwrite(sums, sizeof *sums, (size_t)rows, fd->weights);
        fd->weight_bytes += rows * sizeof *sums;
    }
    free(sums);
}

/* Opens the file of the weights. */
static inline void firstdiff_open_weights(firstdiff_trace *fd)
{
    char path[FIRSTDIFF_PATH + 64];
    int written;
    firstdiff_path(fd, path, "weights.bin");
    fd->weights = fopen(path, "wb");
    if (!fd->weights) {
        firstdiff_fail(fd, "cannot write %s; choose a folder you can write to", path);
        return;
    }
    written = fprintf(fd->weights, "run %s\n", fd->run);
    fd->weight_bytes = written > 0 ? (firstdiff_u64)written : 0;
}

/* Records a weight as the engine holds it after loading. Call it before the first step. `names` is the GGUF tensor,
 * such as blk.0.attn_q.weight, or OWN=TENSOR TENSOR ...: the engine's own name, and the GGUF tensors stacked in it;
 * NAME[FIRST:END] selects rows of one. The last axis with a count above 1 is a row: firstdiff_rows(outputs,
 * inputs), or firstdiff_rows(1, n) for a bias. */
static inline void firstdiff_weight(firstdiff_trace *fd, const char *names, firstdiff_dtype dtype,
                                    const void *data, firstdiff_axes axes)
{
    firstdiff_u64 chosen[FIRSTDIFF_SAMPLED_ROWS], count, rows = 1, i;
    const unsigned char *host;
    size_t own = strcspn(names, "=");
    int inner = FIRSTDIFF_AXES - 1, axis;
    if (!fd || fd->failed)
        return;
    own = names[own] ? own : strcspn(names, " ");
    for (axis = 0; axis < FIRSTDIFF_AXES; axis++)
        if (!axes.n[axis])
            firstdiff_fail(fd, "the weight %s has no elements; give its rows and columns", names);
    if (!firstdiff_is_dtype((int)dtype) || firstdiff_is_quantised((int)dtype))
        firstdiff_fail(fd, "the weight %s was given in a cache's blocks or as an unknown type; give its values",
                       names);
    if (fd->steps || !data)
        firstdiff_fail(fd, "the weight %s %s", names,
                       data ? "was recorded after the first step; record it before" : "is NULL");
    if (!fd->failed && !fd->weights)
        firstdiff_open_weights(fd);
    if (!fd->failed)
        firstdiff_list_names(fd, names, own);
    while (inner && axes.n[inner] == 1)
        inner--;
    host = fd->failed ? NULL : firstdiff_on_host(fd, data, &axes, firstdiff_dtype_size((int)dtype));
    if (!host)
        return;
    for (axis = 0; axis < inner; axis++)
        rows *= axes.n[axis];
    count = firstdiff_sample(names, own, rows, axes.n[inner], chosen);
    firstdiff_list(fd, "], \"dtype\": \"%s\", \"shape\": [", firstdiff_dtype_name((int)dtype, 0));
    for (axis = 0; axis <= inner; axis++)
        firstdiff_list(fd, "%s%llu", axis ? ", " : "", (firstdiff_u64)axes.n[axis]);
    firstdiff_list(fd, "]%s", count ? ", \"sums\": true, \"rows\": [" : "");
    for (i = 0; i < count; i++)
        firstdiff_list(fd, "%s%llu", i ? ", " : "", chosen[i]);
    firstdiff_list(fd, "%s}", count ? "]" : "");
    firstdiff_write_weight(fd, (int)dtype, host, &axes, inner, chosen, count);
}

/* Ends the trace and frees it. Returns 0 if the folder holds a complete trace, or if nothing was to be recorded. */
static inline int firstdiff_end(firstdiff_trace *fd)
{
    char from[FIRSTDIFF_PATH + 64], to[FIRSTDIFF_PATH + 64];
    int failed;
    if (!fd)
        return 0;
    if (fd->file && !fd->failed)
        firstdiff_close_step(fd);
    else if (fd->file)
        fclose(fd->file);
    if (!fd->steps)
        firstdiff_fail(fd, "no step was recorded; call firstdiff_step");
    if (fd->manifest && fclose(fd->manifest))
        firstdiff_fail(fd, "cannot write the manifest; free space on the disk");
    firstdiff_path(fd, from, "manifest.json.unfinished");
    firstdiff_path(fd, to, "manifest.json");
    if (!fd->failed && rename(from, to))
        firstdiff_fail(fd, "cannot rename %s to manifest.json; check the disk", from);
    if (fd->weights)
        fclose(fd->weights);
    failed = fd->failed;
    free(fd->listed);
    free(fd->tokens);
    free(fd->prefix);
    free(fd->rows.text);
    free(fd->quantised.text);
    free(fd->batch);
    free(fd->plan);
    free(fd->groups);
    free(fd->entries);
    free(fd->buffer);
    free(fd->host);
    free(fd->pending);
    free(fd);
    return failed;
}

#endif /* FIRSTDIFF_OFF */
#endif /* FIRSTDIFF_H */
