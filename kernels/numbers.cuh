// The element type of maps (-DSCALAR=float, double, __half or __nv_bfloat16), and the type of coordinates and sums (-DSUM).
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T> __device__ inline T narrow(SUM value) { return (T)value; }
template <> __device__ inline __half narrow<__half>(SUM value) { return __float2half_rn((float)value); }
template <> __device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(SUM value) { return __float2bfloat16_rn((float)value); }

__device__ inline SUM not_a_number() { return (SUM)__uint_as_float(0x7fc00000u); }
__device__ inline bool is_finite(SUM value) { return value - value == (SUM)0; }

// A row of rois (image index, x1, y1, x2, y2): rows with a negative image are absent (zeros); others that cannot be pooled give NaN.
enum RoiState { POOLABLE, ABSENT, UNPOOLABLE };

__device__ inline RoiState state_of(const SUM* roi, int images) {
    if (roi[0] < (SUM)0) return ABSENT;
    for (int number = 0; number < 5; ++number) {
        if (!is_finite(roi[number])) return UNPOOLABLE;
    }
    return roi[0] < (SUM)images ? POOLABLE : UNPOOLABLE;
}
