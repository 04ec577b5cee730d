// A map (N, C, H, W) of any strides, for kernels with one thread per output; filled by plane_launch.py.
#include "numbers.cuh"

struct Map {
    void* cells;
    long long stride_n, stride_c, stride_h, stride_w;  // in elements
    int images, channels, height, width;
};
