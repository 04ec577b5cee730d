// Greedy non-maximum suppression of groups of one size, each sorted by descending score; the algorithm is described in nms.py, the interfaces in
// nms_sorted.py and, for rows with labels, nms_labelled.py. Compiled with -DSCALAR=float or double. Two launches, since there is nothing
// to sort, scatter or merge.
//
// nms_tiles  one block per 64 x 64 pairs of a group: which columns of a 64-column word a row removes (in its own word: which remove it)
// nms_walk   one block per group processes the words in order; removed rows are kept in registers
//
// mask (groups, 64 * words rows, words) has rows beyond the end, so that loads need no bounds check; words before a row's own are not
// written, and their bits are ignored. In a row's own word, bit b < row is set if row b removes it, its own bit
// if it is absent.
#include "nms.cuh"

#define WARPS 8         // per block of nms_walk; a warp stores what its 8 rows of every word remove
#define QUARTER 16      // columns tested by a thread of nms_tiles

// Block of 256, grid (groups, tiles): tiles of the upper triangle column by column, tile = column * (column + 1) / 2 + line.
// labels and present (groups, rows), or null for a single label and if all rows are present.
extern "C" __launch_bounds__(256) __global__ void nms_tiles(const Box* boxes, const long long* labels, const unsigned char* present,
                                                            word* mask, int rows, int words, SCALAR threshold, SCALAR offset,
                                                            SCALAR least_side, int inclusive) {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    Box* rivals = (Box*)shared_bytes;                       // (64,)
    long long* rival_labels = (long long*)(rivals + 64);    // (64,)
    SCALAR* areas = (SCALAR*)(rival_labels + 64);           // (64,)
    unsigned short* parts = (unsigned short*)(areas + 64);  // (64, 4)
    const long long group = blockIdx.x;
    const int tile = blockIdx.y, thread = threadIdx.x;
    int column = (int)((sqrt(8.0f * (float)tile + 1.0f) - 1.0f) * 0.5f);
    while ((column + 1) * (column + 2) / 2 <= tile) ++column;
    while (column * (column + 1) / 2 > tile) --column;
    const int line = tile - column * (column + 1) / 2, row = line * 64 + thread % 64, first = thread / 64 * QUARTER;
    boxes += group * rows;
    if (thread < 64) {
        const Box rival = boxes[min(column * 64 + thread, rows - 1)];
        rivals[thread] = rival;
        areas[thread] = area_of(rival, offset);
        if (labels) rival_labels[thread] = labels[group * rows + min(column * 64 + thread, rows - 1)];
    }
    const Box box = boxes[min(row, rows - 1)];
    const SCALAR area = area_of(box, offset);
    __syncthreads();
    unsigned int bits = 0, unsure = 0;
    #pragma unroll (sizeof(SCALAR) == 4 ? QUARTER : QUARTER / 4)
    for (int k = 0; k < QUARTER; ++k) {
        const Verdict verdict = verdict_of(meeting_of(box, area, rivals[first + k], areas[first + k], offset), threshold);
        bits |= (unsigned int)verdict.hit << k;
        unsure |= (unsigned int)!verdict.sure << k;
    }
    if (labels) {
        const long long label = labels[group * rows + min(row, rows - 1)];
        unsigned int same = 0;
        #pragma unroll
        for (int k = 0; k < QUARTER; ++k) same |= (unsigned int)(rival_labels[first + k] == label) << k;
        bits &= same;
        unsure &= same;
    }
    while (unsure) {  // near the threshold, or tiny: the exact quotient
        const int k = __ffsll(unsure) - 1;
        unsure &= unsure - 1;
        const bool hit = overlaps(box, area, rivals[first + k], areas[first + k], threshold, offset, inclusive);
        bits = (bits & ~(1u << k)) | (unsigned int)hit << k;
    }
    parts[thread % 64 * 4 + thread / 64] = (unsigned short)bits;
    __syncthreads();
    if (thread >= 64) return;
    word whole = 0;
    for (int k = 0; k < 4; ++k) whole |= (word)parts[thread * 4 + k] << (QUARTER * k);
    if (line == column) {
        const bool absent = row >= rows || (present && !present[group * rows + row]) || is_wrong(box, least_side);
        whole = (whole & ((1ull << thread) - 1)) | (word)absent << thread;
    }
    mask[(group * words * 64 + row) * words + column] = whole;
}

