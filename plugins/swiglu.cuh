// SwiGLU: y = silu(gate) · up, in float, rounded once or quantised from the rounded value.
//
// gate and up are rows of `width` elements, `stride` apart (2·width when one product made both). Block (x, y): row x,
// columns y·blockDim·N and on.
#pragma once

#include "common.cuh"

namespace hart {

template <typename T, typename Out, int N>
__global__ void swiglu(const T* gate, const T* up, Out* y, int width, int stride, float inverse) {
    const int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (i >= width) return;
    const long long row = blockIdx.x;
    const Pack<T, N> g = load<N>(gate + row * stride + i), u = load<N>(up + row * stride + i);
    Pack<Out, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = emit<T, Out>(silu<T>(to_float(g.v[j])) * to_float(u.v[j]), inverse);
    store(y + row * width + i, out);
}

}  // namespace hart
