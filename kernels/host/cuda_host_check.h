// The checks of a checked build. Kernels are compiled with -fsanitize=thread,undefined and linked
// without those runtimes: the compiler calls a function before each load and store, and where it
// meets undefined behaviour, and these are the functions. So an access of shared or global memory
// is known with its thread and line, and a finding ends the launch as any other error does.
//
//   race            two threads, one of them writing, and no barrier or __syncwarp between; between
//                   blocks, no fence and atomic on both sides. Atomics may meet each other.
//   out of bounds   outside every buffer that the launch was given, the dynamic shared memory, or a
//                   shared array: those are laid out with gaps.
//   uninitialised   memory that nobody has written: shared memory by a thread of the block, global
//                   memory by an upload or a kernel.
//   read-only       a write to a buffer that the launch was given as pointer to const alone.
//   undefined behaviour
//
// Nothing depends on luck: what is a race in one thread order is one in every order in which both
// accesses happen.
#pragma once
#include <cxxabi.h>
#include <stdlib.h>

enum Kind : uint8_t { READ, WRITE, ATOMIC };
enum Use { NO_ARGUMENT, CONSTANT, WRITABLE };  // by the parameters that a buffer is given for

// One access: where in the program, by whom, and when. block counts from 1: 0 is none.
struct Access {
    uint32_t block, pc;
    uint32_t epoch;  // barriers before it
    uint32_t clock;  // __syncwarps of the lane before it
    uint16_t thread;
    uint8_t bytes;  // of the granule: 1, 2 or 3
    uint8_t kind;
};

// What happened to 2 bytes of memory. One access of each sort is enough: what an earlier one races
// with, the later one does too, or else there is a slot for it.
struct Cell {
    uint64_t stamp;  // the launch, or for shared memory the run of a block, that the rest is of
    uint8_t written;
    Access write, other_atomic;  // the last write; before an atomic one, that of another thread
    Access read, read_lane, read_warp, read_block;  // the last read; of another lane, warp, block
};

static_assert(sizeof(Cell) == 136, "the device makes the cells of buffers, of this size");

// A buffer of the device, in order of address.
struct cuda_host_region {
    char* start;
    uint64_t bytes;
    uint8_t* written;  // a byte a byte: whether it ever was
    const char* name;
    Cell* cells;  // where the launch may write
    uint64_t use;
};

// A variable in shared memory, from the table that the build adds to the kernel file.
struct Variable { char* start; uint64_t bytes; const char* symbol; };
extern "C" HIDDEN Variable __start_cudashm_vars[] __attribute__((weak)),
    __stop_cudashm_vars[] __attribute__((weak));
extern "C" HIDDEN char __ehdr_start[], _end[];

static struct {
    uint32_t block, epoch;
    uint64_t block_runs;
    Cell *static_cells, *dynamic_cells;
    bool sorted;
} check;
static uint32_t clocks[MAX_THREADS][WARP];  // by thread: the latest clock known of each lane

// ---- order -------------------------------------------------------------------------------------

// Whether the current thread is past a point in the time of its own block.
static bool is_past(uint16_t thread, uint32_t epoch, uint32_t clock) {
    if (thread == self.current || epoch != check.epoch) return true;
    if (thread / WARP != self.current / WARP) return false;
    return clocks[self.current][thread % WARP] > clock;
}

// A __threadfence, with what its thread knew to be done: by its block before the last barrier, by its
// warp, and by others, as the fences that it was past. An atomic after it publishes that.
struct Fence {
    uint32_t block, epoch, clocks[WARP];
    uint16_t thread;
    uint32_t n_passed, *passed;
};
// A fence that is passed by whoever has a fence after an atomic at an address.
struct Published { char* address; uint32_t fence; };
// A fence that a thread of the running block is past, and since when.
struct Passed { uint32_t fence, epoch, clock; uint16_t thread; };

// A list of plain values.
template <class T>
struct List {
    T* items;
    size_t n, room;
    void add(const T& item) {
        if (n == room) {
            T* grown = (T*)realloc((void*)items, (room = 2 * room + 64) * sizeof(T));
            if (!grown) abort();
            items = grown;
        }
        items[n++] = item;
    }
    T* begin() { return items; }
    T* end() { return items + n; }
};

