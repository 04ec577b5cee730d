// Greedy non-maximum suppression of ragged groups; nms.py describes the algorithm. Compiled with -DSCALAR=float or double.
//
// nms_keys      per row a sortable key, 0 if the row is absent, and (with groups) its order of arrival in its group
// nms_starts    offset of each group when groups are stored contiguously (one block)
// nms_scatter   moves rows to the segment of their group, in any order
// nms_rank      a warp counts the higher-scoring rows in its row's segment: boxes, keys and rows are written sorted
// nms_mask      64 IoU tests per thread: which columns of a 64-column word a row removes (in its own word: which remove it)
// nms_scan      one block per group processes the words in order; the 64 rows of a word are decided together
// nms_suppress  only for groups larger than one chunk: kept rows remove rows of later chunks
// nms_merge     only without padding: the rank of each kept row among the kept rows of all groups
//
// Shared memory is always dynamic, and kernels synchronize only through the order of launches.

#include "nms.cuh"

#define CHUNK 4096  // rows of a group decided together: 64 words of 64

struct Segment { int group, start, size; };

// The group of a position in the sorted arrays; starts is null for a single group. Size 0: the position is empty.
__device__ inline Segment segment_at(int position, const int* groups_at, const int* starts, const int* counts, int num_groups,
                                     int max_candidates) {
    Segment found = {0, 0, counts[0]};
    if (starts) {
        if (position >= starts[num_groups - 1] + counts[num_groups - 1]) return {0, 0, 0};
        found.group = groups_at[position];
        found.start = starts[found.group];
        found.size = counts[found.group];
    }
    if (found.size > max_candidates) found.size = max_candidates;
    return found;
}

// problems (3,): distance from the end of the first row with a NaN score, an invalid box, an unknown group; 0 for none.
extern "C" __global__ void nms_keys(const Box* boxes, const SCALAR* scores, const long long* groups, word* keys, int* arrivals, int* counts,
                                    int* problems, int rows, int num_groups, SCALAR least_side, int padded) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const Box box = boxes[row];
    const SCALAR score = scores[row];
    const long long group = groups ? groups[row] : 0;
    const bool wrong[3] = {score != score, is_wrong(box, least_side), group < 0 || group >= num_groups};
    bool absent = padded && score < (SCALAR)0 && !is_finite(score);  // -inf
    for (int kind = 0; kind < 3; ++kind) {
        if (wrong[kind] && !padded) atomicMax(&problems[kind], rows - row);
        absent = absent || wrong[kind];
    }
    keys[row] = absent ? 0 : order_key(score);
    if (groups) arrivals[row] = absent ? -1 : atomicAdd(&counts[group], 1);
}

extern "C" __global__ void nms_starts(const int* counts, int* starts, int num_groups) {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    int* sums = (int*)shared_bytes;
    const int thread = threadIdx.x, threads = blockDim.x;
    int before = 0;
    for (int first = 0; first < num_groups; first += threads) {
        const int group = first + thread, mine = group < num_groups ? counts[group] : 0;
        sums[thread] = mine;
        __syncthreads();
        for (int step = 1; step < threads; step *= 2) {
            const int other = thread >= step ? sums[thread - step] : 0;
            __syncthreads();
            sums[thread] += other;
            __syncthreads();
        }
        if (group < num_groups) starts[group] = before + sums[thread] - mine;
        before += sums[threads - 1];
        __syncthreads();
    }
}

extern "C" __global__ void nms_scatter(const word* keys, const long long* groups, const int* arrivals, const int* starts, word* segment_keys,
                                       int* segment_rows, int* groups_at, int rows) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows || arrivals[row] < 0) return;
    const int group = (int)groups[row], position = starts[group] + arrivals[row];
    segment_keys[position] = keys[row];
    segment_rows[position] = row;
    groups_at[position] = group;
}

