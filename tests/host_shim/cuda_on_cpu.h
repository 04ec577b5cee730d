// Executes the text of a .cu file on the CPU. Every CUDA thread of a block is a coroutine with its own stack, all on one OS thread;
// a barrier or a warp operation switches to the next coroutine and returns when all that must arrive have arrived. Blocks run one
// after another. What makes mistakes visible:
//   - warps run in a chosen order, each as far ahead of the others as barriers let it (forward, backward), or all threads take turns
//     in a shuffled order, so that a missing barrier changes results;
//   - shared memory is filled with 0xff bytes before each block, and what lies beyond its size is checked after it;
//   - a barrier or a warp operation that not all threads reach ends the launch with an error, instead of hanging.
// Products and sums are compiled with -ffp-contract=off, as the kernels are compiled with --fmad=false.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>
#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

const size_t SHIM_SHARED = 48 * 1024, SHIM_GUARD = 4 * 1024;
alignas(16) unsigned char shared_bytes[SHIM_SHARED + SHIM_GUARD];  // what a kernel declares as extern __shared__

namespace shim {

struct Index { unsigned x, y, z; };

enum State { READY, AT_BARRIER, AT_WARP, DONE };

struct Thread {
    ucontext_t context;
    jmp_buf jump;
    State state;
    bool begun;              // the coroutine exists; it serves one thread a block, for as many blocks as there are
    unsigned warp_mask;      // lanes a warp operation waits for
    int warp_kind;           // which operation, so that two different ones are not taken for one
    uint64_t given, result;  // what a lane brings to a warp operation, and what it takes away
};

const int WARP = 32, MAX_THREADS = 1024;
const size_t STACK = 64 * 1024;

struct Counts { uint64_t threads, barriers, warp_operations, atomics; };

inline Index thread_index, block_index, block_size, grid_size;
inline Thread threads[MAX_THREADS];
inline int current, thread_count;
inline jmp_buf scheduler;
inline char* stacks;
inline std::string problem;
inline Counts counts;
inline void (*body)(void*);
inline void* body_argument;

inline void wait(State state) {
    Thread& mine = threads[current];
    mine.state = state;
    if (_setjmp(mine.jump) == 0) _longjmp(scheduler, 1);
}

inline void serve() {
    while (true) {
        body(body_argument);
        wait(DONE);
    }
}

inline uint64_t warp(int kind, unsigned mask, uint64_t given) {
    Thread& mine = threads[current];
    mine.warp_kind = kind;
    mine.warp_mask = mask;
    mine.given = given;
    ++counts.warp_operations;
    wait(AT_WARP);
    return mine.result;
}

enum Kind { BALLOT, ANY, ALL, SYNC, SHUFFLE_XOR, SHUFFLE_DOWN, SHUFFLE };

// The lane a shuffle reads; the low 32 bits of `given` of a shuffle are the value's place in `values`, see shuffle() below.
inline int source_lane(int kind, int lane, int argument) {
    const int source = kind == SHUFFLE_XOR ? (lane ^ argument) : kind == SHUFFLE_DOWN ? lane + argument : argument;
    return source >= 0 && source < WARP ? source : lane;
}

inline int shuffle_argument[MAX_THREADS];

// Finish the warp operations of one warp that all lanes of their masks have reached.
inline bool release_warp(int first) {
    const int lanes = std::min(WARP, thread_count - first);
    const unsigned full = lanes == WARP ? ~0u : (1u << lanes) - 1;
    bool released = false;
    for (int lane = 0; lane < lanes; ++lane) {
        const Thread& leader = threads[first + lane];
        const unsigned mask = leader.warp_mask & full;
        if (leader.state != AT_WARP || !(mask >> lane & 1)) continue;
        bool all = true;
        unsigned votes = 0;
        for (int other = 0; other < lanes; ++other) {
            if (!(mask >> other & 1)) continue;
            const Thread& peer = threads[first + other];
            all = all && peer.state == AT_WARP && peer.warp_kind == leader.warp_kind && (peer.warp_mask & full) == mask;
            votes |= (unsigned)(peer.given != 0) << other;
        }
        if (!all) continue;
        const int kind = leader.warp_kind;
        for (int other = 0; other < lanes; ++other) {
            if (!(mask >> other & 1)) continue;
            Thread& peer = threads[first + other];
            if (kind == BALLOT) peer.result = votes;
            else if (kind == ANY) peer.result = votes != 0;
            else if (kind == ALL) peer.result = votes == mask;
            else if (kind != SYNC) {
                const int source = source_lane(kind, other, shuffle_argument[first + other]);
                if (source >= lanes || !(mask >> source & 1)) problem = "a shuffle reads a lane that does not take part";
                peer.result = threads[first + std::min(source, lanes - 1)].given;
            }
            peer.state = READY;
        }
        released = true;
    }
    return released;
}

inline bool release_barrier() {
    int waiting = 0;
    for (int each = 0; each < thread_count; ++each) {
        if (threads[each].state == AT_BARRIER) ++waiting;
        else if (threads[each].state != DONE) return false;
    }
    if (waiting == 0) return false;
    if (waiting != thread_count) problem = "a barrier that not all threads of the block reach";
    for (int each = 0; each < thread_count; ++each) {
        if (threads[each].state == AT_BARRIER) threads[each].state = READY;
    }
    ++counts.barriers;
    return true;
}

inline void resume(int each) {
    Thread& thread = threads[each];
    current = each;
    thread_index = {each % block_size.x, each / block_size.x % block_size.y, each / (block_size.x * block_size.y)};
    if (_setjmp(scheduler) != 0) return;
    if (thread.begun) _longjmp(thread.jump, 1);
    thread.begun = true;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = stacks + each * STACK;
    thread.context.uc_stack.ss_size = STACK;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, serve, 0);
    setcontext(&thread.context);
}

