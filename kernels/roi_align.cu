// RoIAlign from all levels of a pyramid in one launch; the interface is described in roi_align.py. Compiled with SCALAR, SUM (see numbers.cuh),
// POOLED_H, POOLED_W, PACK (channels a thread loads at once) and OFFSET (int, or long long if an image's map is larger).
//
// roi_align_forward_packed   channels-last maps: one warp per 32 * PACK channels of a RoI; a thread sums PACK of them bin by bin
// roi_align_forward          any strides: one thread per bin and channel, adjacent threads on adjacent bins
// roi_align_backward         a block sums each cell of a RoI over the bins that read it, then adds it to the map with one atomic
// roi_align_backward_tiles   deterministic: one block per 8 x 8 cells of 32 channels, which processes RoIs in order
//
// A block first writes, for each bin of each axis, the cells its points read and their weights, merging consecutive points on the same cell:
// 2 points per bin read at most 4 cells, 3 on average if a bin is about one cell long.
#include "numbers.cuh"

#define MAX_LEVELS 8
#define BINS (POOLED_H * POOLED_W)
#define MAX_POINTS 8            // per bin and axis in a table; more are processed one by one
#define ENTRIES (2 * MAX_POINTS)
#define SLICE 32                // channels per block in the kernels that do not load packs
#define TILE 8
#define GAP (PACK < 4 ? 1 : 4)  // between the channels of two bins in shared memory, to avoid bank conflicts
#define MAX_CELLS 80            // per RoI and axis gathered by the backward pass; if more, bins add to their cells one by one

enum Rule { LEGACY, ALIGNED, POINTS };

struct Map {
    void* cells;
    long long stride_n, stride_c, stride_h, stride_w;  // in elements
    double scale;
    int height, width;
};

struct Pyramid {
    Map maps[MAX_LEVELS];
    double canonical_scale, area_offset, eps, second_size;  // second_size: the smallest relative size of a RoI not on level 0
    int levels, images, channels, sampling_ratio, rule, padding;
};

struct Axis { SUM start, step; int points, side; };

struct Placed { RoiState state; int level, image; Axis y, x; };

struct Tap { int low, high; SUM weight_low, weight_high; };  // low is negative for a point outside the map

struct Table {  // rows 0 .. POOLED_H - 1 for y, then POOLED_W for x
    SUM weights[POOLED_H + POOLED_W][ENTRIES];
    OFFSET offsets[POOLED_H + POOLED_W][ENTRIES];
    int used[POOLED_H + POOLED_W];
    Placed roi;
};

#ifndef BAND
#define BAND POOLED_H  // rows of bins in a tile of the packed form
#endif

// Minimum blocks per multiprocessor: at most 64 registers per thread, 80 with offsets of 64 bits, 128 in double precision.
#define BLOCKS (sizeof(SUM) > 4 ? 2 : sizeof(OFFSET) > 4 ? 3 : 4)

// Maximum per block of the packed form. With float32 in bands this is the number used: at 64 registers sm_90 would spill.
#define PACKED_THREADS (sizeof(SCALAR) == 4 && BAND < POOLED_H && BAND < 8 ? 32 * BAND : 256)

struct alignas(PACK * sizeof(SCALAR)) Pack { SCALAR lanes[PACK]; };

__device__ inline Axis axis_of(SUM low, SUM high, SUM scale, int pooled, int side, const Pyramid& pyramid) {
    SUM start = low * scale, end = high * scale;
    if (pyramid.rule == POINTS) return {start, max(end - start + (SUM)1, (SUM)0) / (SUM)(pooled - 1), side > 0 ? 1 : 0, side};
    if (pyramid.rule == ALIGNED) {
        start -= (SUM)0.5;
        end -= (SUM)0.5;
    }
    const SUM length = pyramid.rule == LEGACY ? max(end - start, (SUM)1) : end - start, step = length / (SUM)pooled;
    const int points = pyramid.sampling_ratio > 0 ? pyramid.sampling_ratio : (int)min(max(ceil(step), (SUM)0), (SUM)(side + 2));
    return {start, step, side > 0 ? points : 0, side};
}

