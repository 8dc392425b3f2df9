// RMSNorm with what surrounds it.
//
//   s = x (+ residual), rounded to T, written to `sum`
//   y = round_T(s / sqrt(mean(s²) + eps)) · weight        (· (1 + scale) + shift)
//
// then y is rounded to T, or quantised. scale, shift [gridDim.y, width]: each for a gridDim.y-th of the rows.
#pragma once

#include "common.cuh"

namespace hart {

// One block per row of `width` elements, which is read twice, the second time from the cache: blocks that keep nothing in registers
// are many at a time, and hide each other's waiting. `sum` may be `residual` or `x`.
template <typename T, typename Out, int N>
__global__ void rms_norm(const T* x, const T* residual, T* sum, const T* weight, const T* scale, const T* shift, Out* y,
                         int width, float eps, float inverse) {
    __shared__ float scratch[32];
    const long long base = (static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x) * width;
    const long long modulation = static_cast<long long>(blockIdx.y) * width;
    float squares = 0.0f;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        Pack<T, N> s = load<N>(x + base + i);
        if (residual) {
            const Pack<T, N> r = load<N>(residual + base + i);
#pragma unroll
            for (int j = 0; j < N; ++j) s.v[j] = from_float<T>(to_float(s.v[j]) + to_float(r.v[j]));
            store(sum + base + i, s);
        }
#pragma unroll
        for (int j = 0; j < N; ++j) squares += to_float(s.v[j]) * to_float(s.v[j]);
    }
    const float factor = inverse_root_mean<T>(first_block_sum(squares, scratch), width, eps);
    const T* source = residual ? sum : x;  // every thread reads what it wrote itself
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        const Pack<T, N> s = load<N>(source + base + i), w = load<N>(weight + i);
        float value[N];
#pragma unroll
        for (int j = 0; j < N; ++j) value[j] = rounded<T>(to_float(s.v[j]) * factor) * to_float(w.v[j]);
        if (scale) {
            const Pack<T, N> m = load<N>(scale + modulation + i), n = load<N>(shift + modulation + i);
#pragma unroll
            for (int j = 0; j < N; ++j) value[j] = value[j] * (1.0f + to_float(m.v[j])) + to_float(n.v[j]);
        }
        Pack<Out, N> out;
#pragma unroll
        for (int j = 0; j < N; ++j) out.v[j] = emit<T, Out>(value[j], inverse);
        store(y + base + i, out);
    }
}

// Without residual, width ≤ 2 · N · blockDim.x: two rows a block and two packs of each a thread, kept in registers, so that one wait
// for the sums serves both rows, and a column's weight and modulation are taken once. `rows`: of each row of scale and shift.
template <typename T, typename Out, int N>
__global__ void rms_norm_pair(const T* x, const T* weight, const T* scale, const T* shift, Out* y, int width, int rows, float eps,
                              float inverse) {
    __shared__ float scratch[2][32];
    const bool both = 2 * blockIdx.x + 1 < rows;  // or the first row twice, the second time for nothing
    const long long base = (static_cast<long long>(blockIdx.y) * rows + 2 * blockIdx.x) * width;
    const long long modulation = static_cast<long long>(blockIdx.y) * width;
    const int wanted[2] = {static_cast<int>(threadIdx.x) * N, static_cast<int>(threadIdx.x + blockDim.x) * N};
    const int column[2] = {min(wanted[0], width - N), min(wanted[1], width - N)};  // the last ones again where there are no more
    Pack<T, N> s[2][2], w[2], m[2], n[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        s[0][k] = load<N>(x + base + column[k]);
        s[1][k] = load<N>(x + base + (both ? width : 0) + column[k]);
        w[k] = load<N>(weight + column[k]);
        m[k] = load<N>((scale ? scale + modulation : weight) + column[k]);
        n[k] = load<N>((scale ? shift + modulation : weight) + column[k]);
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        float squares = 0.0f;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            float part = 0.0f;
#pragma unroll
            for (int j = 0; j < N; ++j) part += to_float(s[row][k].v[j]) * to_float(s[row][k].v[j]);
            if (wanted[k] < width) squares += part;
        }
        squares = warp_sum(squares);
        if (threadIdx.x % 32 == 0) scratch[row][threadIdx.x / 32] = squares;
    }
    __syncthreads();
    float factor[2] = {0.0f, 0.0f};
#pragma unroll 1
    for (int i = 0; i < blockDim.x / 32; ++i) factor[0] += scratch[0][i], factor[1] += scratch[1][i];
    factor[0] = inverse_root_mean<T>(factor[0], width, eps), factor[1] = inverse_root_mean<T>(factor[1], width, eps);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        float gain[N], add[N];
#pragma unroll
        for (int j = 0; j < N; ++j) {
            gain[j] = to_float(w[k].v[j]) * (scale ? 1.0f + to_float(m[k].v[j]) : 1.0f);
            add[j] = scale ? to_float(n[k].v[j]) : 0.0f;
        }
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            Pack<Out, N> out;
#pragma unroll
            for (int j = 0; j < N; ++j) {
                out.v[j] = emit<T, Out>(fmaf(rounded<T>(to_float(s[row][k].v[j]) * factor[row]), gain[j], add[j]), inverse);
            }
            if (wanted[k] < width && (row == 0 || both)) store(y + base + row * width + wanted[k], out);
        }
    }
}

}  // namespace hart