inline bool run_ready(const int* order, int count) {
    bool ran = false;
    for (int at = 0; at < count; ++at) {
        if (threads[order[at]].state == READY) { resume(order[at]); ran = true; }
    }
    return ran;
}

// order lists the threads, warp by warp if warps run ahead.
inline void run_block(const std::vector<int>& order, bool warps_run_ahead) {
    for (int each = 0; each < thread_count; ++each) threads[each].state = READY;
    while (problem.empty()) {
        bool moved = false;
        if (warps_run_ahead) {
            for (int first = 0; first < thread_count;) {
                const int warp = order[first] / WARP * WARP, lanes = std::min(WARP, thread_count - warp);
                while (problem.empty() && (run_ready(&order[first], lanes) || release_warp(warp))) moved = true;
                first += lanes;
            }
        } else {
            moved = run_ready(order.data(), thread_count);
            for (int warp = 0; warp < thread_count; warp += WARP) moved = release_warp(warp) || moved;
        }
        if (moved || release_barrier()) continue;
        for (int each = 0; each < thread_count; ++each) {
            if (threads[each].state == AT_WARP) problem = "a warp operation that not all lanes of its mask reach";
            if (threads[each].state == AT_BARRIER) problem = "a barrier that not all threads of the block reach";
        }
        return;
    }
}

// order: 0 forward, 1 backward, otherwise a seed that shuffles the threads of every block.
inline const char* launch(Index grid, Index block, size_t shared_size, int order_kind, void (*run)(void*), void* argument) {
    problem.clear();
    if (!stacks) {
        stacks = (char*)mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) { stacks = nullptr; problem = "no memory for the threads' stacks"; return problem.c_str(); }
    }
    static unsigned char untouched[sizeof shared_bytes];
    memset(untouched, 0xff, sizeof untouched);
    body = run;
    body_argument = argument;
    grid_size = grid;
    block_size = block;
    thread_count = block.x * block.y * block.z;
    if (thread_count < 1 || thread_count > MAX_THREADS) problem = "a block must have 1 to 1024 threads";
    if (shared_size > SHIM_SHARED) problem = "more than 48 KiB of shared memory";
    if (grid.y > 65535 || grid.z > 65535) problem = "a grid may have at most 65535 blocks in y and z";
    std::vector<int> order(std::max(thread_count, 1));
    for (int each = 0; each < thread_count; ++each) order[each] = order_kind == 1 ? thread_count - 1 - each : each;
    uint64_t random = order_kind;
    const uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    for (uint64_t each = 0; each < blocks && problem.empty(); ++each) {
        const uint64_t place = order_kind == 1 ? blocks - 1 - each : each;
        block_index = {(unsigned)(place % grid.x), (unsigned)(place / grid.x % grid.y), (unsigned)(place / grid.x / grid.y)};
        if (order_kind > 1) {
            for (int last = thread_count - 1; last > 0; --last) {
                random = random * 6364136223846793005ull + 1442695040888963407ull;
                std::swap(order[last], order[(random >> 33) % (last + 1)]);
            }
        }
        memset(shared_bytes, 0xff, sizeof shared_bytes);
        counts.threads += thread_count;
        run_block(order, order_kind < 2);
        if (memcmp(shared_bytes + shared_size, untouched, sizeof shared_bytes - shared_size) != 0 && problem.empty()) {
            problem = "a write beyond the block's shared memory";
        }
    }
    if (!problem.empty()) {
        for (Thread& thread : threads) thread.begun = false;  // some stand in the middle of the kernel; start anew
    }
    return problem.empty() ? nullptr : problem.c_str();
}

template <class... Types, size_t... At>
const char* launch_kernel(void (*kernel)(Types...), Index grid, Index block, size_t shared_size, int order, void** args,
                          std::index_sequence<At...>) {
    struct Call { void (*kernel)(Types...); void** args; } call = {kernel, args};
    return launch(grid, block, shared_size, order, [](void* argument) {
        const Call& made = *(const Call*)argument;
        made.kernel(*(std::remove_const_t<Types>*)made.args[At]...);
    }, &call);
}