__device__ inline word or_of_warps(word value) {  // lane k has the word of warp k % WARPS
    for (int distance = WARPS / 2; distance > 0; distance /= 2) value |= __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

// Block of 32 * WARPS, grid (groups,), at most 64 words. Lane k stores words k and k + 32 of what its warp's rows remove. All warps
// decide each word redundantly, so that one barrier per word is enough; the next word's rows are loaded meanwhile.
// Either kept_rows (groups, rows) is filled, or indices (groups, max_keep) and counts (groups,); unused outputs are null.
extern "C" __launch_bounds__(256) __global__ void nms_walk(const word* mask, unsigned char* kept_rows, long long* indices,
                                                           long long* counts, int rows, int words, int max_keep) {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    word* slots = (word*)shared_bytes;  // (2, WARPS): what each warp's rows remove of the next word
    const long long group = blockIdx.x;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, per_warp = 64 / WARPS;
    mask += group * words * 64 * words;
    if (kept_rows) kept_rows += group * rows;
    if (indices) indices += group * max_keep;
    const int low_word = min(lane, words - 1), high_word = min(lane + 32, words - 1);
    const word* own_rows = mask + warp * per_warp * words;
    const word* diagonal = mask + lane * words;
    word low_removed = 0, high_removed = 0, low[64 / WARPS], high[64 / WARPS];
    word first = diagonal[0], second = diagonal[32 * words];  // of rows lane and lane + 32: their own word
    #pragma unroll
    for (int k = 0; k < per_warp; ++k) {
        low[k] = own_rows[k * words + low_word];
        high[k] = words > 32 ? own_rows[k * words + high_word] : 0;
    }
    int count = 0, index = 0;
    for (; index < words && count < max_keep; ++index) {
        if (lane == (index & 31)) slots[(index & 1) * WARPS + warp] = index < 32 ? low_removed : high_removed;
        __syncthreads();
        const word removed = or_of_warps(slots[(index & 1) * WARPS + lane % WARPS]), first_now = first, second_now = second;
        word low_now[64 / WARPS], high_now[64 / WARPS];
        #pragma unroll
        for (int k = 0; k < per_warp; ++k) {
            low_now[k] = low[k];
            high_now[k] = high[k];
        }
        if (index + 1 < words) {  // prefetch: not needed in this round
            own_rows += 64 * words;
            diagonal += 64 * words + 1;
            first = diagonal[0];
            second = diagonal[32 * words];
            #pragma unroll
            for (int k = 0; k < per_warp; ++k) {
                low[k] = own_rows[k * words + low_word];
                high[k] = words > 32 ? own_rows[k * words + high_word] : 0;
            }
        }
        const word own_low = 1ull << lane, own_high = 1ull << (lane + 32);
        const word absent = votes_of(first_now & own_low, second_now & own_high);
        word kept = settle(~(removed | absent), first_now & ~own_low, second_now & ~own_high, lane);
        if (__popcll(kept) > max_keep - count) kept = at_most(kept, max_keep - count, lane);
        if (thread < 64 && 64 * index + thread < rows) {
            const bool own_kept = kept >> thread & 1;
            if (kept_rows) kept_rows[64 * index + thread] = own_kept;
            else if (own_kept) indices[count + ones_below(kept, thread)] = 64 * index + thread;
        }
        count += __popcll(kept);
        const unsigned int own = (unsigned int)(kept >> (per_warp * warp)) & ((1u << per_warp) - 1);
        #pragma unroll
        for (int k = 0; k < per_warp; ++k) {
            low_removed |= own >> k & 1 ? low_now[k] : 0;
            high_removed |= own >> k & 1 ? high_now[k] : 0;
        }
    }
    if (kept_rows) {
        for (int row = 64 * index + thread; row < rows; row += blockDim.x) kept_rows[row] = 0;
        return;
    }
    for (int place = count + thread; place < max_keep; place += blockDim.x) indices[place] = -1;
    if (thread == 0) counts[group] = count;
}