static struct {
    uint64_t launch;
    List<Fence> fences;  // those that an atomic has published
    List<Published> published;
    List<Passed> passed;
    // By thread of the running block: its last fence, whose block is 0 if there is none, and its
    // number from 1 on once it is published; and the address of the last atomic since.
    Fence last_fence[MAX_THREADS];
    uint32_t number[MAX_THREADS];
    char* last_atomic[MAX_THREADS];
} between_blocks;

// Whether a fence publishes an access. An atomic after the fence is what publishes it.
static bool covers(const Fence& fence, const Access& access) {
    if (access.block != fence.block) return false;
    if (access.thread == fence.thread && access.kind == ATOMIC) return true;
    if (access.thread / WARP != fence.thread / WARP) return access.epoch < fence.epoch;
    return access.epoch < fence.epoch || fence.clocks[access.thread % WARP] > access.clock;
}

// Whether an access surely came before what the current thread does now.
static bool is_before(const Access& access) {
    if (access.block == check.block) return is_past(access.thread, access.epoch, access.clock);
    for (const Passed& passed : between_blocks.passed)
        if (covers(between_blocks.fences.items[passed.fence], access) &&
            is_past(passed.thread, passed.epoch, passed.clock))
            return true;
    return false;
}

// The current thread is past a fence.
static void pass(uint32_t fence) {
    for (const Passed& passed : between_blocks.passed)
        if (passed.fence == fence && is_past(passed.thread, passed.epoch, passed.clock)) return;
    uint32_t clock = clocks[self.current][self.current % WARP];
    between_blocks.passed.add({fence, check.epoch, clock, (uint16_t)self.current});
}

// __threadfence: what the thread's last atomic found published is done, and an atomic after it
// publishes what is.
static void fence() {
    auto& b = between_blocks;
    int t = self.current;
    for (size_t i = 0; b.last_atomic[t] && i < b.published.n; i++) {
        if (b.published.items[i].address != b.last_atomic[t]) continue;
        const Fence found = b.fences.items[b.published.items[i].fence];
        if (found.block == check.block && found.thread == t) continue;
        pass(b.published.items[i].fence);
        for (uint32_t p = 0; p < found.n_passed; p++) pass(found.passed[p]);
    }
    clocks[t][t % WARP]++;  // what the thread does from here on is not covered
    b.last_fence[t] = {check.block, check.epoch, {}, (uint16_t)t, 0, nullptr};
    memcpy(b.last_fence[t].clocks, clocks[t], sizeof clocks[t]);
    b.last_atomic[t] = nullptr;
    b.number[t] = 0;
}

// An atomic of the current thread: publishes its last fence at an address.
static void publish(void* address) {
    auto& b = between_blocks;
    int t = self.current;
    if (!b.last_fence[t].block || b.last_atomic[t] == address) {
        b.last_atomic[t] = (char*)address;
        return;
    }
    b.last_atomic[t] = (char*)address;
    if (!b.number[t]) {
        List<uint32_t> passed = {};
        for (const Passed& p : b.passed)
            if (is_past(p.thread, p.epoch, p.clock)) passed.add(p.fence);
        Fence made = b.last_fence[t];
        made.passed = passed.items;
        made.n_passed = (uint32_t)passed.n;
        b.fences.add(made);
        b.number[t] = (uint32_t)b.fences.n;
    }
    b.published.add({(char*)address, b.number[t] - 1});
}

static void forget_fences() {
    auto& b = between_blocks;
    for (const Fence& fence : b.fences) free(fence.passed);
    b.fences.n = b.published.n = 0;
}

// ---- findings ----------------------------------------------------------------------------------

// What an access is to: a buffer, the dynamic shared memory, or a shared array.
struct Target {
    char* start;
    uint64_t bytes;
    const char* name;
    Cell* cells;
    uint8_t* written;  // of a buffer
    bool shared;
};

// One access under way.
struct Doing {
    char* p;
    size_t n;
    Kind kind;
    bool reads;
    uint32_t pc;
};

// The first read of memory that was not written. It is reported at the end of the block, or for
// global memory of the launch: until then a write by another thread can show that it is a race.
static struct {
    bool is_set;
    Doing doing;
    Target target;
    int thread;
    uint3 block;
} unwritten;

// The name of a variable, from "(anonymous namespace)::block_sum(float)::partial".
static const char* demangled(const char* symbol) {
    int status = 0;
    const char* name = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
    if (!name) return symbol;
    while (const char* colon = strstr(name, "::")) name = colon + 2;
    return name;
}

