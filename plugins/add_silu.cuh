// SiLU behind a product, or of a sum with one row: y = silu(x (+ row)), in float, rounded once, or
// quantised from the rounded value. y may be x where it has its type.
//
// x, y [rows, width]; row [width], or null. Block (x, y): row x, columns y·blockDim·N and on.
#pragma once

#include "common.cuh"

namespace hart {

template <typename T, typename Out, int N>
__global__ void add_silu(const T* x, const T* row, Out* y, int width, float inverse) {
    const int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (i >= width) return;
    const long long at = blockIdx.x * static_cast<long long>(width) + i;
    const Pack<T, N> a = load<N>(x + at);
    float value[N];
#pragma unroll
    for (int j = 0; j < N; ++j) value[j] = to_float(a.v[j]);
    if (row) {
        const Pack<T, N> r = load<N>(row + i);
#pragma unroll
        for (int j = 0; j < N; ++j) value[j] += to_float(r.v[j]);
    }
    Pack<Out, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = emit<T, Out>(silu<T>(value[j]), inverse);
    store(y + at, out);
}

}  // namespace hart
