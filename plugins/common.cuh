// What the kernels share: element types, accesses of several elements, warp and block sums.
//
// Elements are read as float, computed on in float, and rounded to nearest even where they are stored.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

namespace hart {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) { return x; }
template <>
__device__ inline __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ inline signed char from_float<signed char>(float x) {  // saturates
    return static_cast<signed char>(max(-128, min(127, __float2int_rn(x))));
}
template <>
__device__ inline __nv_fp8_e4m3 from_float<__nv_fp8_e4m3>(float x) { return __nv_fp8_e4m3(x); }  // saturates to ±448

// x rounded to T.
template <typename T>
__device__ inline float rounded(float x) { return to_float(from_float<T>(x)); }

// y as the output type: T itself, or quantised from y rounded to T, so that fusing changes no value.
template <typename T, typename Out>
__device__ inline Out emit(float y, float inverse) {
    if constexpr (sizeof(Out) == 1) {
        return from_float<Out>(__fmul_rn(rounded<T>(y), inverse));
    } else {
        return from_float<Out>(y);
    }
}

// N neighbouring elements, moved in one access.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T v[N];
};

template <int N, typename T>
__device__ inline Pack<T, N> load(const T* p) { return *reinterpret_cast<const Pack<T, N>*>(p); }

template <typename T, int N>
__device__ inline void store(T* p, const Pack<T, N>& pack) { *reinterpret_cast<Pack<T, N>*>(p) = pack; }

// x / (1 + exp(−x)). 16-bit types take the fast exponential: its error is far below their rounding.
template <typename T>
__device__ inline float silu(float x) {
    if constexpr (sizeof(T) == 4) {
        return x / (1.0f + expf(-x));
    } else {
        return __fdividef(x, 1.0f + __expf(-x));
    }
}

// Sum over the warp, the same bits in every lane.
template <typename T>
__device__ inline T warp_sum(T x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

// Sum over `lanes` neighbouring lanes, a power of two of at most 32, the same bits in each. All lanes of the warp take part.
__device__ inline float group_sum(float x, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

// 1 / ‖x‖ of a vector whose squares add up to `squares`, which a vector of zeros leaves zero. 16-bit types take the fast
// reciprocal root: its error is far below their rounding.
template <typename T>
__device__ inline float inverse_norm(float squares) {
    if constexpr (sizeof(T) == 4) {
        return 1.0f / fmaxf(sqrtf(squares), 1e-12f);
    } else {
        return rsqrtf(fmaxf(squares, 1e-24f));
    }
}

// Sum over a one-dimensional block of whole warps, the same bits in every thread: a kernel's first with this scratch, 32 values of
// shared memory.
template <typename T>
__device__ inline T first_block_sum(T x, T* scratch) {
    const int lane = threadIdx.x % 32;
    x = warp_sum(x);
    if (lane == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(lane < static_cast<int>(blockDim.x) / 32 ? scratch[lane] : T(0));
}

// The same after an earlier one with the same scratch.
template <typename T>
__device__ inline T block_sum(T x, T* scratch) {
    __syncthreads();
    return first_block_sum(x, scratch);
}

// 1 / √(squares / width + eps). 16-bit types take the fast division and root: their error is far below their rounding.
template <typename T>
__device__ inline float inverse_root_mean(float squares, int width, float eps) {
    if constexpr (sizeof(T) == 4) {
        return 1.0f / sqrtf(squares / width + eps);
    } else {
        return rsqrtf(__fdividef(squares, width) + eps);
    }
}

}  // namespace hart
