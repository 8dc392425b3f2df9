// Softmax of every row: y = exp(x − max) / sum, in float, rounded once. y may be x; x, y [rows, width].
//
// One block per row. What a thread keeps of it is read once and its exponentials are taken once; the rest of a longer row is
// read three times, from the cache after the first.
#pragma once

#include "common.cuh"

namespace hart {

// Greatest over a one-dimensional block of whole warps, in every thread. scratch: 32 values of shared memory.
__device__ inline float block_max(float x, float* scratch) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float greatest = scratch[0];
    for (int i = 1; i < static_cast<int>(blockDim.x) / 32; ++i) greatest = fmaxf(greatest, scratch[i]);
    return greatest;
}

// exp(x). 16-bit types take the fast exponential: its error is far below their rounding.
template <typename T>
__device__ inline float exponential(float x) {
    if constexpr (sizeof(T) == 4) {
        return expf(x);
    } else {
        return __expf(x);
    }
}

template <typename T, int N>
__global__ void softmax_rows(const T* x, T* y, int width) {
    __shared__ float scratch[32];
    const long long base = blockIdx.x * static_cast<long long>(width);
    float row[held][N], most = -3.402823466e38f, sum = 0.0f;
    each_pack<N>(width, [&](int i, int v) {
        const Pack<T, N> a = load<N>(x + base + i);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            most = fmaxf(most, to_float(a.v[j]));
            if (v < held) row[v][j] = to_float(a.v[j]);
        }
    });
    most = block_max(most, scratch);
    each_pack<N>(width, [&](int i, int v) {
        const bool kept = v < held;
        const Pack<T, N> a = kept ? Pack<T, N>{} : load<N>(x + base + i);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float weight = exponential<T>((kept ? row[kept ? v : 0][j] : to_float(a.v[j])) - most);
            sum += weight;
            if (kept) row[kept ? v : 0][j] = weight;
        }
    });
    const float factor = 1.0f / block_sum(sum, scratch);
    each_pack<N>(width, [&](int i, int v) {
        const bool kept = v < held;
        const Pack<T, N> a = kept ? Pack<T, N>{} : load<N>(x + base + i);
        Pack<T, N> out;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            out.v[j] = from_float<T>((kept ? row[kept ? v : 0][j] : exponential<T>(to_float(a.v[j]) - most)) * factor);
        }
        store(y + base + i, out);
    });
}

}  // namespace hart
