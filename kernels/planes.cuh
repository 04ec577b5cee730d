// A map (N, C, H, W) of any strides, for kernels with a thread an output; plane_launch.py fills it.
#include "numbers.cuh"

struct Map {
    void* cells;
    long long stride_n, stride_c, stride_h, stride_w;  // in elements
    int images, channels, height, width;
};