// One warp per position. Without groups (starts is null) positions are rows, absent rows have key 0, and counts[0] is computed here.
extern "C" __global__ void nms_rank(const Box* boxes, const word* keys, const int* segment_rows, const int* groups_at, const int* starts,
                                    int* counts, word* sorted_keys, int* sorted_rows, Box* sorted_boxes, int rows, int num_groups,
                                    int max_candidates) {
    const int position = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (position >= rows) return;
    Segment segment = {0, 0, rows};
    if (starts) segment = segment_at(position, groups_at, starts, counts, num_groups, rows);
    if (segment.size == 0) return;
    const word key = keys[position];
    const int row = starts ? segment_rows[position] : position;
    int better = 0, present = 0;
    for (int other = segment.start + lane; other < segment.start + segment.size; other += 32) {
        const word other_key = keys[other];
        better += is_better(other_key, starts ? segment_rows[other] : other, key, row);
        present += other_key != 0;
    }
    for (int distance = 16; distance > 0; distance /= 2) {
        better += __shfl_xor_sync(0xffffffffu, better, distance);
        present += __shfl_xor_sync(0xffffffffu, present, distance);
    }
    if (lane > 0) return;
    if (!starts && position == 0) counts[0] = present;
    if (key == 0 || better >= max_candidates) return;
    sorted_keys[segment.start + better] = key;
    sorted_rows[segment.start + better] = row;
    sorted_boxes[segment.start + better] = boxes[row];
}

// One thread per position and word; blockIdx.y is the word. Bit b of mask[position][word]: this row and row 64 * word + b of the chunk
// overlap, for later rows b; in the row's own word for earlier rows b, as nms_scan needs it.
extern "C" __global__ void nms_mask(const Box* sorted_boxes, const int* groups_at, const int* starts, const int* counts, word* mask, int rows,
                                    int num_groups, int words, int chunk, int max_candidates, SCALAR threshold, SCALAR offset, int inclusive) {
    const int position = blockIdx.x * blockDim.x + threadIdx.x, column = blockIdx.y * 64;
    if (position >= rows) return;
    const Segment segment = segment_at(position, groups_at, starts, counts, num_groups, max_candidates);
    const int first = segment.start + chunk * CHUNK, row = position - first;
    const int size = min(segment.size - chunk * CHUNK, CHUNK);
    if (row < 0 || row >= size || column >= size || column + 63 < row) return;
    const Box box = sorted_boxes[position];
    const SCALAR area = area_of(box, offset);
    const int end = column <= row ? row : min(column + 64, size);
    word bits = 0;
    for (int other = column; other < end; ++other) {
        const Box rival = sorted_boxes[first + other];
        if (overlaps(box, area, rival, area_of(rival, offset), threshold, offset, inclusive)) bits |= 1ull << (other - column);
    }
    mask[(long long)position * words + blockIdx.y] = bits;
}

// One block per group. kept_counts (groups, 2): rows kept before and after this chunk. padded (groups, max_keep) or null.
extern "C" __global__ void nms_scan(const word* mask, const int* sorted_rows, const int* starts, const int* counts,
                                    const unsigned char* removed_rows, int* kept_positions, int* kept_counts, int* total, long long* padded,
                                    long long* padded_counts, int words, int chunk, int max_candidates, int max_keep) {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    unsigned int* removed = (unsigned int*)shared_bytes;  // (words, 2): shared memory has no 64-bit "or"
    word* settled = (word*)(removed + 2 * words);         // rows kept in the current word
    const int group = blockIdx.x, thread = threadIdx.x, lane = thread % 32;
    const int start = starts ? starts[group] : 0, first = start + chunk * CHUNK;
    const int size = min(min(counts[group], max_candidates) - chunk * CHUNK, CHUNK), used = (size + 63) / 64;
    const int before = chunk > 0 ? kept_counts[2 * group + 1] : 0;
    int kept_count = before;
    for (int index = thread; index < used; index += blockDim.x) {
        word bits = size - 64 * index >= 64 ? 0 : ~0ull << (size - 64 * index);  // rows beyond the end count as removed
        if (chunk > 0) {
            for (int bit = 0; bit < min(64, size - 64 * index); ++bit) bits |= (word)removed_rows[first + 64 * index + bit] << bit;
        }
        removed[2 * index] = (unsigned int)bits;
        removed[2 * index + 1] = (unsigned int)(bits >> 32);
    }
    for (int index = 0; index < used && kept_count < max_keep; ++index) {
        __syncthreads();
        const long long position = first + 64 * index;
        if (thread < 32) {
            const int low = 64 * index + lane, high = low + 32;
            const word removers_low = low < size ? mask[(position + lane) * words + index] : 0;
            const word removers_high = high < size ? mask[(position + lane + 32) * words + index] : 0;
            const word gone = (word)removed[2 * index + 1] << 32 | removed[2 * index];
            word kept = settle(~gone, removers_low, removers_high, lane);
            const int room = max_keep - kept_count;
            if (__popcll(kept) > room) kept = at_most(kept, room, lane);
            for (int half = 0; half < 64; half += 32) {
                const int row = lane + half, place = kept_count + ones_below(kept, row);
                if (!(kept >> row & 1)) continue;
                kept_positions[start + place] = (int)position + row;
                if (padded) padded[(long long)group * max_keep + place] = sorted_rows[position + row];
            }
            if (lane == 0) *settled = kept;
        }
        __syncthreads();
        const word kept = *settled;
        kept_count += __popcll(kept);
        const int later = used - index - 1;
        for (int item = thread; item < later * 16; item += blockDim.x) {  // 16 threads per word, 4 rows each, adjacent threads on adjacent words
            const int other = index + 1 + item % later, row = item / later * 4;
            word bits = 0;
            for (int each = row; each < row + 4; ++each) {
                if (kept >> each & 1) bits |= mask[(position + each) * words + other];
            }
            if ((unsigned int)bits) atomicOr(&removed[2 * other], (unsigned int)bits);
            if (bits >> 32) atomicOr(&removed[2 * other + 1], (unsigned int)(bits >> 32));
        }
    }
    if (thread == 0) {
        kept_counts[2 * group] = before;
        kept_counts[2 * group + 1] = kept_count;
        atomicAdd(total, kept_count - before);
        if (padded_counts) padded_counts[group] = kept_count;
    }
    if (padded) {
        for (int place = kept_count + thread; place < max_keep; place += blockDim.x) padded[(long long)group * max_keep + place] = -1;
    }
}

