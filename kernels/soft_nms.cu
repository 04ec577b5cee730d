// Soft-NMS, described in soft_nms.py. Compiled with -DSCALAR=float or double. One block: in each round all threads reduce the scores of
// their own rows and find their maximum; the row with the block's maximum is selected.

#include "boxes.cuh"

enum Method { LINEAR, GAUSSIAN, HARD };

struct Best { word key; int row; };  // key 0: none left

__device__ inline Best better_of(Best a, Best b) { return is_better(b.key, b.row, a.key, a.row) ? b : a; }

// The block's maximum, returned to all its threads. found (warps,) is in shared memory.
__device__ inline Best best_of_block(Best mine, Best* found) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int distance = 16; distance > 0; distance /= 2) {
        const Best other = {__shfl_xor_sync(0xffffffffu, mine.key, distance), __shfl_xor_sync(0xffffffffu, mine.row, distance)};
        mine = better_of(mine, other);
    }
    if (lane == 0) found[warp] = mine;
    __syncthreads();
    Best best = found[0];
    for (int other = 1; other < warps; ++other) best = better_of(best, found[other]);
    __syncthreads();  // before found is overwritten
    return best;
}

// remaining (R,): the scores, reduced here. left (R,): 1 until the row is selected. count (2,): rows selected, and the distance from the end
// of the first row with a NaN score or an invalid box (0 for none).
extern "C" __global__ void soft_nms(const Box* boxes, SCALAR* remaining, unsigned char* left, long long* picked, SCALAR* picked_scores,
                                    int* count, int rows, int method, SCALAR sigma, SCALAR threshold, SCALAR score_threshold, SCALAR offset,
                                    SCALAR least_side) {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    Best* found = (Best*)shared_bytes;
    Best mine = {0, rows};
    for (int row = threadIdx.x; row < rows; row += blockDim.x) {
        const SCALAR score = remaining[row];
        if (score != score || is_wrong(boxes[row], least_side)) atomicMax(&count[1], rows - row);
        left[row] = 1;
        mine = better_of(mine, {order_key(score), row});
    }
    int taken = 0;
    for (Best best = best_of_block(mine, found); best.key != 0; best = best_of_block(mine, found)) {
        const Box top = boxes[best.row];
        const SCALAR top_area = area_of(top, offset);
        mine = {0, rows};
        for (int row = threadIdx.x; row < rows; row += blockDim.x) {  // only this thread uses these rows: no barrier is needed
            if (!left[row]) continue;
            if (row == best.row) {
                picked[taken] = row;
                picked_scores[taken] = remaining[row];
                left[row] = 0;
                continue;
            }
            const Box box = boxes[row];
            const SCALAR width = min(top.x2, box.x2) - max(top.x1, box.x1) + offset, height = min(top.y2, box.y2) - max(top.y1, box.y1) + offset;
            if (width > (SCALAR)0 && height > (SCALAR)0) {
                const SCALAR inter = width * height, overlap = inter / (top_area + area_of(box, offset) - inter);
                SCALAR weight = (SCALAR)1;
                if (method == GAUSSIAN) weight = exp(-(overlap * overlap) / sigma);
                else if (overlap > threshold) weight = method == LINEAR ? (SCALAR)1 - overlap : (SCALAR)0;
                remaining[row] *= weight;
                if (remaining[row] < score_threshold) {
                    left[row] = 0;
                    continue;
                }
            }
            mine = better_of(mine, {order_key(remaining[row]), row});
        }
        ++taken;
    }
    if (threadIdx.x == 0) count[0] = taken;
}
