// What runs the kernels of cuda_on_cpu.h: threads, warps, blocks and launches.
#include "cuda_on_cpu.h"
#include <csetjmp>
#include <algorithm>
#include <string>
#include <vector>
#include <sys/mman.h>
#include <ucontext.h>

const size_t SHIM_SHARED = 48 * 1024, SHIM_GUARD = 4 * 1024;
alignas(16) unsigned char shared_bytes[SHIM_SHARED + SHIM_GUARD];

namespace shim {

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
const uint64_t MOST_OPERATIONS = 10'000'000;  // of the warps of a block, between two barriers; the kernels have 80,000

Index thread_index, block_index, block_size, grid_size;
Thread threads[MAX_THREADS];
int current, thread_count, shuffle_argument[MAX_THREADS];
jmp_buf scheduler;
char* stacks;
const char* problem;
Counts counts;
uint64_t operations;  // of warps, since the last barrier
void (*body)(void*);
void* body_argument;

void wait(State state) {
    Thread& mine = threads[current];
    mine.state = state;
    if (_setjmp(mine.jump) == 0) _longjmp(scheduler, 1);
}

void serve() {
    while (true) {
        body(body_argument);
        wait(DONE);
    }
}

uint64_t warp(int kind, unsigned mask, uint64_t given) {
    Thread& mine = threads[current];
    mine.warp_kind = kind;
    mine.warp_mask = mask;
    mine.given = given;
    ++counts.warp_operations;
    if (++operations > MOST_OPERATIONS) problem = "warp operations without an end";
    wait(AT_WARP);
    return mine.result;
}

// The lane a shuffle reads; the low 32 bits of `given` of a shuffle are the value's place in `values`, see shuffle() below.
int source_lane(int kind, int lane, int argument) {
    const int source = kind == SHUFFLE_XOR ? (lane ^ argument) : kind == SHUFFLE_DOWN ? lane + argument : argument;
    return source >= 0 && source < WARP ? source : lane;
}

// Finish the warp operations of one warp that all lanes of their masks have reached.
bool release_warp(int first) {
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

bool release_barrier() {
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
    operations = 0;
    return true;
}

void resume(int each) {
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

bool run_ready(const int* order, int count) {
    bool ran = false;
    for (int at = 0; at < count; ++at) {
        if (threads[order[at]].state == READY) { resume(order[at]); ran = true; }
    }
    return ran;
}

// order lists the threads, warp by warp if warps run ahead.
void run_block(const std::vector<int>& order, bool warps_run_ahead) {
    for (int each = 0; each < thread_count; ++each) threads[each].state = READY;
    operations = 0;
    while (!problem) {
        bool moved = false;
        if (warps_run_ahead) {
            for (int first = 0; first < thread_count;) {
                const int warp = order[first] / WARP * WARP, lanes = std::min(WARP, thread_count - warp);
                while (!problem && (run_ready(&order[first], lanes) || release_warp(warp))) moved = true;
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

const char* launch(Index grid, Index block, size_t shared_size, int order_kind, void (*run)(void*), void* argument) {
    problem = nullptr;
    if (!stacks) {
        stacks = (char*)mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) { stacks = nullptr; problem = "no memory for the threads' stacks"; return problem; }
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
    for (uint64_t each = 0; each < blocks && !problem; ++each) {
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
        if (memcmp(shared_bytes + shared_size, untouched, sizeof shared_bytes - shared_size) != 0 && !problem) {
            problem = "a write beyond the block's shared memory";
        }
    }
    if (problem) {
        for (Thread& thread : threads) thread.begun = false;  // some stand in the middle of the kernel; start anew
    }
    return problem;
}

// As NumPy writes them: u8 for a pointer, i4, f4, V448 for a struct of 448 bytes.
const char* argument_kinds(const Argument* arguments, int count) {
    static std::string kinds;
    kinds.clear();
    for (int each = 0; each < count; ++each) {
        kinds += arguments[each].letter + std::to_string(arguments[each].bytes) + " ";
    }
    return kinds.c_str();
}

}  // namespace shim

extern "C" void shim_take_counts(uint64_t* into) {
    memcpy(into, &shim::counts, sizeof shim::counts);
    shim::counts = {};
}
