// Bias and residual behind a convolution: y = x + bias (+ residual), in float, rounded once. y may be x or residual.
//
// x, residual, y [rows, width]; bias [width]. Block x: rows x·blockDim.y …; thread (i, j): columns i·N … of row j.
#pragma once

#include "common.cuh"

namespace hart {

template <typename T, int N>
__global__ void add_bias(const T* x, const T* bias, const T* residual, T* y, long long rows, int width) {
    const long long row = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        const Pack<T, N> a = load<N>(x + row * width + i), b = load<N>(bias + i);
        float value[N];
#pragma unroll
        for (int j = 0; j < N; ++j) value[j] = to_float(a.v[j]) + to_float(b.v[j]);
        if (residual) {
            const Pack<T, N> r = load<N>(residual + row * width + i);
#pragma unroll
            for (int j = 0; j < N; ++j) value[j] += to_float(r.v[j]);
        }
        Pack<T, N> out;
#pragma unroll
        for (int j = 0; j < N; ++j) out.v[j] = from_float<T>(value[j]);
        store(y + row * width + i, out);
    }
}

}  // namespace hart
