// From the packed qkv product to rotated q and the caches: biases, rotary embedding, layout, one pass.
//
//   out1 = x1·cos a − x2·sin a,  out2 = x2·cos b + x1·sin b      x1, x2: halves of a head of q + bias or of k
//
// With gain [H] (attn_l2_norm) heads are divided by their norm before they are rotated, and those of q multiplied by gain.
//
// Text (side = 0): a = b = position·f.  Image: token (r, c) of a side × side grid stands at (r, c)/side·grid + offset;
// a has the row's angle, b the column's, each of D/4 frequencies twice. a ≠ b: no rotation.
//
// One block per token: the angles' sines and cosines are computed once, in shared memory, for all heads. A thread takes
// N neighbouring elements of both halves of q, k and v. q goes to [R, L, H, D], k and v to [R, H, capacity, D] at
// positions start … start + L − 1. Norms are taken before, a warp per head. Shared memory: 2·D + 2·H floats.
#pragma once

#include "common.cuh"

namespace hart {

constexpr float least_norm = 1e-12f;

// What every head of a token's q and of its k is multiplied by, into factors [2, H].
template <typename T>
__device__ inline void head_factors(const T* q, const T* k, const T* q_bias, const T* gain, float* factors, int heads, int head_dim) {
    const int lane = threadIdx.x % 32;
    for (int head = threadIdx.x / 32; head < heads; head += blockDim.x / 32) {
        float q_sum = 0.0f, k_sum = 0.0f;
        for (int i = head * head_dim + lane; i < (head + 1) * head_dim; i += 32) {
            const float x = to_float(q[i]) + to_float(q_bias[i]), y = to_float(k[i]);
            q_sum += x * x;
            k_sum += y * y;
        }
        q_sum = warp_sum(q_sum);
        k_sum = warp_sum(k_sum);
        if (lane == 0) {
            factors[head] = to_float(gain[head]) / fmaxf(sqrtf(q_sum), least_norm);
            factors[heads + head] = 1.0f / fmaxf(sqrtf(k_sum), least_norm);
        }
    }
}

template <typename T, int N>
__global__ void rope_cache(const T* qkv, const T* q_bias, const T* v_bias, const float* frequency, const long long* positions,
                           const T* gain, T* q, T* k_cache, T* v_cache, int tokens, int heads, int head_dim, int side, int grid,
                           int capacity, int start) {
    extern __shared__ float table[];  // cos a, sin a, cos b, sin b: D/2 each; factors of the heads
    const int half = head_dim / 2, quarter = head_dim / 4;
    const int row = blockIdx.x / tokens, token = blockIdx.x % tokens;
    for (int j = threadIdx.x; j < half; j += blockDim.x) {
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
    const int width = heads * head_dim, pairs = half / N;
    const T* source = qkv + static_cast<long long>(blockIdx.x) * 3 * width;
    float* factors = table + 2 * head_dim;
    if (gain) head_factors(source, source + width, q_bias, gain, factors, heads, head_dim);
    __syncthreads();

    for (int i = threadIdx.x; i < heads * pairs; i += blockDim.x) {
        const int head = i / pairs, j = i % pairs * N, at = head * head_dim + j;
        const Pack<T, N> q1 = load<N>(source + at), q2 = load<N>(source + at + half);
        const Pack<T, N> k1 = load<N>(source + width + at), k2 = load<N>(source + width + at + half);
        Pack<T, N> v1 = load<N>(source + 2 * width + at), v2 = load<N>(source + 2 * width + at + half);
        const Pack<T, N> qb1 = load<N>(q_bias + at), qb2 = load<N>(q_bias + at + half);
        const Pack<T, N> vb1 = load<N>(v_bias + at), vb2 = load<N>(v_bias + at + half);
        const float q_factor = gain ? factors[head] : 1.0f, k_factor = gain ? factors[heads + head] : 1.0f;
        Pack<T, N> q_out1, q_out2, k_out1, k_out2;
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const float cos_a = table[j + n], sin_a = table[half + j + n];
            const float cos_b = table[2 * half + j + n], sin_b = table[3 * half + j + n];
            const float x1 = (to_float(q1.v[n]) + to_float(qb1.v[n])) * q_factor;
            const float x2 = (to_float(q2.v[n]) + to_float(qb2.v[n])) * q_factor;
            q_out1.v[n] = from_float<T>(x1 * cos_a - x2 * sin_a);
            q_out2.v[n] = from_float<T>(x2 * cos_b + x1 * sin_b);
            const float y1 = to_float(k1.v[n]) * k_factor, y2 = to_float(k2.v[n]) * k_factor;
            k_out1.v[n] = from_float<T>(y1 * cos_a - y2 * sin_a);
            k_out2.v[n] = from_float<T>(y2 * cos_b + y1 * sin_b);
            v1.v[n] = from_float<T>(to_float(v1.v[n]) + to_float(vb1.v[n]));
            v2.v[n] = from_float<T>(to_float(v2.v[n]) + to_float(vb2.v[n]));
        }
        const long long q_at = static_cast<long long>(blockIdx.x) * width + at;
        const long long kv_at = ((static_cast<long long>(row) * heads + head) * capacity + start + token) * head_dim + j;
        store(q + q_at, q_out1);
        store(q + q_at + half, q_out2);
        store(k_cache + kv_at, k_out1);
        store(k_cache + kv_at + half, k_out2);
        store(v_cache + kv_at, v1);
        store(v_cache + kv_at + half, v2);
    }
}

}  // namespace hart
