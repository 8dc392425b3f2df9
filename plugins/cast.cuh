// Another element type: y = x, rounded to nearest even, or quantised with a static scale. A thread takes N neighbouring
// elements.
#pragma once

#include "common.cuh"

namespace hart {

template <typename From, typename To, int N>
__global__ void cast(const From* x, To* y, long long size, float inverse) {
    const long long i = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (i >= size) return;
    const Pack<From, N> a = load<N>(x + i);
    Pack<To, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = emit<From, To>(to_float(a.v[j]), inverse);
    store(y + i, out);
}

}  // namespace hart