__device__ inline int level_of(const SUM* roi, const Pyramid& pyramid) {
    const SUM offset = (SUM)pyramid.area_offset, area = (roi[3] - roi[1] + offset) * (roi[4] - roi[2] + offset);
    const SUM size = sqrt(max(area, (SUM)0)) / (SUM)pyramid.canonical_scale + (SUM)pyramid.eps;
    int level = 0;
    for (SUM least = (SUM)pyramid.second_size; level < pyramid.levels - 1 && size >= least; least *= (SUM)2) ++level;
    return level;
}

__device__ inline Placed place(const Pyramid& pyramid, const SUM* rois, long long row) {
    const SUM* roi = rois + 5 * row;
    Placed placed;
    placed.state = state_of(roi, pyramid.images);
    placed.level = placed.image = 0;
    if (placed.state != POOLABLE) return placed;
    placed.level = level_of(roi, pyramid);
    placed.image = (int)roi[0];
    const Map& map = pyramid.maps[placed.level];
    placed.y = axis_of(roi[2], roi[4], (SUM)map.scale, POOLED_H, map.height, pyramid);
    placed.x = axis_of(roi[1], roi[3], (SUM)map.scale, POOLED_W, map.width, pyramid);
    return placed;
}

__device__ inline Tap tap_at(const Axis& axis, int bin, int point, int rule) {
    SUM position = axis.start + (SUM)bin * axis.step;
    if (rule == POINTS) {
        if (!(position >= (SUM)0 && position < (SUM)axis.side)) return {-1, -1, (SUM)0, (SUM)0};
    } else {
        position = position + ((SUM)point + (SUM)0.5) * axis.step / (SUM)axis.points;
        if (!(position >= (SUM)-1 && position <= (SUM)axis.side)) return {-1, -1, (SUM)0, (SUM)0};
        position = max(position, (SUM)0);
    }
    const int last = axis.side - 1;
    const int low = min((int)floor(position), rule == POINTS ? max(last - 1, 0) : last);
    const SUM fraction = rule != POINTS && low == last ? (SUM)0 : position - (SUM)low;  // beyond the last centre: the last cell
    return {low, min(low + 1, last), (SUM)1 - fraction, fraction};
}

__device__ inline void add_entry(Table& table, int row, OFFSET offset, SUM weight) {
    const int used = table.used[row];
    for (int entry = used - 1; entry >= 0 && entry >= used - 2; --entry) {  // points are ordered along the axis, so equal cells are close
        if (table.offsets[row][entry] == offset) {
            table.weights[row][entry] += weight;
            return;
        }
    }
    table.offsets[row][used] = offset;
    table.weights[row][used] = weight;
    table.used[row] = used + 1;
}

// One thread computes the block's RoI in shared memory, so that rarely used values take no registers.
__device__ inline const Placed& place_for_block(Table& table, const Pyramid& pyramid, const SUM* rois, long long row, int thread) {
    if (thread == 0) table.roi = place(pyramid, rois, row);
    __syncthreads();
    return table.roi;
}

__device__ inline bool fits_table(const Placed& roi) { return roi.y.points <= MAX_POINTS && roi.x.points <= MAX_POINTS; }

// All threads of the block fill the table, then synchronize.
__device__ inline void fill_table(Table& table, const Placed& roi, const Map& map, int rule, int thread, int threads) {
    for (int row = thread; row < POOLED_H + POOLED_W; row += threads) {
        const bool vertical = row < POOLED_H;
        const Axis& axis = vertical ? roi.y : roi.x;
        const OFFSET stride = (OFFSET)(vertical ? map.stride_h : map.stride_w);
        table.used[row] = 0;
        for (int point = 0; point < axis.points; ++point) {
            const Tap tap = tap_at(axis, vertical ? row : row - POOLED_H, point, rule);
            if (tap.low < 0) continue;
            add_entry(table, row, tap.low * stride, tap.weight_low);
            add_entry(table, row, tap.high * stride, tap.weight_high);
        }
    }
    __syncthreads();
}

