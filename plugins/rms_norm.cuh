// RMSNorm with what surrounds it.
//
//   s = x (+ residual), rounded to T, written to `sum`
//   y = round_T(s / sqrt(mean(s²) + eps)) · weight        (· (1 + scale) + shift)
//
// then y is rounded to T, or quantised. One block per row of `width` elements, which is read twice, the second time from the
// cache: blocks that keep nothing in registers are many at a time, and hide each other's waiting. `sum` may be `residual` or `x`.
// scale, shift [gridDim.y, width]: each for gridDim.x rows.
#pragma once

#include "common.cuh"

namespace hart {

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

}  // namespace hart
