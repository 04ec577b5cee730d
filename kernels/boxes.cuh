// Boxes and the order of scores, for nms.cu and soft_nms.cu. Compiled with -DSCALAR=float or double.
typedef unsigned long long word;

struct alignas(16) Box { SCALAR x1, y1, x2, y2; };

__device__ inline word order_key(float score) {
    const unsigned int bits = __float_as_uint(score + 0.0f);  // -0 equals 0
    return (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);
}

__device__ inline word order_key(double score) {
    const word bits = (word)__double_as_longlong(score + 0.0), sign = 0x8000000000000000ull;
    return (bits & sign) ? ~bits : (bits | sign);
}

// Keys increase with scores and are never 0; of equal scores the lower row has the larger key.
__device__ inline bool is_better(word key, int row, word other_key, int other_row) {
    return key > other_key || (key == other_key && row < other_row);
}

__device__ inline bool is_finite(SCALAR value) { return value - value == (SCALAR)0; }

__device__ inline bool is_wrong(const Box& box, SCALAR least_side) {
    const bool finite = is_finite(box.x1) && is_finite(box.y1) && is_finite(box.x2) && is_finite(box.y2);
    return !finite || box.x2 - box.x1 < least_side || box.y2 - box.y1 < least_side;
}

__device__ inline SCALAR area_of(const Box& box, SCALAR offset) { return (box.x2 - box.x1 + offset) * (box.y2 - box.y1 + offset); }