static const char* const verbs[] = {"reads", "writes", "updates atomically"};

// Sets the error: "race: thread (1,0,0) writes at [pc+0x123] bytes 4 to 7 of `out`, "
// and then the rest. The device puts file and line for the [pc+..].
__attribute__((format(printf, 4, 5))) static void describe(const char* what, const Doing& doing,
                                                           const Target* target,
                                                           const char* format, ...) {
    char rest[256], range[64], of[192] = "";
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(rest, sizeof rest, format, arguments);
    va_end(arguments);
    ptrdiff_t at = target ? doing.p - target->start : 0;
    if (target) {
        snprintf(of, sizeof of, " of %s`%.120s`", target->shared ? "shared " : "",
                 target->shared ? demangled(target->name) : target->name);
    }
    if (!target) snprintf(range, sizeof range, "%zu bytes at %p", doing.n, (void*)doing.p);
    else if (doing.n == 1) snprintf(range, sizeof range, "byte %td", at);
    else snprintf(range, sizeof range, "bytes %td to %td", at, at + (ptrdiff_t)doing.n - 1);
    set_error("%s: %s %s at [pc+0x%x] %s%s%s", what, name_of(threads[self.current]),
              verbs[doing.kind], doing.pc, range, of, rest);
}

__attribute__((noreturn)) static void leave() {
    go(-1, &self.dead);
    __builtin_unreachable();
}

// Reports the unwritten read, if there is one. Such a read can send a thread anywhere, so it is
// reported before what comes after.
static bool report_unwritten(bool of_shared_only) {
    if (!unwritten.is_set || (of_shared_only && !unwritten.target.shared)) return false;
    self.current = unwritten.thread;
    cuda_host_current.block = unwritten.block;
    const char* who = unwritten.target.shared ? "no thread of the block" : "nothing";
    describe("uninitialised", unwritten.doing, &unwritten.target, ", which %s has written", who);
    return true;
}

#define REPORT(...)                                                                                \
    do {                                                                                           \
        report_unwritten(false);                                                                   \
        describe(__VA_ARGS__);                                                                     \
        leave();                                                                                   \
    } while (0)

__attribute__((noreturn)) static void report_race(const Doing& doing, const Target& target,
                                                  const Access& other) {
    // A race over the same array is most likely why some of it was not written yet.
    if (unwritten.target.start != target.start) report_unwritten(false);
    const char* thread = name_of(threads[other.thread]);
    if (other.block == check.block) {
        describe("race", doing, &target, ", which %s %s at [pc+0x%x]; no barrier is between",
                 thread, verbs[other.kind], other.pc);
        leave();
    }
    uint32_t b = other.block - 1, x = self.launch->grid[0], y = self.launch->grid[1];
    describe("race", doing, &target, ", which block (%u,%u,%u) %s %s at [pc+0x%x]; nothing orders "
             "two blocks", b % x, b / x % y, b / x / y, thread, verbs[other.kind], other.pc);
    leave();
}

enum {
    NEAR = SHARED_GAP,  // farther from a buffer than this, it is not named
    STATIC_GAP = 64,    // what the build leaves after a shared array
};

static bool contains(const char* start, uint64_t bytes, const Doing& doing) {
    return doing.p >= start && doing.p + doing.n <= start + bytes;
}

static uint64_t static_shared_bytes() { return (uint64_t)(__stop_cudashm - __start_cudashm); }

static Target shared_array(const Doing& doing) {
    Cell* cells = check.static_cells;
    size_t n = (size_t)(__stop_cudashm_vars - __start_cudashm_vars), at = 0;
    if (n == 0) return {__start_cudashm, static_shared_bytes(), "memory", cells, nullptr, true};
    while (at + 1 < n && __start_cudashm_vars[at + 1].start <= doing.p) at++;
    const Variable& variable = __start_cudashm_vars[at];
    Target target = {variable.start, variable.bytes, variable.symbol, nullptr, nullptr, true};
    target.cells = cells + (variable.start - __start_cudashm) / 2;
    if (!contains(variable.start, variable.bytes, doing)) {
        REPORT("out of bounds", doing, &target, ", which has %zu", (size_t)variable.bytes);
    }
    return target;
}

