// Cooperative groups of a block: the block, tiles of a warp, the active lanes. A grid can be asked for its
// size, and not waited for: its blocks do not run at the same time.
#pragma once
#include "cuda_host.h"

namespace cooperative_groups {

#define CUDA_HOST_LANE (cuda_host_thread_rank() % 32)
static inline unsigned cuda_host_thread_rank() {
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
static inline unsigned cuda_host_block_size() { return blockDim.x * blockDim.y * blockDim.z; }

// Any group: lanes of a warp, or with the mask 0 the whole block.
class thread_group {
  protected:
    unsigned mask;

  public:
    explicit thread_group(unsigned mask) : mask(mask) {}
    unsigned long long size() const { return mask ? __popc(mask) : cuda_host_block_size(); }
    unsigned long long num_threads() const { return size(); }
    unsigned long long thread_rank() const {
        return mask ? __popc(mask & ((1u << CUDA_HOST_LANE) - 1)) : cuda_host_thread_rank();
    }
    void sync(CUDA_HOST_HERE) const {
        if (mask) __syncwarp(mask, line, file);
        else __syncthreads(line, file);
    }
    unsigned cuda_host_mask() const { return mask; }
};

class thread_block : public thread_group {
  public:
    thread_block() : thread_group(0) {}
    static void sync(CUDA_HOST_HERE) { __syncthreads(line, file); }
    static unsigned size() { return cuda_host_block_size(); }
    static unsigned num_threads() { return size(); }
    static unsigned thread_rank() { return cuda_host_thread_rank(); }
    static dim3 group_index() { return blockIdx; }
    static dim3 thread_index() { return threadIdx; }
    static dim3 group_dim() { return blockDim; }
    static dim3 dim_threads() { return blockDim; }
};
static inline thread_block this_thread_block() { return thread_block(); }

// What groups of lanes have in common; ranks and votes count from the group's first lane.
class cuda_host_lanes : public thread_group {
    // The lane of a rank: the mask's bit number so many.
    int lane_of(unsigned rank) const {
        unsigned rest = mask;
        for (; rank && rest; rank--) rest &= rest - 1;
        return rest ? __builtin_ctz(rest) : (int)CUDA_HOST_LANE;
    }
    unsigned packed(unsigned lanes) const {
        unsigned result = 0, rank = 0;
        for (unsigned rest = mask; rest; rest &= rest - 1, rank++)
            result |= (lanes >> __builtin_ctz(rest) & 1) << rank;
        return result;
    }

  public:
    using thread_group::thread_group;
    unsigned size() const { return (unsigned)__popc(mask); }
    unsigned num_threads() const { return size(); }
    unsigned thread_rank() const { return (unsigned)thread_group::thread_rank(); }
    template <class T>
    T shfl(T value, int rank, CUDA_HOST_HERE) const {
        return __shfl_sync(mask, value, lane_of((unsigned)rank % size()), 32, line, file);
    }
    template <class T>
    T shfl_down(T value, unsigned delta, CUDA_HOST_HERE) const {
        const unsigned rank = thread_rank() + delta;
        return __shfl_sync(mask, value, rank < size() ? lane_of(rank) : (int)CUDA_HOST_LANE, 32, line,
                           file);
    }
    template <class T>
    T shfl_up(T value, unsigned delta, CUDA_HOST_HERE) const {
        const unsigned rank = thread_rank();
        return __shfl_sync(mask, value, delta <= rank ? lane_of(rank - delta) : (int)CUDA_HOST_LANE,
                           32, line, file);
    }
    template <class T>
    T shfl_xor(T value, unsigned lanes, CUDA_HOST_HERE) const {
        const unsigned rank = thread_rank() ^ lanes;
        return __shfl_sync(mask, value, rank < size() ? lane_of(rank) : (int)CUDA_HOST_LANE, 32, line,
                           file);
    }
    int any(int predicate, CUDA_HOST_HERE) const { return __any_sync(mask, predicate, line, file); }
    int all(int predicate, CUDA_HOST_HERE) const { return __all_sync(mask, predicate, line, file); }
    unsigned ballot(int predicate, CUDA_HOST_HERE) const {
        return packed(__ballot_sync(mask, predicate, line, file));
    }
    template <class T>
    unsigned match_any(T value, CUDA_HOST_HERE) const {
        return packed(__match_any_sync(mask, value, line, file));
    }
    template <class T>
    unsigned match_all(T value, int& all, CUDA_HOST_HERE) const {
        return packed(__match_all_sync(mask, value, &all, line, file));
    }
};

// SIZE threads of a warp that follow one another.
template <unsigned SIZE, class Parent = thread_block>
class thread_block_tile : public cuda_host_lanes {
    static_assert(SIZE && SIZE <= 32 && !(SIZE & (SIZE - 1)),
                  "a tile has 1, 2, 4, 8, 16 or 32 threads on the host device");
    static unsigned lanes() {
        return (unsigned)((1ull << SIZE) - 1) << (CUDA_HOST_LANE & ~(SIZE - 1));
    }

  public:
    thread_block_tile() : cuda_host_lanes(lanes()) {}
    static constexpr unsigned size() { return SIZE; }
    static constexpr unsigned num_threads() { return SIZE; }
    static unsigned thread_rank() { return CUDA_HOST_LANE % SIZE; }
    // Of the tile among those of its parent.
    unsigned meta_group_rank() const { return parent_rank() / SIZE; }
    unsigned meta_group_size() const { return (parent_size() + SIZE - 1) / SIZE; }

  private:
    static unsigned parent_rank() {
        if constexpr (std::is_same_v<Parent, thread_block>) return cuda_host_thread_rank();
        else return CUDA_HOST_LANE % Parent::size();
    }
    static unsigned parent_size() {
        if constexpr (std::is_same_v<Parent, thread_block>) return cuda_host_block_size();
        else return Parent::size();
    }
};
template <unsigned SIZE, class Parent>
static inline thread_block_tile<SIZE, Parent> tiled_partition(const Parent&) {
    return {};
}
static inline thread_group tiled_partition(const thread_group&, unsigned size) {
    return thread_group((unsigned)((1ull << size) - 1) << (CUDA_HOST_LANE & ~(size - 1)));
}

class coalesced_group : public cuda_host_lanes {
  public:
    using cuda_host_lanes::cuda_host_lanes;
    unsigned meta_group_rank() const { return 0; }
    unsigned meta_group_size() const { return 1; }
};
static inline coalesced_group coalesced_threads(CUDA_HOST_HERE) {
    return coalesced_group(__activemask(line, file));
}
// The lanes of a group with the same label.
template <class Group, class T>
static inline coalesced_group labeled_partition(const Group& group, T label, CUDA_HOST_HERE) {
    return coalesced_group(__match_any_sync(group.cuda_host_mask(), label, line, file));
}
template <class Group>
static inline coalesced_group binary_partition(const Group& group, bool side, CUDA_HOST_HERE) {
    return labeled_partition(group, (int)side, line, file);
}

class grid_group {
  public:
    static bool is_valid() { return false; }
    static void sync(CUDA_HOST_HERE) {
        cuda_host_fail("a barrier over the grid, whose blocks run one after another on the CPU; use "
                       "--device cuda, or make it two launches", line, file);
    }
    static unsigned long long num_blocks() { return (unsigned long long)gridDim.x * gridDim.y * gridDim.z; }
    static unsigned long long block_rank() {
        return blockIdx.x + gridDim.x * (blockIdx.y + (unsigned long long)gridDim.y * blockIdx.z);
    }
    static unsigned long long size() { return num_blocks() * cuda_host_block_size(); }
    static unsigned long long num_threads() { return size(); }
    static unsigned long long thread_rank() {
        return block_rank() * cuda_host_block_size() + cuda_host_thread_rank();
    }
    static dim3 group_dim() { return gridDim; }
    static dim3 dim_blocks() { return gridDim; }
    static dim3 block_index() { return blockIdx; }
};
static inline grid_group this_grid() { return {}; }

template <class Group>
static inline void sync(const Group& group, CUDA_HOST_HERE) { group.sync(line, file); }

// ---- reductions and scans over lanes -----------------------------------------------------------

#define CUDA_HOST_FUNCTOR(NAME, JOINED)                                                            \
    template <class T = void>                                                                      \
    struct NAME { T operator()(T a, T b) const { return JOINED; } };                               \
    template <>                                                                                    \
    struct NAME<void> { template <class T> T operator()(T a, T b) const { return JOINED; } };
CUDA_HOST_FUNCTOR(plus, a + b)
CUDA_HOST_FUNCTOR(less, b < a ? b : a)
CUDA_HOST_FUNCTOR(greater, a < b ? b : a)
CUDA_HOST_FUNCTOR(bit_and, a & b)
CUDA_HOST_FUNCTOR(bit_or, a | b)
CUDA_HOST_FUNCTOR(bit_xor, a ^ b)

// In every thread of the group: of a tile as a tree, lane distance SIZE / 2 first; of other groups lane by
// lane.
template <unsigned SIZE, class Parent, class T, class F>
static inline T reduce(const thread_block_tile<SIZE, Parent>& tile, T value, F join, CUDA_HOST_HERE) {
    for (unsigned distance = SIZE / 2; distance > 0; distance /= 2)
        value = join(value, tile.shfl_xor(value, distance, line, file));
    return value;
}
template <class T, class F>
static inline T reduce(const coalesced_group& group, T value, F join, CUDA_HOST_HERE) {
    return cuda_host_reduce(group.cuda_host_mask(), value, join, line, file);
}

template <class Group, class T, class F>
static inline T inclusive_scan(const Group& group, T value, F join, CUDA_HOST_HERE) {
    const unsigned rank = group.thread_rank();
    for (unsigned distance = 1; distance < group.size(); distance *= 2) {
        const T before = group.shfl_up(value, distance, line, file);
        if (rank >= distance) value = join(before, value);
    }
    return value;
}
template <class Group, class T>
static inline T inclusive_scan(const Group& group, T value, CUDA_HOST_HERE) {
    return inclusive_scan(group, value, plus<T>(), line, file);
}
template <class Group, class T, class F>
static inline T exclusive_scan(const Group& group, T value, F join, CUDA_HOST_HERE) {
    const T before = group.shfl_up(inclusive_scan(group, value, join, line, file), 1, line, file);
    return group.thread_rank() ? before : T();
}
template <class Group, class T>
static inline T exclusive_scan(const Group& group, T value, CUDA_HOST_HERE) {
    return exclusive_scan(group, value, plus<T>(), line, file);
}

// ---- asynchronous copies: done at once, shared among the group ---------------------------------

template <class Group, class T>
static inline __attribute__((always_inline)) void memcpy_async(const Group& group, T* to, const T* from,
                                                                size_t bytes) {
    for (size_t i = group.thread_rank(); i < bytes / sizeof(T); i += group.size()) to[i] = from[i];
}
template <class Group>
static inline void wait(const Group& group, CUDA_HOST_HERE) { group.sync(line, file); }
template <unsigned STAGES, class Group>
static inline void wait_prior(const Group& group, CUDA_HOST_HERE) { group.sync(line, file); }

}  // namespace cooperative_groups
