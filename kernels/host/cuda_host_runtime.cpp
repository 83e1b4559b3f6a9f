// The scheduler: CUDA threads of one block as fibers, barriers, warp intrinsics, errors.
//
// A fiber runs until a barrier or a warp intrinsic. Warps are swept in order: every runnable lane
// runs until it waits, then the warp intrinsics whose lanes have all come are resolved; when no
// lane of any warp can run, the barrier is released, or what stands in its way is reported. A
// thread that ends hands its stack to the next one, so a kernel without barriers never switches.
#include "cuda_host.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define HIDDEN __attribute__((visibility("hidden")))

// Static shared memory of all kernels in this library; see __shared__ in cuda_host.h.
extern "C" HIDDEN char __start_cudashm[] __attribute__((weak)), __stop_cudashm[] __attribute__((weak));

#include "cuda_host_switch.h"

// ---- state -------------------------------------------------------------------------------------

enum State : uint8_t { NEW, READY, AT_BARRIER, IN_WARP, DONE };
#ifdef CUDA_HOST_SANITIZED
enum { STACK = 256 << 10 };  // AddressSanitizer puts gaps between locals
#else
enum { STACK = 64 << 10 };
#endif
enum { MAX_THREADS = 1024, WARP = 32, PAGE = 4096, MAX_SHARED = 227 << 10 };
enum Order { FORWARD, REVERSE, RANDOM };
enum { SHARED_GAP = CUDA_HOST_SHARED_GAP };  // before and after the dynamic shared memory

struct Thread {
    Context context;
    uint64_t value;
    const char* file;
    uint3 index;
    uint32_t mask;
    int32_t argument, width, line;
    int16_t fiber;
    uint8_t op;
};

struct cuda_host_launch {
    uint32_t grid[3], block[3];
    uint32_t shared_bytes, order;
    uint64_t seed, first_block, end_block;
    // For a checked build: a number that no other launch has, and the device's buffers.
    uint64_t number;
    struct cuda_host_region* regions;
    uint64_t n_regions;
};

cuda_host_thread cuda_host_current;

alignas(PAGE) HIDDEN
char cuda_host_dynamic[MAX_SHARED + 2 * SHARED_GAP];

static Thread threads[MAX_THREADS];
static State states[MAX_THREADS];
static char* const dynamic_shared = cuda_host_dynamic + SHARED_GAP;
static struct {
    const cuda_host_launch* launch;
    void (*invoke)(void**);
    void** arguments;
    const char* kernel;
    char* error;
    size_t error_size;
    Context scheduler, dead;
    char* stacks;
    uint64_t random;
    int ready_stacks;  // stacks below this have their guard page
    int n_threads, current, failed;
    // Threads that wait, the votes among them, and whether they wait at different barriers.
    int in_warp, at_barrier, votes, first_arrived, vote_result;
    bool barriers_differ;
    bool together;  // runs a function of all lanes, which may access what is theirs
    int sweep[WARP], sweep_size, sweep_at;
    int16_t free_fibers[MAX_THREADS];
    int n_free;
} self;

static const char* base_name(const char* file) {
    const char* slash = file ? strrchr(file, '/') : nullptr;
    return slash ? slash + 1 : file ? file : "?";
}

// Keeps the first error of a launch.
__attribute__((format(printf, 1, 2))) static void set_error(const char* format, ...) {
    if (self.failed) return;
    self.failed = 1;
    const uint3& block = cuda_host_current.block;
    int n = snprintf(self.error, self.error_size, "kernel %s, block (%u,%u,%u): ", self.kernel,
                     block.x, block.y, block.z);
    if (n < 0 || (size_t)n >= self.error_size) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(self.error + n, self.error_size - (size_t)n, format, arguments);
    va_end(arguments);
}

// "thread (x,y,z)" in one of a few rotating buffers.
static const char* name_of(const Thread& t) {
    static char names[4][48];
    static int next;
    char* name = names[next++ % 4];
    snprintf(name, sizeof names[0], "thread (%u,%u,%u)", t.index.x, t.index.y, t.index.z);
    return name;
}