// Call visit(offset in the image's map, weight) for every cell a bin reads.
template <class Visit>
__device__ inline void each_cell(const Table& table, const Placed& roi, const Map& map, int rule, bool tabled, int ph, int pw, Visit visit) {
    if (tabled) {
        const int column = POOLED_H + pw, columns = table.used[column];
        for (int row = 0; row < table.used[ph]; ++row) {
            const OFFSET offset = table.offsets[ph][row];
            const SUM weight = table.weights[ph][row];
            for (int entry = 0; entry < columns; ++entry) visit(offset + table.offsets[column][entry], weight * table.weights[column][entry]);
        }
        return;
    }
    const OFFSET line = (OFFSET)map.stride_h, cell = (OFFSET)map.stride_w;
    for (int point_y = 0; point_y < roi.y.points; ++point_y) {
        const Tap y = tap_at(roi.y, ph, point_y, rule);
        for (int point_x = 0; y.low >= 0 && point_x < roi.x.points; ++point_x) {
            const Tap x = tap_at(roi.x, pw, point_x, rule);
            if (x.low < 0) continue;
            visit(y.low * line + x.low * cell, y.weight_low * x.weight_low);
            visit(y.low * line + x.high * cell, y.weight_low * x.weight_high);
            visit(y.high * line + x.low * cell, y.weight_high * x.weight_low);
            visit(y.high * line + x.high * cell, y.weight_high * x.weight_high);
        }
    }
}

__device__ inline SUM points_of(const Placed& roi) { return max((SUM)roi.y.points * (SUM)roi.x.points, (SUM)1); }

// Block (32, warps); a warp processes every warps-th row of bins. NCHW output goes through a tile in shared memory, so that it is written in
// whole lines; channels-last output does not. The tile has BAND rows of bins at a time (a part of POOLED_H, or all), so that packs may be wide. A row
// of the tile is a bin; channel PACK * lane + k is at 32 * k + lane, and rows are one bank apart, so that neither filling nor reading
// the tile has bank conflicts.
extern "C" __launch_bounds__(PACKED_THREADS, BLOCKS) __global__ void roi_align_forward_packed(const Pyramid pyramid, const SUM* rois, SCALAR* pooled, int channels_last) {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    Table& table = *(Table*)shared_bytes;
    SCALAR* tile = (SCALAR*)(shared_bytes + (sizeof(Table) + 15) / 16 * 16);
    const int tile_row = 32 * PACK + (sizeof(SCALAR) < 4 ? 4 / sizeof(SCALAR) : 1);
    const long long row = blockIdx.x;
    const int lane = threadIdx.x, thread = threadIdx.y * 32 + lane, threads = blockDim.y * 32;
    const int first = blockIdx.y * 32 * PACK, channel = first + lane * PACK, channels = min(pyramid.channels - first, 32 * PACK);
    const Placed& roi = place_for_block(table, pyramid, rois, row, thread);
    const Map& map = pyramid.maps[roi.level];
    const bool tabled = roi.state == POOLABLE && fits_table(roi);
    const SUM blank = roi.state == UNPOOLABLE ? not_a_number() : (SUM)0, points = roi.state == POOLABLE ? points_of(roi) : (SUM)1;
    if (tabled) fill_table(table, roi, map, pyramid.rule, thread, threads);
    const SCALAR* cells = (const SCALAR*)map.cells + roi.image * map.stride_n + channel;
    SCALAR* out = pooled + row * pyramid.channels * BINS;
    for (int begin = 0; begin < POOLED_H; begin += BAND) {
        for (int ph = begin + threadIdx.y; ph < begin + BAND; ph += blockDim.y) {
            for (int pw = 0; pw < POOLED_W; ++pw) {
                SUM sums[PACK];
                for (int k = 0; k < PACK; ++k) sums[k] = blank;
                if (roi.state == POOLABLE && channel < pyramid.channels) {
                    each_cell(table, roi, map, pyramid.rule, tabled, ph, pw, [&](OFFSET offset, SUM weight) {
                        const Pack pack = *(const Pack*)(cells + offset);
                        for (int k = 0; k < PACK; ++k) sums[k] = fma(weight, (SUM)widen(pack.lanes[k]), sums[k]);
                    });
                }
                Pack pack;
                for (int k = 0; k < PACK; ++k) pack.lanes[k] = narrow<SCALAR>(sums[k] / points);
                if (channels_last) {
                    const long long bin = ph * POOLED_W + pw;
                    if (channel < pyramid.channels) *(Pack*)(out + bin * pyramid.channels + channel) = pack;
                } else {
                    const int bin = (ph - begin) * POOLED_W + pw;
                    for (int k = 0; k < PACK; ++k) tile[bin * tile_row + 32 * k + lane] = pack.lanes[k];
                }
            }
        }
        if (channels_last) continue;
        __syncthreads();
        for (int item = thread; item < channels * BAND * POOLED_W; item += threads) {
            const int from = item / (BAND * POOLED_W), bin = item % (BAND * POOLED_W);
            const long long at = (long long)first * BINS + (BAND < POOLED_H ? from * BINS + begin * POOLED_W + bin : item);
            out[at] = tile[bin * tile_row + from % PACK * 32 + from / PACK];
        }
        if (BAND < POOLED_H) __syncthreads();  // before the tile is filled again
    }
}

