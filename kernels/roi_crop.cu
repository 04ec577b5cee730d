// RoICrop; the interface is described in roi_crop.py. Compiled with SCALAR and SUM (see planes.cuh).
//
// roi_crop_forward           one thread per output: four cells around its grid point
// roi_crop_backward          one thread per output: adds its gradient to those cells with atomics
// roi_crop_backward_ordered  deterministic: one thread per channel of an image, which processes RoIs and points in order
#include "planes.cuh"

// Call visit(offset in the image's plane, weight) for the cells around a grid point (y before x, -1 .. 1) that are inside the map.
template <class Visit> __device__ inline void each_cell(const Map& map, const SUM* point, Visit visit) {
    if (!is_finite(point[0]) || !is_finite(point[1])) return;
    const SUM y = (point[0] + (SUM)1) * (SUM)(map.height - 1) / (SUM)2, x = (point[1] + (SUM)1) * (SUM)(map.width - 1) / (SUM)2;
    const SUM top = floor(y), left = floor(x);
    for (int corner = 0; corner < 4; ++corner) {
        const SUM row = top + (SUM)(corner / 2), column = left + (SUM)(corner % 2);
        if (!(row >= (SUM)0 && row <= (SUM)(map.height - 1) && column >= (SUM)0 && column <= (SUM)(map.width - 1))) continue;
        const SUM weight_y = corner / 2 ? y - top : (SUM)1 - (y - top), weight_x = corner % 2 ? x - left : (SUM)1 - (x - left);
        visit((int)row * map.stride_h + (int)column * map.stride_w, weight_y * weight_x);
    }
}

extern "C" __global__ void roi_crop_forward(const Map map, const SUM* grid, const long long* images, SCALAR* cropped, int bins,
                                            long long outputs) {
    const long long output = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= outputs) return;
    const long long row = output / bins / map.channels, image = images[row];
    SUM sum = (SUM)0;
    if (image >= 0 && image < map.images) {
        const SCALAR* plane = (const SCALAR*)map.cells + image * map.stride_n + output / bins % map.channels * map.stride_c;
        each_cell(map, grid + 2 * (row * bins + output % bins),
                  [&](long long offset, SUM weight) { sum = fma(weight, (SUM)widen(plane[offset]), sum); });
    }
    cropped[output] = narrow<SCALAR>(sum);
}

// Here map is the gradient, of type SUM and filled with zeros; grad is contiguous.
extern "C" __global__ void roi_crop_backward(const Map map, const SUM* grid, const long long* images, const SCALAR* grad, int bins,
                                             long long outputs) {
    const long long output = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= outputs) return;
    const long long row = output / bins / map.channels, image = images[row];
    if (image < 0 || image >= map.images) return;
    SUM* plane = (SUM*)map.cells + image * map.stride_n + output / bins % map.channels * map.stride_c;
    const SUM part = (SUM)widen(grad[output]);
    each_cell(map, grid + 2 * (row * bins + output % bins), [&](long long offset, SUM weight) { atomicAdd(plane + offset, weight * part); });
}

extern "C" __global__ void roi_crop_backward_ordered(const Map map, const SUM* grid, const long long* images, const SCALAR* grad, int bins,
                                                     long long outputs) {
    const int owned = blockIdx.x * blockDim.x + threadIdx.x, image = owned / map.channels, channel = owned % map.channels;
    if (image >= map.images) return;
    SUM* plane = (SUM*)map.cells + image * map.stride_n + channel * map.stride_c;
    for (long long row = 0; row < outputs / bins / map.channels; ++row) {
        if (images[row] != image) continue;
        for (int bin = 0; bin < bins; ++bin) {
            const SUM part = (SUM)widen(grad[(row * map.channels + channel) * bins + bin]);
            each_cell(map, grid + 2 * (row * bins + bin), [&](long long offset, SUM weight) { plane[offset] += weight * part; });
        }
    }
}