// ---- fibers ------------------------------------------------------------------------------------

static char* stack_of(int fiber) { return self.stacks + (size_t)fiber * STACK + PAGE; }

static void make_current(int t) {
    self.current = t;
    cuda_host_current.thread = threads[t].index;
}

// The next lane of the sweep that can run, or -1.
static int next_in_sweep() {
    while (++self.sweep_at < self.sweep_size) {
        int t = self.sweep[self.sweep_at];
        if (states[t] <= READY) return t;
    }
    return -1;
}

static void fiber_main();

// Leaves the running context, saved in *save, for thread t or, if t < 0, for the scheduler.
__attribute__((always_inline)) static inline void go(int t, Context* save) {
    const Context* to = &self.scheduler;
    if (t >= 0) {
        if (states[t] == NEW) {
            int fiber = self.free_fibers[--self.n_free];
            threads[t].fiber = (int16_t)fiber;
            threads[t].context = begin_at((void**)(stack_of(fiber) + STACK - PAGE), &fiber_main);
        }
        to = &threads[t].context;
        make_current(t);
    }
    switch_to(save, to);
}

static void fiber_main() {
    for (;;) {
        self.invoke(self.arguments);
        Thread& me = threads[self.current];
        states[self.current] = DONE;
        int t = next_in_sweep();
        if (t >= 0 && states[t] == NEW) {  // this stack takes the next thread: no switch
            threads[t].fiber = me.fiber;
            make_current(t);
            continue;
        }
        self.free_fibers[self.n_free++] = me.fiber;
        go(t, &self.dead);
        __builtin_unreachable();
    }
}

// The stack of the thread after next is on its way while the next one runs.
static inline void fetch_stack(int t) {
    const char* stack = (const char*)threads[t < MAX_THREADS ? t : 0].context.sp;
    __builtin_prefetch(stack);
    __builtin_prefetch(stack + 64);
}

__attribute__((always_inline)) static inline void wait_as(Thread& me, State state) {
    states[self.current] = state;
    int t = next_in_sweep();
    fetch_stack(t + 1);
    go(t, &me.context);
}

extern "C" HIDDEN void cuda_host_fail(const char* what, int line, const char* file) {
    set_error("%s at %s:%d: %s", name_of(threads[self.current]), base_name(file), line, what);
    go(-1, &self.dead);
    __builtin_unreachable();
}

extern "C" HIDDEN int cuda_host_barrier(int vote, int predicate, int line, const char* file) {
    Thread& me = threads[self.current];
    me.op = (uint8_t)vote;
    me.line = line;
    me.file = file;
    if (self.at_barrier++ == 0) self.first_arrived = self.current;
    const Thread& first = threads[self.first_arrived];
    self.barriers_differ |= line != first.line || file != first.file || me.op != first.op;
    self.votes += predicate != 0;
    wait_as(me, AT_BARRIER);
    return self.vote_result;  // the next barrier is not released before all have read it
}

extern "C" HIDDEN uint64_t cuda_host_warp(int op, unsigned mask, uint64_t value, int argument,
                                          int width, int line, const char* file) {
    if (!(mask >> (self.current % WARP) & 1))
        cuda_host_fail("warp intrinsic whose mask leaves out the calling lane", line, file);
    if (width < 1 || width > WARP || (width & (width - 1)))
        cuda_host_fail("shuffle width is not a power of two from 1 to 32", line, file);
    Thread& me = threads[self.current];
    me.op = (uint8_t)op;
    me.mask = mask;
    me.value = value;
    me.argument = argument;
    me.width = width;
    me.line = line;
    me.file = file;
    self.in_warp++;
    wait_as(me, IN_WARP);
    return me.value;
}

// What a lane brings to cuda_host_together.
struct Together { void (*function)(void**); void* argument; };