extern "C" __launch_bounds__(256, BLOCKS) __global__ void roi_align_forward(const Pyramid pyramid, const SUM* rois, SCALAR* pooled, int channels_last) {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    Table& table = *(Table*)shared_bytes;
    const long long row = blockIdx.x;
    const int first = blockIdx.y * SLICE, channels = min(pyramid.channels - first, SLICE);
    const Placed& roi = place_for_block(table, pyramid, rois, row, threadIdx.x);
    const Map& map = pyramid.maps[roi.level];
    const bool tabled = roi.state == POOLABLE && fits_table(roi);
    const SUM points = roi.state == POOLABLE ? points_of(roi) : (SUM)1;
    if (tabled) fill_table(table, roi, map, pyramid.rule, threadIdx.x, blockDim.x);
    const SCALAR* cells = (const SCALAR*)map.cells + roi.image * map.stride_n;
    SCALAR* out = pooled + row * pyramid.channels * BINS;
    for (int item = threadIdx.x; item < channels * BINS; item += blockDim.x) {
        const int channel = first + item / BINS, bin = item % BINS;
        const SCALAR* plane = cells + channel * map.stride_c;
        SUM sum = roi.state == UNPOOLABLE ? not_a_number() : (SUM)0;
        if (roi.state == POOLABLE) {
            each_cell(table, roi, map, pyramid.rule, tabled, bin / POOLED_W, bin % POOLED_W,
                      [&](OFFSET offset, SUM weight) { sum = fma(weight, (SUM)widen(plane[offset]), sum); });
        }
        out[channels_last ? (long long)bin * pyramid.channels + channel : (long long)channel * BINS + bin] = narrow<SCALAR>(sum / points);
    }
}

struct Upstream { const void* cells; long long stride_r, stride_c, stride_h, stride_w; };  // gradient of the pooled maps

__device__ inline SUM upstream_at(const Upstream& grad, long long row, int channel, int ph, int pw) {
    return (SUM)widen(((const SCALAR*)grad.cells)[row * grad.stride_r + channel * grad.stride_c + ph * grad.stride_h + pw * grad.stride_w]);
}

// The cells of an axis that a RoI may read; one too many at either end is allowed.
struct Span { int first, count; };

