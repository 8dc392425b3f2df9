// Softmax of every row: y = exp(x − max) / sum, in float, rounded once. y may be x; x, y [rows, width].
//
// One block per row. A warp takes the exponentials of its part against its own maximum; the warps then exchange maximum and sum
// at once, and each brings its part to the row's maximum together with the division. What a thread keeps of a row is read once
// and its exponentials are taken once; the rest of a longer row is read three times, from the cache after the first.
#pragma once

#include "common.cuh"

namespace hart {

// Packs of a row that a thread keeps in registers between two passes over it; the rest of a longer row is read again.
constexpr int held = 2;

// f(i, v) for this thread's packs of a row of `width` elements: i the first element, v the number of the pack, `held` for all
// that are not kept. v is known when f is compiled.
template <int N, typename F>
__device__ inline void each_pack(int width, F f) {
    const int step = blockDim.x * N;
    int i = threadIdx.x * N;
#pragma unroll
    for (int v = 0; v < held; ++v, i += step) {
        if (i < width) f(i, v);
    }
#pragma unroll 1
    for (; i < width; i += step) f(i, held);
}

constexpr float lowest = -2.3e38f;  // of a warp that has nothing, or nothing but −∞; in bits it is finite too

__device__ inline float warp_max(float x) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// exp(x − most), with `most` times `in_bits<T>`. 16-bit types take the power of two that the hardware has, after one multiplication
// and subtraction: its error is far below their rounding.
template <typename T>
constexpr float in_bits = sizeof(T) == 4 ? 1.0f : 1.44269504f;  // log2 e

template <typename T>
__device__ inline float weight_of(float x, float most) {
    if constexpr (sizeof(T) == 4) {
        return expf(x - most);
    } else {
        float power;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(fmaf(x, in_bits<T>, -most)));
        return power;
    }
}

// What makes softmax of a warp's exponentials against its `most`, of which the sum is `sum`: for the whole warps of a block, at most
// 32. scratch: 32 values of shared memory.
template <typename T>
__device__ inline float softmax_factor(float most, float sum, float2* scratch) {
    const int lane = threadIdx.x % 32;
    if (lane == 0) scratch[threadIdx.x / 32] = make_float2(most, sum);
    __syncthreads();
    const float2 other = lane < static_cast<int>(blockDim.x) / 32 ? scratch[lane] : make_float2(lowest, 0.0f);
    const float greatest = warp_max(other.x);
    const float total = warp_sum(other.y * weight_of<T>(other.x, greatest * in_bits<T>));
    return weight_of<T>(most, greatest * in_bits<T>) / total;
}

template <typename T, int N>
__global__ void softmax_rows(const T* x, T* y, int width) {
    __shared__ float2 scratch[32];
    const long long base = blockIdx.x * static_cast<long long>(width);
    float row[held][N], most = lowest, sum = 0.0f;
    each_pack<N>(width, [&](int i, int v) {
        const Pack<T, N> a = load<N>(x + base + i);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            most = fmaxf(most, to_float(a.v[j]));
            if (v < held) row[v][j] = to_float(a.v[j]);
        }
    });
    most = warp_max(most);
    const float top = most * in_bits<T>;
    each_pack<N>(width, [&](int i, int v) {
        const bool kept = v < held;
        const Pack<T, N> a = kept ? Pack<T, N>{} : load<N>(x + base + i);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float weight = weight_of<T>(kept ? row[kept ? v : 0][j] : to_float(a.v[j]), top);
            sum += weight;
            if (kept) row[kept ? v : 0][j] = weight;
        }
    });
    const float factor = softmax_factor<T>(most, warp_sum(sum), scratch);
    each_pack<N>(width, [&](int i, int v) {
        const bool kept = v < held;
        const Pack<T, N> a = kept ? Pack<T, N>{} : load<N>(x + base + i);
        Pack<T, N> out;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            out.v[j] = from_float<T>((kept ? row[kept ? v : 0][j] : weight_of<T>(to_float(a.v[j]), top)) * factor);
        }
        store(y + base + i, out);
    });
}

}  // namespace hart
