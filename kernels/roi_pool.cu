// RoIPool; the interface is described in roi_pool.py. Compiled with SCALAR and SUM (see planes.cuh).
//
// roi_pool_forward           one thread per output: the maximum of its bin, and its position
// roi_pool_backward          one thread per output: adds its gradient to that cell with an atomic
// roi_pool_backward_ordered  deterministic: one thread per channel of an image, which processes RoIs and bins in order
#include "planes.cuh"

struct Edges { SUM left, top, right, bottom; };

__device__ inline SUM round_half_away(SUM value) {
    const SUM size = fabs(value), whole = floor(size), rounded = size - whole >= (SUM)0.5 ? whole + (SUM)1 : whole;
    return value < (SUM)0 ? -rounded : rounded;
}

__device__ inline Edges edges_of(const SUM* roi, SUM scale) {
    return {round_half_away(roi[1] * scale), round_half_away(roi[2] * scale), round_half_away(roi[3] * scale), round_half_away(roi[4] * scale)};
}

// First cell of a bin, or with end 1 the cell after its last, clamped to the map; in floating point, so that no edge overflows.
__device__ inline int bin_edge(SUM start, SUM end, int bin, int pooled, int side, int is_end) {
    const SUM step = max(end - start + (SUM)1, (SUM)1) / (SUM)pooled, at = (SUM)(bin + is_end) * step;
    return (int)min(max((is_end ? ceil(at) : floor(at)) + start, (SUM)0), (SUM)side);
}

extern "C" __global__ void roi_pool_forward(const Map map, const SUM* rois, SCALAR* pooled, int* argmax, SUM scale, int pooled_h,
                                            int pooled_w, long long outputs) {
    const long long output = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= outputs) return;
    const int pw = output % pooled_w, ph = output / pooled_w % pooled_h, channel = output / pooled_w / pooled_h % map.channels;
    const SUM* roi = rois + 5 * (output / pooled_w / pooled_h / map.channels);
    const RoiState state = state_of(roi, map.images);
    SUM best = state == UNPOOLABLE ? not_a_number() : (SUM)0;
    long long where = -1;
    if (state == POOLABLE) {
        const Edges edges = edges_of(roi, scale);
        const int top = bin_edge(edges.top, edges.bottom, ph, pooled_h, map.height, 0);
        const int bottom = bin_edge(edges.top, edges.bottom, ph, pooled_h, map.height, 1);
        const int left = bin_edge(edges.left, edges.right, pw, pooled_w, map.width, 0);
        const int right = bin_edge(edges.left, edges.right, pw, pooled_w, map.width, 1);
        const SCALAR* plane = (const SCALAR*)map.cells + (int)roi[0] * map.stride_n + channel * map.stride_c;
        for (int y = top; y < bottom; ++y) {
            for (int x = left; x < right; ++x) {
                const SUM value = (SUM)widen(plane[y * map.stride_h + x * map.stride_w]);
                if (where >= 0 && !(value > best) && !(value != value && best == best)) continue;  // the first NaN is the maximum
                best = value;
                where = (long long)y * map.width + x;
            }
        }
    }
    pooled[output] = narrow<SCALAR>(best);
    argmax[output] = (int)where;
}

// The cell that receives an output's gradient, or -1 for an empty bin or outside the rounded edges.
__device__ inline long long cell_of(const SUM* roi, long long where, SUM scale, int width) {
    const Edges edges = edges_of(roi, scale);
    const SUM y = (SUM)(where / width), x = (SUM)(where % width);
    return where >= 0 && x >= edges.left && y >= edges.top && x <= edges.right && y <= edges.bottom ? where : -1;
}

// Here map is the gradient, of type SUM and filled with zeros; grad and argmax are contiguous.
extern "C" __global__ void roi_pool_backward(const Map map, const SUM* rois, const SCALAR* grad, const int* argmax, SUM scale, int bins,
                                             long long outputs) {
    const long long output = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= outputs) return;
    const SUM* roi = rois + 5 * (output / bins / map.channels);
    const long long cell = cell_of(roi, argmax[output], scale, map.width);
    if (cell < 0) return;
    SUM* plane = (SUM*)map.cells + (int)roi[0] * map.stride_n + output / bins % map.channels * map.stride_c;
    atomicAdd(plane + cell / map.width * map.stride_h + cell % map.width * map.stride_w, (SUM)widen(grad[output]));
}

extern "C" __global__ void roi_pool_backward_ordered(const Map map, const SUM* rois, const SCALAR* grad, const int* argmax, SUM scale,
                                                     int bins, long long outputs) {
    const int owned = blockIdx.x * blockDim.x + threadIdx.x, image = owned / map.channels, channel = owned % map.channels;
    if (image >= map.images) return;
    SUM* plane = (SUM*)map.cells + image * map.stride_n + channel * map.stride_c;
    for (long long row = 0; row < outputs / bins / map.channels; ++row) {
        const SUM* roi = rois + 5 * row;
        if (state_of(roi, map.images) != POOLABLE || (int)roi[0] != image) continue;
        for (long long output = (row * map.channels + channel) * bins, end = output + bins; output < end; ++output) {
            const long long cell = cell_of(roi, argmax[output], scale, map.width);
            if (cell >= 0) plane[cell / map.width * map.stride_h + cell % map.width * map.stride_w] += (SUM)widen(grad[output]);
        }
    }
}