static Target dynamic_memory(const Doing& doing) {
    uint32_t bytes = self.launch->shared_bytes;
    Cell* cells = check.dynamic_cells;
    Target target = {dynamic_shared, bytes, "dynamic memory", cells, nullptr, true};
    if (!contains(target.start, bytes, doing))
        REPORT("out of bounds", doing, &target, ", which has %u", bytes);
    return target;
}

// The buffer that an address is in, or else one close to it.
static cuda_host_region* region_near(const char* p) {
    static size_t last;
    cuda_host_region* regions = self.launch->regions;
    size_t n = self.launch->n_regions, low = 0, high = n;
    if (n == 0) return nullptr;
    if (last < n && p >= regions[last].start && p < regions[last].start + regions[last].bytes)
        return regions + last;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        (regions[middle].start <= p ? low : high) = middle;
    }
    bool is_far = p >= regions[low].start + regions[low].bytes + NEAR;
    if (is_far && low + 1 < n) low++;
    return regions + (last = low);
}

static Target buffer(const Doing& doing) {
    cuda_host_region* region = region_near(doing.p);
    if (doing.p < (char*)4096) REPORT("out of bounds", doing, nullptr, ": a null pointer");
    bool is_near = region && doing.p + NEAR > region->start &&
                   doing.p < region->start + region->bytes + NEAR;
    if (!is_near) REPORT("out of bounds", doing, nullptr, ": no buffer is there, or no longer");
    Target target = {region->start, region->bytes, region->name, nullptr, region->written, false};
    if (!contains(region->start, region->bytes, doing)) {
        REPORT("out of bounds", doing, &target, ", which has %zu", (size_t)region->bytes);
    }
    if (region->use == NO_ARGUMENT)
        REPORT("out of bounds", doing, &target, ": not an argument of this launch");
    if (region->use == CONSTANT) {
        if (doing.kind != READ) REPORT("read-only", doing, &target, ", which is given as const");
        return target;
    }
    target.cells = region->cells;
    return target;
}

// ---- one access --------------------------------------------------------------------------------

static bool races(const Access& before, const Access& now) {
    return before.block && (before.bytes & now.bytes) && !is_before(before);
}

static const Access* race_of(const Cell& cell, const Access& now) {
    bool both_atomic = now.kind == ATOMIC && cell.write.kind == ATOMIC;
    if (!both_atomic && races(cell.write, now)) return &cell.write;
    if (now.kind != ATOMIC && races(cell.other_atomic, now)) return &cell.other_atomic;
    if (now.kind == READ) return nullptr;
    for (const Access* read : {&cell.read, &cell.read_lane, &cell.read_warp, &cell.read_block})
        if (races(*read, now)) return read;
    return nullptr;
}

static void remember(Cell& cell, const Access& now) {
    if (now.kind != READ) {
        bool is_mine = cell.write.block == now.block && cell.write.thread == now.thread;
        if (now.kind == WRITE) cell.other_atomic.block = 0;
        else if (cell.write.kind == ATOMIC && !is_mine) cell.other_atomic = cell.write;
        cell.write = now;
        return;
    }
    const Access last = cell.read;
    cell.read = now;
    if (!last.block || last.block != now.block) {
        if (last.block) cell.read_block = last;
        cell.read_warp.block = cell.read_lane.block = 0;
    } else if (last.thread / WARP != now.thread / WARP) {
        cell.read_warp = last;
        cell.read_lane.block = 0;
    } else if (last.thread != now.thread) {
        cell.read_lane = last;
    }
}

// Bytes of granule i that [first, last) covers; all counted from the target's start.
static uint8_t bytes_of(size_t i, size_t first, size_t last) {
    return (uint8_t)((2 * i >= first) | (2 * i + 1 < last) << 1);
}

static void note_unwritten(const Doing& doing, const Target& target) {
    if (unwritten.is_set) return;
    unwritten = {true, doing, target, self.current, cuda_host_current.block};
}

static void check_cells(const Doing& doing, const Target& target) {
    size_t first = (size_t)(doing.p - target.start), last = first + doing.n;
    uint64_t stamp = target.shared ? check.block_runs : self.launch->number;
    uint32_t clock = clocks[self.current][self.current % WARP];
    Access now = {check.block, doing.pc, check.epoch, clock, (uint16_t)self.current, 0, doing.kind};
    for (size_t i = first / 2; 2 * i < last; i++) {
        Cell& cell = target.cells[i];
        if (cell.stamp != stamp) {
            memset(&cell, 0, sizeof cell);
            cell.stamp = stamp;
        }
        now.bytes = bytes_of(i, first, last);
        if (const Access* other = race_of(cell, now)) report_race(doing, target, *other);
        bool is_unwritten = target.shared && doing.reads && now.bytes & ~cell.written;
        if (is_unwritten) note_unwritten(doing, target);
        if (doing.kind != READ) cell.written |= now.bytes;
        remember(cell, now);
    }
}