extern "C" HIDDEN void cuda_host_together(unsigned mask, void (*function)(void**), void* argument,
                                          int line, const char* file) {
    Together mine = {function, argument};
    cuda_host_warp(CUDA_HOST_TOGETHER, mask, (uint64_t)&mine, 0, WARP, line, file);
}

// ---- checks ------------------------------------------------------------------------------------

#ifdef CUDA_HOST_CHECKED
#include "cuda_host_check.h"
#else
#ifdef CUDA_HOST_SANITIZED
extern "C" void __asan_poison_memory_region(const volatile void*, size_t);
extern "C" void __asan_unpoison_memory_region(const volatile void*, size_t);
// AddressSanitizer knows buffers and static shared arrays by itself, dynamic shared memory not.
static bool check_launch() {
    __asan_poison_memory_region(cuda_host_dynamic, sizeof cuda_host_dynamic);
    __asan_unpoison_memory_region(dynamic_shared, self.launch->shared_bytes);
    return true;
}
// Whoever gets these addresses next must not inherit the marks.
static void check_release() {
    __asan_unpoison_memory_region(cuda_host_dynamic, sizeof cuda_host_dynamic);
    if (self.stacks) __asan_unpoison_memory_region(self.stacks, (size_t)MAX_THREADS * STACK);
}
#else
static bool check_launch() { return true; }
static void check_release() {}
#endif
static void check_block(uint64_t) {}
static void check_block_end() {}
static void check_launch_end() {}
static void check_barrier() {}
static void check_syncwarp(int, unsigned) {}
#endif

// ---- scheduling --------------------------------------------------------------------------------

static uint64_t random_number() {  // xorshift64
    self.random ^= self.random << 13;
    self.random ^= self.random >> 7;
    self.random ^= self.random << 17;
    return self.random;
}

static int lanes_of(int warp) {
    int left = self.n_threads - WARP * warp;
    return left < WARP ? left : (int)WARP;
}

// Runs every runnable lane of a warp until it waits or ends.
static void sweep_warp(int warp) {
    int lanes = lanes_of(warp);
    for (int i = 0; i < lanes; i++)
        self.sweep[i] = WARP * warp + (self.launch->order == REVERSE ? lanes - 1 - i : i);
    if (self.launch->order == RANDOM) {
        for (int i = lanes - 1; i > 0; i--)
            std::swap(self.sweep[i], self.sweep[random_number() % (unsigned)(i + 1)]);
    }
    self.sweep_size = lanes;
    self.sweep_at = -1;
    int t = next_in_sweep();
    if (t >= 0) go(t, &self.scheduler);
}

// The lane that a shuffle reads from, by the rules of PTX.
static int source_lane(const Thread& t, int lane) {
    int low = lane & ~(t.width - 1), high = low + t.width - 1, source = lane;
    switch (t.op) {
        case CUDA_HOST_IDX: return low | (t.argument & (t.width - 1));
        case CUDA_HOST_UP: source = lane - t.argument; return source < low ? lane : source;
        case CUDA_HOST_DOWN: source = lane + t.argument; return source > high ? lane : source;
        case CUDA_HOST_XOR: source = lane ^ t.argument; return source > high ? lane : source;
        default: return lane;
    }
}

static unsigned equal_lanes(const Thread* lane, unsigned members, uint64_t value) {
    unsigned equal = 0;
    for (unsigned rest = members; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        equal |= (unsigned)(lane[l].value == value) << l;
    }
    return equal;
}

static void call_together(const Thread* lane, unsigned members) {
    void* arguments[WARP] = {};
    const Together* one = nullptr;
    for (unsigned rest = members; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        one = (const Together*)lane[l].value;
        arguments[l] = one->argument;
    }
    self.together = true;
    one->function(arguments);
    self.together = false;
}