__device__ inline Span span_of(const Axis& axis, int pooled) {
    if (axis.points == 0) return {0, 0};
    const SUM end = axis.start + (SUM)pooled * axis.step, last = (SUM)(axis.side - 1);
    const int low = (int)min(max(min(axis.start, end) - (SUM)1, (SUM)0), last), high = (int)min(max(max(axis.start, end) + (SUM)2, (SUM)0), last);
    return {low, high - low + 1};
}

__device__ inline bool may_touch(const Axis& axis, int pooled, int first, int last) {
    const Span span = span_of(axis, pooled);
    return span.count > 0 && span.first <= last && span.first + span.count > first;
}

// The weight of one cell of an axis in a bin.
__device__ inline SUM weight_of(const Axis& axis, int bin, int cell, int rule) {
    SUM weight = (SUM)0;
    for (int point = 0; point < axis.points; ++point) {
        const Tap tap = tap_at(axis, bin, point, rule);
        if (tap.low == cell) weight += tap.weight_low;
        if (tap.high == cell) weight += tap.weight_high;
    }
    return weight;
}

// A thread adds PACK channels of a cell. GPUs with vector atomics of four numbers need them contiguous; on others adjacent threads
// add to adjacent channels.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && PACK % 4 == 0
#define ADDS_VECTORS 1
#else
#define ADDS_VECTORS 0
#endif

__device__ inline void add_pack(SUM* place, long long step, const SUM* sums) {
#if ADDS_VECTORS
    if (sizeof(SUM) == 4) {
        for (int k = 0; k < PACK; k += 4) {
            atomicAdd((float4*)(place + k), make_float4((float)sums[k], (float)sums[k + 1], (float)sums[k + 2], (float)sums[k + 3]));
        }
        return;
    }
#endif
    for (int k = 0; k < PACK; ++k) atomicAdd(place + k * step, sums[k]);
}

