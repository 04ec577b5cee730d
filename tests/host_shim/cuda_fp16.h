// The part of CUDA's header of this name that the kernels use, on the compiler's own half type.
#pragma once

struct __half { _Float16 bits; };

inline float __half2float(__half value) { return (float)value.bits; }
inline __half __float2half_rn(float value) { return {(_Float16)value}; }