// Resolves one group: the lanes of `members` all wait in the same intrinsic.
static void resolve_group(Thread* lane, unsigned members) {
    uint64_t result[WARP];
    unsigned votes = 0;
    for (unsigned rest = members; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        votes |= (unsigned)(lane[l].value & 1) << l;
    }
    for (unsigned rest = members; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest), source = source_lane(lane[l], l);
        bool is_there = members >> source & 1, is_shift = lane[l].op == CUDA_HOST_UP || lane[l].op == CUDA_HOST_DOWN;
        if (!is_there && !is_shift) {
            return set_error("%s at %s:%d: shuffle reads lane %d, which %s", name_of(lane[l]),
                             base_name(lane[l].file), lane[l].line, source,
                             lane[l].mask >> source & 1 ? "has exited or does not exist"
                                                        : "is not in the mask");
        }
        switch (lane[l].op) {
            case CUDA_HOST_BALLOT: result[l] = votes; break;
            case CUDA_HOST_MATCH: result[l] = equal_lanes(lane, members, lane[l].value); break;
            case CUDA_HOST_ACTIVE: result[l] = members; break;
            // A shift from beyond the mask gives nothing that may be used: all bits set is NaN.
            default: result[l] = is_there ? lane[source].value : ~0ull;
        }
    }
    if (lane[__builtin_ctz(members)].op == CUDA_HOST_TOGETHER) call_together(lane, members);
    if (lane[__builtin_ctz(members)].op == CUDA_HOST_SYNC)
        check_syncwarp((int)(lane - threads), members);
    for (unsigned rest = members; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        lane[l].value = result[l];
        states[lane - threads + l] = READY;
        self.in_warp--;
    }
}

// The lanes of a warp that wait in __activemask at the place where the first such lane waits.
static unsigned active_lanes(const Thread* lane, unsigned waiting) {
    unsigned active = 0;
    const Thread* first = nullptr;
    for (unsigned rest = waiting; rest; rest &= rest - 1) {
        const Thread& t = lane[__builtin_ctz(rest)];
        if (t.op != CUDA_HOST_ACTIVE) continue;
        if (!first) first = &t;
        if (t.line == first->line && t.file == first->file) active |= rest & -rest;
    }
    return active;
}

// A lane of the members that waits in another intrinsic than the first one, or under another mask.
static const Thread* different_in(const Thread* lane, unsigned members, const Thread& first) {
    for (unsigned rest = members; rest; rest &= rest - 1) {
        const Thread& t = lane[__builtin_ctz(rest)];
        if (t.mask != first.mask || t.op != first.op) return &t;
    }
    return nullptr;
}

// Resolves the warp intrinsics all of whose live lanes have come; whether there were any. Who asks which
// lanes are active waits until no other lane can go on.
static bool resolve_warp(int warp) {
    if (self.in_warp == 0) return false;
    Thread* lane = threads + WARP * warp;
    unsigned live = 0, waiting = 0, asking = 0;
    for (int l = 0; l < lanes_of(warp); l++) {
        live |= (unsigned)(states[WARP * warp + l] != DONE) << l;
        bool waits = states[WARP * warp + l] == IN_WARP;
        waiting |= (unsigned)waits << l;
        asking |= (unsigned)(waits && lane[l].op == CUDA_HOST_ACTIVE) << l;
    }
    waiting &= ~asking;
    // Two lanes that wait for each other in different intrinsics, unless one of them can go on first.
    const Thread *one = nullptr, *other = nullptr;
    bool resolved = false;
    for (unsigned rest = waiting; rest && !self.failed;) {
        const Thread& first = lane[__builtin_ctz(rest)];
        unsigned members = first.mask & live;
        rest &= rest - 1;
        if ((members & waiting) != members) continue;
        if (const Thread* different = different_in(lane, members, first)) {
            one = &first;
            other = different;
            continue;
        }
        resolve_group(lane, members);
        resolved = true;
        rest &= ~members;
        waiting &= ~members;
    }
    if (resolved || self.failed) return resolved;
    if (asking) {
        resolve_group(lane, active_lanes(lane, asking));
        return true;
    }
    if (one) {
        set_error("warp divergence: %s waits in a warp intrinsic at %s:%d (mask %08x), %s in "
                  "another at %s:%d (mask %08x)",
                  name_of(*one), base_name(one->file), one->line, one->mask, name_of(*other),
                  base_name(other->file), other->line, other->mask);
    }
    return false;
}