// Here pyramid.maps are the gradients, of type SUM and filled with zeros. Grid (RoIs, slices of `slice` channels); slice is a multiple
// of PACK, 0 if shared memory has no room for the bins.
extern "C" __launch_bounds__(256, BLOCKS) __global__ void roi_align_backward(const Pyramid pyramid, const SUM* rois, const Upstream grad, int channels_fastest,
                                                                             int slice) {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    Table& table = *(Table*)shared_bytes;
    const long long row = blockIdx.x;
    const int thread = threadIdx.x, threads = blockDim.x, width = slice > 0 ? slice : SLICE;
    const int first = blockIdx.y * width, channels = min(pyramid.channels - first, width);
    const Placed& roi = place_for_block(table, pyramid, rois, row, thread);
    if (roi.state != POOLABLE) return;
    const Map& map = pyramid.maps[roi.level];
    const SUM points = points_of(roi);
    const Span tall = span_of(roi.y, POOLED_H), wide = span_of(roi.x, POOLED_W);
    if (tall.count == 0 || wide.count == 0) return;
    SUM* cells = (SUM*)map.cells + roi.image * map.stride_n + first * map.stride_c;
    if (slice == 0 || tall.count > MAX_CELLS || wide.count > MAX_CELLS) {
        const bool tabled = fits_table(roi);
        if (tabled) fill_table(table, roi, map, pyramid.rule, thread, threads);
        for (int item = thread; item < channels * BINS; item += threads) {
            const int channel = channels_fastest ? item % channels : item / BINS, bin = channels_fastest ? item / channels : item % BINS;
            const int ph = bin / POOLED_W, pw = bin % POOLED_W;
            SUM* plane = cells + channel * map.stride_c;
            const SUM part = upstream_at(grad, row, first + channel, ph, pw) / points;
            each_cell(table, roi, map, pyramid.rule, tabled, ph, pw, [&](OFFSET offset, SUM weight) { atomicAdd(plane + offset, weight * part); });
        }
        return;
    }
    const int line = slice + GAP;
    SUM* bins = (SUM*)(shared_bytes + (sizeof(Table) + 15) / 16 * 16);  // (BINS, line)
    SUM* rows = bins + BINS * line;                                      // (tall.count, POOLED_H)
    SUM* columns = rows + MAX_CELLS * POOLED_H;                          // (wide.count, POOLED_W)
    unsigned char* ends = (unsigned char*)(columns + MAX_CELLS * POOLED_W);  // (2 * MAX_CELLS, 2)
    for (int item = thread; item < channels * BINS; item += threads) {
        const bool together = grad.stride_c == 1;
        const int channel = together ? item % channels : item / BINS, bin = together ? item / channels : item % BINS;
        bins[bin * line + channel] = upstream_at(grad, row, first + channel, bin / POOLED_W, bin % POOLED_W) / points;
    }
    for (int cell = thread; cell < tall.count + wide.count; cell += threads) {
        const bool vertical = cell < tall.count;
        const int at = vertical ? cell : cell - tall.count, pooled = vertical ? POOLED_H : POOLED_W;
        SUM* weights = vertical ? rows + at * POOLED_H : columns + at * POOLED_W;
        int low = pooled, high = 0;  // first and last bin that read the cell
        for (int bin = 0; bin < pooled; ++bin) {
            weights[bin] = weight_of(vertical ? roi.y : roi.x, bin, (vertical ? tall.first : wide.first) + at, pyramid.rule);
            if (weights[bin] == (SUM)0) continue;
            low = min(low, bin);
            high = bin + 1;
        }
        unsigned char* own = ends + 2 * (vertical ? at : MAX_CELLS + at);
        own[0] = (unsigned char)low;
        own[1] = (unsigned char)high;
    }
    __syncthreads();
    const int packs = channels / PACK, step = ADDS_VECTORS ? 1 : packs;
    const OFFSET stride_h = (OFFSET)map.stride_h, stride_w = (OFFSET)map.stride_w;
    for (int item = thread; item < tall.count * wide.count * packs; item += threads) {
        const int pack = channels_fastest ? item % packs : item / (tall.count * wide.count);
        const int cell = channels_fastest ? item / packs : item % (tall.count * wide.count), y = cell / wide.count, x = cell % wide.count;
        const int top = ends[2 * y], bottom = ends[2 * y + 1], left = ends[2 * (MAX_CELLS + x)], right = ends[2 * (MAX_CELLS + x) + 1];
        if (top >= bottom || left >= right) continue;
        const int channel = ADDS_VECTORS ? pack * PACK : pack;
        SUM sums[PACK];
        for (int k = 0; k < PACK; ++k) sums[k] = (SUM)0;
        for (int ph = top; ph < bottom; ++ph) {
            for (int pw = left; pw < right; ++pw) {
                const SUM weight = rows[y * POOLED_H + ph] * columns[x * POOLED_W + pw];
                const SUM* from = bins + (ph * POOLED_W + pw) * line + channel;
                for (int k = 0; k < PACK; ++k) sums[k] = fma(weight, from[k * step], sums[k]);
            }
        }
        add_pack(cells + channel * map.stride_c + ((tall.first + y) * stride_h + (wide.first + x) * stride_w), step * map.stride_c, sums);
    }
}

// The cells and channels of a tile summed by one thread of the deterministic form: all rows of a column for one channel if channels
// are contiguous, otherwise every 4th channel of one cell. The launch has 256 threads.
#define SHARES (TILE * TILE * SLICE / 256)

struct Share { int row, row_step, column, channel, channel_step; };

__device__ inline Share share_of(int thread, bool channels_fastest) {
    if (channels_fastest) return {0, 1, thread / SLICE, thread % SLICE, 0};
    return {thread / TILE % TILE, 0, thread % TILE, thread / (TILE * TILE), 256 / (TILE * TILE)};
}

