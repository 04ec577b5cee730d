// Executes the text of a .cu file on the CPU. Every CUDA thread of a block is a coroutine with its own stack, all on one OS thread;
// a barrier or a warp operation switches to the next coroutine and returns when all that must arrive have arrived. Blocks run one
// after another. What makes mistakes visible:
//   - warps run in a chosen order, each as far ahead of the others as barriers let it (forward, backward), or all threads take turns
//     in a shuffled order, so that a missing barrier changes results;
//   - shared memory is filled with 0xff bytes before each block, and what lies beyond its size is checked after it;
//   - a barrier or a warp operation that not all threads reach, and warp operations without an end, end the launch with an
//     error, instead of hanging.
// Products and sums are compiled with -ffp-contract=off, as the kernels are compiled with --fmad=false.
// This header is what a kernel sees; cuda_on_cpu.cpp runs it, and is built once for all kernels.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

extern unsigned char shared_bytes[];  // what a kernel declares as extern __shared__

namespace shim {

struct Index { unsigned x, y, z; };

enum State { READY, AT_BARRIER, AT_WARP, DONE };

struct Counts { uint64_t threads, barriers, warp_operations, atomics; };

struct Argument { char letter; size_t bytes; };

extern Index thread_index, block_index, block_size, grid_size;
extern int current, shuffle_argument[];
extern const char* problem;  // of the launch, or null
extern Counts counts;

enum Kind { BALLOT, ANY, ALL, SYNC, SHUFFLE_XOR, SHUFFLE_DOWN, SHUFFLE };

void wait(State state);
uint64_t warp(int kind, unsigned mask, uint64_t given);
// order: 0 forward, 1 backward, otherwise a seed that shuffles the threads of every block.
const char* launch(Index grid, Index block, size_t shared_size, int order_kind, void (*run)(void*), void* argument);
const char* argument_kinds(const Argument* arguments, int count);

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
Argument argument_of() {
    return {std::is_pointer_v<T> ? 'u' : std::is_floating_point_v<T> ? 'f' : std::is_integral_v<T> ? 'i' : 'V', sizeof(T)};
}

template <class... Types>
const char* argument_kinds(void (*)(Types...)) {
    const Argument arguments[] = {argument_of<Types>()...};
    return argument_kinds(arguments, sizeof...(Types));
}

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
        return shim::argument_kinds(name);                                                                                        \
    }

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

// Written out, since g++ takes 0.1 s for <cmath>.
#define SHIM_FUNCTION(name)                                                  \
    inline float name(float value) { return __builtin_##name##f(value); }    \
    inline double name(double value) { return __builtin_##name(value); }
SHIM_FUNCTION(ceil)
SHIM_FUNCTION(exp)
SHIM_FUNCTION(fabs)
SHIM_FUNCTION(floor)
SHIM_FUNCTION(sqrt)
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
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