static bool is_runnable(int warp) {
    for (int l = 0; l < lanes_of(warp); l++)
        if (states[WARP * warp + l] <= READY) return true;
    return false;
}

// Runs all warps until every thread waits at the barrier, waits for lanes that never come, or ends.
static void run_warps() {
    int warps = (self.n_threads + WARP - 1) / WARP;
    if (self.launch->order != RANDOM) {
        for (int i = 0; i < warps && !self.failed; i++) {
            int warp = self.launch->order == REVERSE ? warps - 1 - i : i;
            do sweep_warp(warp);
            while (!self.failed && resolve_warp(warp));
        }
        return;
    }
    while (!self.failed) {  // a random warp, one sweep at a time
        int runnable[MAX_THREADS / WARP], n = 0;
        for (int warp = 0; warp < warps; warp++)
            if (is_runnable(warp)) runnable[n++] = warp;
        if (n == 0) return;
        int warp = runnable[random_number() % (unsigned)n];
        sweep_warp(warp);
        if (!self.failed) resolve_warp(warp);
    }
}

static const Thread* first_in(State state) {
    const void* found = memchr(states, state, (size_t)self.n_threads);
    return found ? threads + ((const State*)found - states) : nullptr;
}

// A warp intrinsic waits for lanes that wait elsewhere or have another mask.
static void report_stuck_warp(const Thread& waiting) {
    int first = (int)(&waiting - threads) / WARP * WARP;
    for (int l = 0; l < WARP && first + l < self.n_threads; l++) {
        const Thread& other = threads[first + l];
        if (!(waiting.mask >> l & 1) || states[first + l] != AT_BARRIER) continue;
        return set_error("warp divergence: %s waits in a warp intrinsic at %s:%d (mask %08x) for "
                         "%s, which waits at %s:%d", name_of(waiting), base_name(waiting.file),
                         waiting.line, waiting.mask, name_of(other), base_name(other.file),
                         other.line);
    }
    set_error("warp divergence: %s waits in a warp intrinsic at %s:%d (mask %08x) for lanes that "
              "never come", name_of(waiting), base_name(waiting.file), waiting.line, waiting.mask);
}

// Says why a block cannot pass: a thread has returned, or waits at another barrier.
static void report_stuck_barrier() {
    const Thread* first = first_in(AT_BARRIER);
    if (const Thread* gone = first_in(DONE)) {
        return set_error("barrier divergence: %d of %d threads wait at the __syncthreads() of "
                         "%s:%d, but %s has returned", self.at_barrier, self.n_threads,
                         base_name(first->file), first->line, name_of(*gone));
    }
    for (int t = 0; t < self.n_threads; t++) {
        const Thread& other = threads[t];
        if (other.line != first->line || other.file != first->file || other.op != first->op) {
            return set_error("barrier divergence: %s waits at the __syncthreads() of %s:%d, %s at "
                             "that of %s:%d", name_of(*first), base_name(first->file), first->line,
                             name_of(other), base_name(other.file), other.line);
        }
    }
}

// Lets the block pass the barrier that all its threads have reached, or says who did not.
static void release_barrier() {
    if (self.at_barrier < self.n_threads || self.barriers_differ) return report_stuck_barrier();
    check_barrier();
    int op = threads[0].op;
    self.vote_result = op == 1 ? self.votes : op == 2 ? self.votes == self.n_threads : self.votes != 0;
    self.at_barrier = self.votes = 0;
    memset(states, READY, (size_t)self.n_threads);
}

