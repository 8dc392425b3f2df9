// Between two scales: the codes' contribution to f_hat, and the next scale's input.
//
//   upsample_phi  f_hat += (1 − r)·up + r·(conv3x3(up) + bias),  up = bicubic(h): p × p → G × G, a = −0.75
//   pool_embed    x = word(area(f_hat): G × G → q × q) + bias + level, for both guidance halves
//
// Two launches: a pooled cell reads a window of f_hat that many blocks of the first write. All tensors are channels last:
// h [B, p², Z], f_hat [B, G², Z], x [2B, q², C]; φ weights [3, 3, Zin, Zout], word weights [Z, C]; float32 but for x.
#pragma once

#include "common.cuh"

namespace hart {

constexpr int scale_threads = 256;
constexpr int tile_width = 8, tile_height = 4, run = 4;  // cells of a block; neighbours in a row that a thread computes
constexpr int halo_width = tile_width + 2, halo_height = tile_height + 2;

// Cubic convolution (Keys 1981) at distance x ≤ 1, and at 1 ≤ x ≤ 2.
__device__ inline float near_weight(float x) { return (1.25f * x - 2.25f) * x * x + 1.0f; }
__device__ inline float far_weight(float x) { return ((-0.75f * x + 3.75f) * x - 6.0f) * x + 3.0f; }

// The four source cells of a target cell and their weights; the centre (i + ½)·source/target − ½ as an exact fraction.
__device__ inline int bicubic_taps(int i, int source, int target, float weight[4]) {
    const int numerator = (2 * i + 1) * source - target, denominator = 2 * target;
    const int base = (numerator + denominator) / denominator - 1;  // floor: numerator > −denominator
    const float fraction = static_cast<float>(numerator - base * denominator) / static_cast<float>(denominator);
    weight[0] = far_weight(fraction + 1.0f);
    weight[1] = near_weight(fraction);
    weight[2] = near_weight(1.0f - fraction);
    weight[3] = far_weight(2.0f - fraction);
    return base - 1;
}

// One channel of the upsampled h at (y, x); h points at that channel of the image's first cell.
__device__ inline float bicubic(const float* h, int y, int x, int source, int target, int channels) {
    float rows[4], columns[4], value = 0.0f;
    const int top = bicubic_taps(y, source, target, rows), left = bicubic_taps(x, source, target, columns);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int r = min(max(top + i, 0), source - 1);
        float line = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; ++j) line += columns[j] * h[(r * source + min(max(left + j, 0), source - 1)) * channels];
        value += rows[i] * line;
    }
    return value;
}

// Block (tile, 32 output channels, image): the tile's upsampled cells and their border are in shared memory,
// [halo_height, halo_width, Z]; a warp computes `run` neighbouring cells, a lane one channel of them.
__global__ void upsample_phi(const float* h, const float* weight, const float* bias, float* f_hat, int side, int grid, int channels,
                             float ratio) {
    extern __shared__ float tile[];
    const int across = (grid + tile_width - 1) / tile_width;
    const int top = blockIdx.x / across * tile_height, left = blockIdx.x % across * tile_width;
    const float* image = h + static_cast<long long>(blockIdx.z) * side * side * channels;
    for (int i = threadIdx.x; i < halo_height * halo_width * channels; i += scale_threads) {
        const int cell = i / channels, z = i % channels;
        const int y = top + cell / halo_width - 1, x = left + cell % halo_width - 1;
        const bool inside = y >= 0 && y < grid && x >= 0 && x < grid;  // outside: the convolution's zero padding
        tile[i] = inside ? bicubic(image + z, y, x, side, grid, channels) : 0.0f;
    }
    __syncthreads();
    const int warp = threadIdx.x / 32, z = blockIdx.y * 32 + threadIdx.x % 32;
    const int row = warp / (tile_width / run), column = warp % (tile_width / run) * run;
    if (z >= channels || top + row >= grid) return;
    float sum[run] = {};
    for (int from = 0; from < channels; ++from) {
#pragma unroll
        for (int dy = 0; dy < 3; ++dy) {
            float cells[run + 2];
#pragma unroll
            for (int i = 0; i < run + 2; ++i) cells[i] = tile[((row + dy) * halo_width + column + i) * channels + from];
#pragma unroll
            for (int dx = 0; dx < 3; ++dx) {
                const float w = weight[((dy * 3 + dx) * channels + from) * channels + z];
#pragma unroll
                for (int i = 0; i < run; ++i) sum[i] += w * cells[i + dx];
            }
        }
    }
    float* out = f_hat + (static_cast<long long>(blockIdx.z) * grid + top + row) * grid * channels;
#pragma unroll
    for (int i = 0; i < run; ++i) {
        const int x = left + column + i;
        const float up = tile[((row + 1) * halo_width + column + i + 1) * channels + z];
        if (x < grid) out[x * channels + z] += (1.0f - ratio) * up + ratio * (sum[i] + bias[z]);
    }
}

// Block (M tokens, 256 columns of C, image). M = 1: all 8 warps share a token's window, which is large at small scales;
// M = 8: one warp per token. Lanes are channels. Shared memory: 8·Z floats.
template <typename T, int M>
__global__ void pool_embed(const float* f_hat, const float* weight, const float* bias, const float* level, T* x, int side, int grid,
                           int channels, int width) {
    extern __shared__ float pooled[];  // [parts, M, Z]; the parts are added up in the first
    constexpr int parts = scale_threads / 32 / M;
    const int warp = threadIdx.x / 32, part = warp / M, tokens = side * side, first = blockIdx.x * M, token = first + warp % M;
    const float* image = f_hat + static_cast<long long>(blockIdx.z) * grid * grid * channels;
    if (token < tokens) {
        const int r = token / side, c = token % side;
        const int top = r * grid / side, bottom = ((r + 1) * grid + side - 1) / side;
        const int left = c * grid / side, wide = ((c + 1) * grid + side - 1) / side - left, cells = (bottom - top) * wide;
        for (int z = threadIdx.x % 32; z < channels; z += 32) {
            float sum = 0.0f;
#pragma unroll 8
            for (int i = part; i < cells; i += parts) sum += image[((top + i / wide) * grid + left + i % wide) * channels + z];
            pooled[warp * channels + z] = sum / static_cast<float>(cells);
        }
    }
    __syncthreads();
    if (parts > 1) {
        for (int i = threadIdx.x; i < M * channels; i += scale_threads) {
            for (int p = 1; p < parts; ++p) pooled[i] += pooled[p * M * channels + i];
        }
        __syncthreads();
    }
    const int column = blockIdx.y * scale_threads + threadIdx.x;
    if (column >= width) return;
    float value[M];
#pragma unroll
    for (int m = 0; m < M; ++m) value[m] = 0.0f;
    for (int z = 0; z < channels; ++z) {
        const float w = weight[z * width + column];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            if (first + m < tokens) value[m] += w * pooled[m * channels + z];
        }
    }
    const long long half = static_cast<long long>(gridDim.z) * tokens * width;
    const float offset = bias[column] + level[column];
#pragma unroll
    for (int m = 0; m < M; ++m) {
        if (first + m >= tokens) break;
        T* out = x + (static_cast<long long>(blockIdx.z) * tokens + first + m) * width + column;
        const T rounded_value = from_float<T>(value[m] + offset);
        out[0] = rounded_value;
        out[half] = rounded_value;
    }
}

}  // namespace hart
