// From the packed qkv product to rotated q and the caches: biases, rotary embedding, layout, one pass.
//
//   out1 = x1·cos a − x2·sin a,  out2 = x2·cos b + x1·sin b      x1, x2: halves of a head of q + bias or of k
//
// With gain [H] (attn_l2_norm) heads are divided by their norm before they are rotated, and those of q multiplied by gain.
//
// Text (side = 0): a = b = position·f.  Image: token (r, c) of a side × side grid stands at (r, c)/side·grid + offset;
// a has the row's angle, b the column's, each of D/4 frequencies twice. a ≠ b: no rotation.
//
// One block per token: the angles' sines and cosines are computed once, in shared memory, for all heads. A row of the block,
// a power of two of lanes, takes a head at a time; a lane takes N neighbouring elements of both halves of its q, k and v. q goes
// to [R, L, H, D], k and v to [R, H, capacity, D] at positions start … start + L − 1. Shared memory: 2·D floats.
#pragma once

#include "common.cuh"

namespace hart {

// x + bias; no bias adds nothing.
template <typename T, int N>
__device__ inline void add_to(const Pack<T, N>& x, const T* bias, float* out) {
    Pack<T, N> b = {};
    if (bias) b = load<N>(bias);
#pragma unroll
    for (int n = 0; n < N; ++n) out[n] = bias ? to_float(x.v[n]) + to_float(b.v[n]) : to_float(x.v[n]);
}

template <typename T, int N>
__device__ inline float squares_of(const T* x, const T* bias) {
    float value[N], sum = 0.0f;
    add_to<T, N>(load<N>(x), bias, value);
#pragma unroll
    for (int n = 0; n < N; ++n) sum += value[n] * value[n];
    return sum;
}

// The lane's elements of both halves of a head, with their bias, times factor, rotated. table: cos a, sin a, cos b, sin b.
template <typename T, int N>
__device__ inline void rotate(const Pack<T, N>& x1, const Pack<T, N>& x2, const T* bias, float factor, const float* table, int half,
                              T* out) {
    float a[N], b[N];
    add_to<T, N>(x1, bias, a);
    add_to<T, N>(x2, bias ? bias + half : nullptr, b);
    Pack<T, N> first, second;
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const float u = a[n] * factor, w = b[n] * factor;
        first.v[n] = from_float<T>(u * table[n] - w * table[half + n]);
        second.v[n] = from_float<T>(w * table[2 * half + n] + u * table[3 * half + n]);
    }
    store(out, first);
    store(out + half, second);
}

template <typename T, int N>
__device__ inline void store_sum(const Pack<T, N>& x, const T* bias, T* out) {
    float value[N];
    add_to<T, N>(x, bias, value);
    Pack<T, N> made;
#pragma unroll
    for (int n = 0; n < N; ++n) made.v[n] = from_float<T>(value[n]);
    store(out, made);
}

template <typename T, int N, bool normalise>
__global__ void rope_cache(const T* qkv, const T* q_bias, const T* v_bias, const float* frequency, const long long* positions,
                           const T* gain, T* q, T* k_cache, T* v_cache, int tokens, int heads, int head_dim, int side, int grid,
                           int capacity, int start) {
    extern __shared__ float table[];  // cos a, sin a, cos b, sin b: D/2 each
    const int half = head_dim / 2, quarter = head_dim / 4;
    const int row = blockIdx.x / tokens, token = blockIdx.x % tokens;
    for (int j = threadIdx.y * blockDim.x + threadIdx.x; j < half; j += blockDim.x * blockDim.y) {
        float a, b;
        if (side == 0) {
            a = b = __fmul_rn(static_cast<float>(positions[blockIdx.x]), frequency[j]);
        } else {
            const float offset = static_cast<float>(positions[row]), f = frequency[j % quarter];
            const float across = static_cast<float>(side), length = static_cast<float>(grid);
            a = __fmul_rn(__fadd_rn(__fmul_rn(__fdiv_rn(static_cast<float>(token / side), across), length), offset), f);
            b = __fmul_rn(__fadd_rn(__fmul_rn(__fdiv_rn(static_cast<float>(token % side), across), length), offset), f);
        }
        sincosf(a, &table[half + j], &table[j]);
        sincosf(b, &table[3 * half + j], &table[2 * half + j]);
    }
    __syncthreads();

    const int width = heads * head_dim, step = blockDim.x * N;
    const T* source = qkv + static_cast<long long>(blockIdx.x) * 3 * width;
    for (int first = 0; first < heads; first += blockDim.y) {
        const int head = first + threadIdx.y, at = head * head_dim;
        const bool mine = head < heads;  // the others only take part in the sums
        float q_factor = 1.0f, k_factor = 1.0f;
        if constexpr (normalise) {
            float q_sum = 0.0f, k_sum = 0.0f;
#pragma unroll 2
            for (int j = threadIdx.x * N; mine && j < head_dim; j += step) {
                q_sum += squares_of<T, N>(source + at + j, q_bias + at + j);
                k_sum += squares_of<T, N>(source + width + at + j, nullptr);
            }
            q_factor = inverse_norm(group_sum(q_sum, blockDim.x)) * (mine ? to_float(gain[head]) : 0.0f);
            k_factor = inverse_norm(group_sum(k_sum, blockDim.x));
        }
        const long long kv_at = ((static_cast<long long>(row) * heads + head) * capacity + start + token) * head_dim;
        for (int j = threadIdx.x * N; mine && j < half; j += step) {
            const T *q_part = source + at + j, *k_part = q_part + width, *v_part = k_part + width;
            const Pack<T, N> q1 = load<N>(q_part), q2 = load<N>(q_part + half), k1 = load<N>(k_part), k2 = load<N>(k_part + half);
            const Pack<T, N> v1 = load<N>(v_part), v2 = load<N>(v_part + half);
            rotate(q1, q2, q_bias + at + j, q_factor, table + j, half, q + static_cast<long long>(blockIdx.x) * width + at + j);
            rotate(k1, k2, static_cast<const T*>(nullptr), k_factor, table + j, half, k_cache + kv_at + j);
            store_sum(v1, v_bias + at + j, v_cache + kv_at + j);
            store_sum(v2, v_bias + at + half + j, v_cache + kv_at + half + j);
        }
    }
}

}  // namespace hart
