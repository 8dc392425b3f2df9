// Gated residual of the diffusion MLP: out = h + gate · y, in float, rounded once. out may be h or y.
//
// gate: rows `stride` apart, a part of one product's output. Block (x, y): row x, columns y·blockDim·N and on.
#pragma once

#include "common.cuh"

namespace hart {

template <typename T, int N>
__global__ void gate_residual(const T* h, const T* gate, const T* y, T* out, int width, int stride) {
    const int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (i >= width) return;
    const long long row = blockIdx.x, at = row * width + i;
    const Pack<T, N> a = load<N>(h + at), g = load<N>(gate + row * stride + i), b = load<N>(y + at);
    Pack<T, N> sum;
#pragma unroll
    for (int j = 0; j < N; ++j) sum.v[j] = from_float<T>(to_float(a.v[j]) + to_float(g.v[j]) * to_float(b.v[j]));
    store(out + at, sum);
}

}  // namespace hart