template <class... Types>
const char* launch_kernel(void (*kernel)(Types...), Index grid, Index block, size_t shared_size, int order, void** args) {
    return launch_kernel(kernel, grid, block, shared_size, order, args, std::index_sequence_for<Types...>());
}

template <class T>
std::string kind_of() {  // as NumPy writes it: u8 for a pointer, i4, f4, V448 for a struct of 448 bytes
    const char* letter = std::is_pointer_v<T> ? "u" : std::is_floating_point_v<T> ? "f" : std::is_integral_v<T> ? "i" : "V";
    return letter + std::to_string(sizeof(T)) + " ";
}

template <class... Types>
std::string argument_kinds(void (*)(Types...)) { return (kind_of<Types>() + ...); }

template <class T>
T shuffle(Kind kind, unsigned mask, T value, int argument) {
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
    uint64_t given = 0;
    memcpy(&given, &value, sizeof value);
    shuffle_argument[current] = argument;
    const uint64_t result = warp(kind, mask, given);
    memcpy(&value, &result, sizeof value);
    return value;
}

template <class T, class Change>
T atomic(T* place, Change change) {
    ++counts.atomics;
    const T old = *place;
    *place = change(old);
    return old;
}

}  // namespace shim

// One exported launcher a kernel; the harness adds SHIM_KERNEL(name) for each kernel it finds in the file.
#define SHIM_KERNEL(name)                                                                                                         \
    extern "C" const char* shim_##name(const unsigned* grid, const unsigned* block, size_t shared_size, int order, void** args) { \
        return shim::launch_kernel(name, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_size, order, args); \
    }                                                                                                                             \
    extern "C" const char* shim_arguments_##name() {                                                                              \
        static const std::string kinds = shim::argument_kinds(name);                                                              \
        return kinds.c_str();                                                                                                     \
    }
extern "C" void shim_take_counts(uint64_t* into) { memcpy(into, &shim::counts, sizeof shim::counts); shim::counts = {}; }

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __restrict__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define threadIdx (shim::thread_index)
#define blockIdx (shim::block_index)
#define blockDim (shim::block_size)
#define gridDim (shim::grid_size)

using std::ceil;
using std::exp;
using std::floor;
using std::fma;
using std::sqrt;
inline int max(int a, int b) { return a > b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline float max(float a, float b) { return a >= b || b != b ? a : b; }  // a number wins over NaN, as on a device
inline float min(float a, float b) { return a <= b || b != b ? a : b; }
inline double max(double a, double b) { return a >= b || b != b ? a : b; }
inline double min(double a, double b) { return a <= b || b != b ? a : b; }

inline void __syncthreads() { shim::wait(shim::AT_BARRIER); }
inline void __syncwarp(unsigned mask = ~0u) { shim::warp(shim::SYNC, mask, 0); }
inline unsigned __ballot_sync(unsigned mask, bool vote) { return (unsigned)shim::warp(shim::BALLOT, mask, vote); }
inline bool __any_sync(unsigned mask, bool vote) { return shim::warp(shim::ANY, mask, vote); }
inline bool __all_sync(unsigned mask, bool vote) { return shim::warp(shim::ALL, mask, vote); }
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes) { return shim::shuffle(shim::SHUFFLE_XOR, mask, value, lanes); }
template <class T> T __shfl_down_sync(unsigned mask, T value, int lanes) { return shim::shuffle(shim::SHUFFLE_DOWN, mask, value, lanes); }
template <class T> T __shfl_sync(unsigned mask, T value, int lane) { return shim::shuffle(shim::SHUFFLE, mask, value, lane); }
template <class T> T atomicAdd(T* place, T value) { return shim::atomic(place, [=](T old) { return old + value; }); }
struct float4 { float x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float4 atomicAdd(float4* place, float4 value) {
    if ((uintptr_t)place % sizeof(float4)) shim::problem = "a vector of four numbers that is not aligned";
    return shim::atomic(place, [=](float4 old) { return float4{old.x + value.x, old.y + value.y, old.z + value.z, old.w + value.w}; });
}
template <class T> T atomicMax(T* place, T value) { return shim::atomic(place, [=](T old) { return old > value ? old : value; }); }
template <class T> T atomicOr(T* place, T value) { return shim::atomic(place, [=](T old) { return old | value; }); }

template <class To, class From> To shim_bits(From from) { To to; static_assert(sizeof to == sizeof from); memcpy(&to, &from, sizeof to); return to; }
inline unsigned __float_as_uint(float value) { return shim_bits<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return shim_bits<float>(value); }
inline long long __double_as_longlong(double value) { return shim_bits<long long>(value); }
inline double __longlong_as_double(long long value) { return shim_bits<double>(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