// Here pyramid.maps are the gradients, of type SCALAR; every element is written once, so they need not be zeroed. blockIdx.x counts the tiles of
// all levels and images, blockIdx.y slices of 32 channels. RoIs and bins are processed in order, so the sums are deterministic.
extern "C" __launch_bounds__(256, 2) __global__ void roi_align_backward_tiles(const Pyramid pyramid, const SUM* rois, const Upstream grad, int num_rois,
                                                    int channels_fastest) {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    SUM* rows = (SUM*)shared_bytes;              // (TILE, POOLED_H) weights of the tile's rows
    SUM* columns = rows + TILE * POOLED_H;       // (TILE, POOLED_W)
    Placed& roi = *(Placed*)(columns + TILE * POOLED_W);
    int* touching = (int*)(&roi + 1);            // (blockDim.x,) which RoIs of the current batch overlap the tile
    const int thread = threadIdx.x, threads = blockDim.x, first = blockIdx.y * SLICE, channels = min(pyramid.channels - first, SLICE);
    int level = 0, tile = blockIdx.x;
    while (true) {
        const Map& map = pyramid.maps[level];
        const int tiles = pyramid.images * ((map.height + TILE - 1) / TILE) * ((map.width + TILE - 1) / TILE);
        if (tile < tiles) break;
        tile -= tiles;
        ++level;
    }
    const Map& map = pyramid.maps[level];
    const int across = (map.width + TILE - 1) / TILE, down = (map.height + TILE - 1) / TILE;
    const int left = tile % across * TILE, top = tile / across % down * TILE, image = tile / across / down;
    const Share own = share_of(thread, channels_fastest);
    SUM sums[SHARES];
    for (int k = 0; k < SHARES; ++k) sums[k] = (SUM)0;
    for (int start = 0; start < num_rois; start += threads) {
        bool hit = false;
        if (start + thread < num_rois) {
            const Placed other = place(pyramid, rois, start + thread);
            hit = other.state == POOLABLE && other.level == level && other.image == image && may_touch(other.y, POOLED_H, top, top + TILE - 1) &&
                  may_touch(other.x, POOLED_W, left, left + TILE - 1);
        }
        touching[thread] = hit;
        __syncthreads();
        for (int each = 0; each < threads; ++each) {
            if (!touching[each]) continue;  // the same for all threads
            if (thread == 0) roi = place(pyramid, rois, start + each);
            __syncthreads();
            for (int item = thread; item < TILE * (POOLED_H + POOLED_W); item += threads) {
                const bool vertical = item < TILE * POOLED_H;
                const int place_in = vertical ? item : item - TILE * POOLED_H, pooled = vertical ? POOLED_H : POOLED_W;
                rows[item] = weight_of(vertical ? roi.y : roi.x, place_in % pooled, (vertical ? top : left) + place_in / pooled, pyramid.rule);
            }
            const SUM points = points_of(roi);  // read before the barrier, since thread 0 computes the next RoI without waiting
            __syncthreads();
            const SCALAR* from = (const SCALAR*)grad.cells + (start + each) * grad.stride_r + (first + own.channel) * grad.stride_c;
            for (int k = 0; k < SHARES; ++k) {
                const long long ahead = k * own.channel_step * grad.stride_c;
                for (int ph = 0; own.channel + k * own.channel_step < channels && ph < POOLED_H; ++ph) {
                    const SUM weight = rows[(own.row + k * own.row_step) * POOLED_H + ph];
                    for (int pw = 0; weight != (SUM)0 && pw < POOLED_W; ++pw) {
                        const SUM other = columns[own.column * POOLED_W + pw];
                        if (other != (SUM)0) {
                            const SUM part = (SUM)widen(from[ahead + ph * grad.stride_h + pw * grad.stride_w]) / points;
                            sums[k] = fma(weight * other, part, sums[k]);
                        }
                    }
                }
            }
        }
        __syncthreads();
    }
    for (int k = 0; k < SHARES; ++k) {
        const int channel = own.channel + k * own.channel_step, y = top + own.row + k * own.row_step, x = left + own.column;
        if (channel >= channels || y >= map.height || x >= map.width) continue;
        SCALAR* to = (SCALAR*)map.cells + image * map.stride_n + (first + channel) * map.stride_c + y * map.stride_h + x * map.stride_w;
        *to = narrow<SCALAR>(sums[k]);
    }
}