// As memset does, and AddressSanitizer does not see it: between the arrays are its gaps.
static void fill(char* from, size_t bytes) {
#ifdef CUDA_HOST_SANITIZED
    for (size_t i = 0; i < bytes; i++) ((volatile char*)from)[i] = (char)0xff;
#else
    memset(from, 0xff, bytes);
#endif
}

static void run_block() {
    // All bits set is NaN: what a kernel reads before it wrote it shows.
    fill(__start_cudashm, (size_t)(__stop_cudashm - __start_cudashm));
    fill(dynamic_shared, self.launch->shared_bytes);
    self.n_free = self.in_warp = self.at_barrier = self.votes = 0;
    self.barriers_differ = false;
    memset(states, NEW, (size_t)self.n_threads);
    for (int t = self.n_threads; t-- > 0;) self.free_fibers[self.n_free++] = (int16_t)t;
    while (!self.failed) {
        run_warps();
        if (self.failed) return;
        if (const Thread* stuck = first_in(IN_WARP)) return report_stuck_warp(*stuck);
        if (!first_in(AT_BARRIER)) return;
        release_barrier();
    }
}

// ---- what the device calls ---------------------------------------------------------------------

static bool reserve_memory() {
    auto reserve = [](size_t bytes) -> char* {
        void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return memory == MAP_FAILED ? nullptr : (char*)memory;
    };
    if (!self.stacks) self.stacks = reserve((size_t)MAX_THREADS * STACK);
    if (!self.stacks) return false;
    // A guard page below each stack that is used: an overflow faults instead of spoiling another's.
    for (; self.ready_stacks < self.n_threads; self.ready_stacks++)
        if (mprotect(self.stacks + (size_t)self.ready_stacks * STACK, PAGE, PROT_NONE)) return false;
    return true;
}

__attribute__((destructor)) static void release_memory() {
    check_release();
    if (self.stacks) munmap(self.stacks, (size_t)MAX_THREADS * STACK);
}

extern "C" HIDDEN char __start_cudadev[] __attribute__((weak)), __stop_cudadev[] __attribute__((weak));

// Whether a kernel file has __device__ variables: then there can be one copy of the library alone.
EXPORT int cuda_host_has_variables() { return __stop_cudadev - __start_cudadev > 0; }

// Runs blocks [first_block, end_block) of a grid. Returns 0, or 1 with a message in `error`.
EXPORT int cuda_host_run(const char* kernel, void (*invoke)(void**), const cuda_host_launch* launch,
                         void** arguments, char* error, size_t error_size) {
    self.launch = launch;
    self.invoke = invoke;
    self.arguments = arguments;
    self.kernel = kernel;
    self.error = error;
    self.error_size = error_size;
    self.failed = 0;
    self.random = launch->seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull;
    const uint32_t *grid = launch->grid, *block = launch->block;
    self.n_threads = (int)(block[0] * block[1] * block[2]);
    cuda_host_current.block = {0, 0, 0};
    cuda_host_current.block_dim = {block[0], block[1], block[2]};
    cuda_host_current.grid_dim = {grid[0], grid[1], grid[2]};
    if (!reserve_memory() || !check_launch()) {
        set_error("no memory for %d threads", self.n_threads);
        return 1;
    }
    for (uint32_t t = 0; t < (uint32_t)self.n_threads; t++)
        threads[t].index = {t % block[0], t / block[0] % block[1], t / (block[0] * block[1])};
    for (uint64_t i = launch->first_block; i < launch->end_block && !self.failed; i++) {
        uint64_t b = launch->order == FORWARD ? i : launch->first_block + launch->end_block - 1 - i;
        cuda_host_current.block = {(unsigned)(b % grid[0]), (unsigned)(b / grid[0] % grid[1]),
                                   (unsigned)(b / ((uint64_t)grid[0] * grid[1]))};
        check_block(b);
        run_block();
        if (!self.failed) check_block_end();
    }
    if (!self.failed) check_launch_end();
    return self.failed;
}