// One warp per position of a later chunk: is it removed by a row kept in this chunk?
extern "C" __global__ void nms_suppress(const Box* sorted_boxes, const int* groups_at, const int* starts, const int* counts,
                                        const int* kept_positions, const int* kept_counts, unsigned char* removed_rows, int rows,
                                        int num_groups, int chunk, int max_candidates, int max_keep, SCALAR threshold, SCALAR offset,
                                        int inclusive) {
    const int position = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (position >= rows) return;
    const Segment segment = segment_at(position, groups_at, starts, counts, num_groups, max_candidates);
    const int row = position - segment.start;
    if (row < (chunk + 1) * CHUNK || row >= segment.size) return;
    const int before = kept_counts[2 * segment.group], after = kept_counts[2 * segment.group + 1];
    if (after >= max_keep) return;
    const Box box = sorted_boxes[position];
    const SCALAR area = area_of(box, offset);
    for (int place = before; place < after; place += 32) {
        bool hit = false;
        if (place + lane < after) {
            const Box rival = sorted_boxes[kept_positions[segment.start + place + lane]];
            hit = overlaps(rival, area_of(rival, offset), box, area, threshold, offset, inclusive);
        }
        if (__any_sync(0xffffffffu, hit)) {
            if (lane == 0) removed_rows[position] = 1;
            return;
        }
    }
}

// One warp per kept row: its rank among the kept rows of all groups, by bisection of each group's list.
extern "C" __global__ void nms_merge(const word* sorted_keys, const int* sorted_rows, const int* groups_at, const int* starts,
                                     const int* counts, const int* kept_positions, const int* kept_counts, long long* merged, int rows,
                                     int num_groups) {
    const int position = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (position >= rows) return;
    const Segment segment = segment_at(position, groups_at, starts, counts, num_groups, rows);
    if (segment.size == 0 || position - segment.start >= kept_counts[2 * segment.group + 1]) return;
    const int mine = kept_positions[position], row = sorted_rows[mine];
    const word key = sorted_keys[mine];
    int better = 0;
    for (int group = lane; group < num_groups; group += 32) {
        int low = 0, high = kept_counts[2 * group + 1];  // first index in the group's list with no higher score
        while (low < high) {
            const int middle = (low + high) / 2, other = kept_positions[starts[group] + middle];
            if (is_better(sorted_keys[other], sorted_rows[other], key, row)) low = middle + 1;
            else high = middle;
        }
        better += low;
    }
    for (int distance = 16; distance > 0; distance /= 2) better += __shfl_xor_sync(0xffffffffu, better, distance);
    if (lane == 0) merged[better] = row;
}