static void check_access(const Doing& doing) {
    char* const p = doing.p;
    bool is_static = p + STATIC_GAP >= __start_cudashm && p < __stop_cudashm;
    if (is_static) return check_cells(doing, shared_array(doing));
    if (p >= self.stacks && p < self.stacks + (size_t)MAX_THREADS * STACK) {
        if ((p - self.stacks) / STACK == threads[self.current].fiber) return;
        REPORT("out of bounds", doing, nullptr, ": a local variable of another thread");
    }
    if (p >= dynamic_shared - SHARED_GAP && p < dynamic_shared + MAX_SHARED + SHARED_GAP)
        return check_cells(doing, dynamic_memory(doing));
    if (p >= __ehdr_start && p < _end) return;  // constants, and __device__ variables
    Target target = buffer(doing);
    size_t at = (size_t)(p - target.start);
    for (size_t i = 0; doing.reads && i < doing.n; i++)
        if (!target.written[at + i]) note_unwritten(doing, target);
    if (target.cells) check_cells(doing, target);
    if (doing.kind != READ) memset(target.written + at, 1, doing.n);
}

static inline void check_access(void* p, size_t n, Kind kind, bool reads, void* pc) {
    if (self.together) return;
    if (p >= (void*)&cuda_host_current && p < (void*)(&cuda_host_current + 1)) return;
    check_access({(char*)p, n, kind, reads, (uint32_t)((char*)pc - __ehdr_start)});
}

// ---- what the scheduler tells ------------------------------------------------------------------

static Cell* make_cells(uint64_t bytes) {
    void* memory = mmap(nullptr, (bytes / 2 + 1) * sizeof(Cell), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : (Cell*)memory;
}

static void check_release() {
    auto release = [](Cell* cells, uint64_t bytes) {
        if (cells) munmap(cells, (bytes / 2 + 1) * sizeof(Cell));
    };
    release(check.static_cells, static_shared_bytes());
    release(check.dynamic_cells, MAX_SHARED);
    forget_fences();
    free(between_blocks.fences.items);
    free(between_blocks.published.items);
    free(between_blocks.passed.items);
}

static bool check_launch() {
    unwritten.is_set = false;
    if (between_blocks.launch != self.launch->number) forget_fences();
    between_blocks.launch = self.launch->number;
    if (!check.static_cells) check.static_cells = make_cells(static_shared_bytes());
    if (!check.dynamic_cells) check.dynamic_cells = make_cells(MAX_SHARED);
    if (!check.sorted) {
        auto by_start = [](const void* a, const void* b) {
            char *x = ((const Variable*)a)->start, *y = ((const Variable*)b)->start;
            return x < y ? -1 : (int)(x > y);
        };
        size_t n = (size_t)(__stop_cudashm_vars - __start_cudashm_vars);
        qsort(__start_cudashm_vars, n, sizeof(Variable), by_start);
        check.sorted = true;
    }
    return check.static_cells && check.dynamic_cells;
}
static void check_block(uint64_t block) {
    check.block = (uint32_t)block + 1;
    check.block_runs++;
    check.epoch++;
    between_blocks.passed.n = 0;
    for (int t = 0; t < self.n_threads; t++) {
        between_blocks.last_fence[t].block = 0;
        between_blocks.last_atomic[t] = nullptr;
    }
}
static void check_barrier() { check.epoch++; }
static void check_block_end() { report_unwritten(true); }
static void check_launch_end() { report_unwritten(false); }
// __syncwarp: each member knows what every member knew.
static void check_syncwarp(int first, unsigned members) {
    uint32_t joined[WARP] = {};
    for (unsigned rest = members; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        clocks[first + l][l]++;
        for (int i = 0; i < WARP; i++)
            if (clocks[first + l][i] > joined[i]) joined[i] = clocks[first + l][i];
    }
    for (unsigned rest = members; rest; rest &= rest - 1)
        memcpy(clocks[first + __builtin_ctz(rest)], joined, sizeof joined);
}

#include "cuda_host_hooks.h"
