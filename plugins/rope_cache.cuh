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

// A lane's elements of both halves of q, k and v of a head, with their biases.
template <int N>
struct Head {
    float q[2][N], k[2][N], v[2][N];
};

template <typename T, int N>
__device__ inline void sum_of(const Pack<T, N>& x, const Pack<T, N>& bias, float* out) {
#pragma unroll
    for (int n = 0; n < N; ++n) out[n] = to_float(x.v[n]) + to_float(bias.v[n]);
}

// q: the lane's first element of the head; its biases likewise. width: from q to k, and from k to v.
template <int N, typename T>
__device__ inline Head<N> load_head(const T* q, const T* q_bias, const T* v_bias, int width, int half) {
    const T *k = q + width, *v = k + width;
    const Pack<T, N> q1 = load<N>(q), q2 = load<N>(q + half), k1 = load<N>(k), k2 = load<N>(k + half);
    const Pack<T, N> v1 = load<N>(v), v2 = load<N>(v + half);
    Head<N> x;
    sum_of(q1, load<N>(q_bias), x.q[0]);
    sum_of(q2, load<N>(q_bias + half), x.q[1]);
#pragma unroll
    for (int n = 0; n < N; ++n) x.k[0][n] = to_float(k1.v[n]), x.k[1][n] = to_float(k2.v[n]);
    sum_of(v1, load<N>(v_bias), x.v[0]);
    sum_of(v2, load<N>(v_bias + half), x.v[1]);
    return x;
}

template <int N>
__device__ inline float squares_of(const float (&x)[2][N]) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < N; ++n) sum += x[0][n] * x[0][n] + x[1][n] * x[1][n];
    return sum;
}

// Both halves times factor, rotated. table: cos a, sin a, cos b, sin b.
template <typename T, int N>
__device__ inline void rotate(const float (&x)[2][N], float factor, const float* table, int half, T* out) {
    Pack<T, N> first, second;
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const float u = x[0][n] * factor, w = x[1][n] * factor;
        first.v[n] = from_float<T>(u * table[n] - w * table[half + n]);
        second.v[n] = from_float<T>(w * table[2 * half + n] + u * table[3 * half + n]);
    }
    store(out, first);
    store(out + half, second);
}

template <typename T, int N>
__device__ inline void store_rounded(const float (&x)[N], T* out) {
    Pack<T, N> made;
#pragma unroll
    for (int n = 0; n < N; ++n) made.v[n] = from_float<T>(x[n]);
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
    const int own = threadIdx.x * N;
    for (int first = 0; first < heads; first += blockDim.y) {
        const int head = first + threadIdx.y, at = head * head_dim;
        const bool mine = head < heads && own < half;  // the others only take part in the sums
        const long long kv_at = ((static_cast<long long>(row) * heads + head) * capacity + start + token) * head_dim;
        const auto read = [&](int j) { return load_head<N>(source + at + j, q_bias + at + j, v_bias + at + j, width, half); };
        const auto write = [&](const Head<N>& x, int j, float q_factor, float k_factor) {
            rotate(x.q, q_factor, table + j, half, q + static_cast<long long>(blockIdx.x) * width + at + j);
            rotate(x.k, k_factor, table + j, half, k_cache + kv_at + j);
            store_rounded(x.v[0], v_cache + kv_at + j);
            store_rounded(x.v[1], v_cache + kv_at + half + j);
        };
        if constexpr (normalise) {
            Head<N> x = {};
            if (mine) x = read(own);
            float q_sum = squares_of(x.q), k_sum = squares_of(x.k);
            for (int j = own + step; mine && j < half; j += step) {
                const Head<N> more = read(j);
                q_sum += squares_of(more.q);
                k_sum += squares_of(more.k);
            }
            const float q_factor = inverse_norm<T>(group_sum(q_sum, blockDim.x)) * (mine ? to_float(gain[head]) : 0.0f);
            const float k_factor = inverse_norm<T>(group_sum(k_sum, blockDim.x));
            if (mine) write(x, own, q_factor, k_factor);
            for (int j = own + step; mine && j < half; j += step) write(read(j), j, q_factor, k_factor);
        } else {
            for (int j = own; mine && j < half; j += step) write(read(j), j, 1.0f, 1.0f);
        }
    }
}

}  // namespace hart
