// Group normalisation (32 groups) and SiLU, channels last: x, y [B, P, C].
//
//   y = silu((x − mean_g) / sqrt(var_g + eps) · weight_c + bias_c)
//
// Three launches, two passes over x. Sums are taken in an order that depends on the shapes alone: no atomics.
//   statistics  block (chunk, image): sums of (x − K) and (x − K)² per group, K = the group's first element, which
//               keeps a large mean from cancelling the variance                      → partial [B, chunks, 2, 32]
//   fold        block image, a lane per group: adds the chunks in float64            → affine [B, 2, C]: gain, offset
//   apply       y = silu(x · gain + offset)
// Thread (v, r) of the first and the last takes channels v·N … v·N + N − 1 of pixels blockDim.y apart. The blocks of
// `statistics` walk through the image side by side and `apply` starts at its end: what was read last is still in the L2 cache.
#pragma once

#include "common.cuh"

namespace hart {

constexpr int groups = 32;

template <typename T, int N>
__global__ void group_norm_statistics(const T* x, float* partial, int pixels, int channels) {
    extern __shared__ float sums[];  // [2, blockDim.y, channels]
    const int channel = threadIdx.x * N, per_group = channels / groups;
    const long long image = static_cast<long long>(blockIdx.y) * pixels * channels;
    float shift[N], sum[N] = {}, square[N] = {};
#pragma unroll
    for (int j = 0; j < N; ++j) shift[j] = to_float(x[image + (channel + j) / per_group * per_group]);
    const long long step = static_cast<long long>(gridDim.x) * blockDim.y;
#pragma unroll 4
    for (long long pixel = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y; pixel < pixels; pixel += step) {
        const Pack<T, N> a = load<N>(x + image + pixel * channels + channel);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float d = to_float(a.v[j]) - shift[j];
            sum[j] += d;
            square[j] += d * d;
        }
    }
    float* squares = sums + blockDim.y * channels;
#pragma unroll
    for (int j = 0; j < N; ++j) {
        sums[threadIdx.y * channels + channel + j] = sum[j];
        squares[threadIdx.y * channels + channel + j] = square[j];
    }
    __syncthreads();
    const int threads = blockDim.x * blockDim.y;
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < 2 * groups; i += threads) {
        const float* source = (i < groups ? sums : squares) + i % groups * per_group;
        float total = 0.0f;
        for (int r = 0; r < static_cast<int>(blockDim.y); ++r) {
            for (int j = 0; j < per_group; ++j) total += source[r * channels + j];
        }
        partial[(static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x) * 2 * groups + i] = total;
    }
}

template <typename T>
__global__ void group_norm_fold(const T* x, const float* partial, const T* weight, const T* bias, float* affine, int pixels, int channels,
                                int chunks, float eps) {
    __shared__ double parts[2][32][groups];  // sums and squares of every warp's chunks
    __shared__ float centres[groups], factors[groups];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, per_group = channels / groups;
    const float* source = partial + static_cast<long long>(blockIdx.x) * chunks * 2 * groups + lane;
    double sum = 0.0, square = 0.0;
#pragma unroll 4
    for (int i = warp; i < chunks; i += 32) {
        sum += source[i * 2 * groups];
        square += source[i * 2 * groups + groups];
    }
    parts[0][warp][lane] = sum;
    parts[1][warp][lane] = square;
    __syncthreads();
    if (warp == 0) {
        sum = square = 0.0;
        for (int i = 0; i < 32; ++i) {
            sum += parts[0][i][lane];
            square += parts[1][i][lane];
        }
        const double count = static_cast<double>(pixels) * per_group, mean = sum / count, variance = square / count - mean * mean;
        const float shift = to_float(x[static_cast<long long>(blockIdx.x) * pixels * channels + lane * per_group]);
        centres[lane] = static_cast<float>(mean) + shift;
        factors[lane] = 1.0f / sqrtf(fmaxf(static_cast<float>(variance), 0.0f) + eps);
    }
    __syncthreads();
    float* gain = affine + static_cast<long long>(blockIdx.x) * 2 * channels;
    for (int channel = threadIdx.x; channel < channels; channel += blockDim.x) {
        const int group = channel / per_group;
        const float g = factors[group] * to_float(weight[channel]);
        gain[channel] = g;
        gain[channels + channel] = to_float(bias[channel]) - centres[group] * g;
    }
}

template <typename T, int N, bool with_silu>
__global__ void group_norm_apply(const T* x, const float* affine, T* y, int pixels, int channels, int chunk) {
    const int channel = threadIdx.x * N;
    const long long image = static_cast<long long>(blockIdx.y) * pixels * channels;
    const long long first = static_cast<long long>(gridDim.x - 1 - blockIdx.x) * chunk;  // the last chunk first
    const int stop = static_cast<int>(min(static_cast<long long>(chunk), pixels - first));
    const float* gain = affine + static_cast<long long>(blockIdx.y) * 2 * channels + channel;
    float g[N], b[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
        g[j] = gain[j];
        b[j] = gain[channels + j];
    }
#pragma unroll 4
    for (int pixel = threadIdx.y; pixel < stop; pixel += blockDim.y) {
        const long long at = image + (first + pixel) * channels + channel;
        const Pack<T, N> a = load<N>(x + at);
        Pack<T, N> out;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float value = to_float(a.v[j]) * g[j] + b[j];
            out.v[j] = from_float<T>(with_silu ? silu<T>(value) : value);
        }
        store(y + at, out);
    }
}

}  // namespace hart
