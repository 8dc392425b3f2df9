// Rotary embedding from tables, and k and v into the cache: the text encoder's, and whatever gets its angles from outside.
//
//   out = x·cos + swap(x)·sin      swap exchanges the halves of a head; signs are in sin
//
// qkv [R·L, (H + 2·KV)·D], biases added already; cos, sin [1 or R, L, D]. q goes to [R, L, H, D], k and v to
// [R, KV, capacity, D] at positions start … start + L − 1. With `gain` [H], q and k are first divided by their length per
// head, and q is multiplied by the head's gain. One block per token; a row of the block, a power of two of lanes, takes a head
// at a time, and a lane N neighbouring elements of both its halves. Float inside, rounded once (after the normalisation too, as
// the engine's graph does).
#pragma once

#include "common.cuh"

namespace hart {

// Elements of one half of a head at the lane, divided by the head's length and multiplied by its gain if asked for.
template <typename T, int N, bool normalise>
__device__ inline void load_half(const T* x, float factor, float gain, float* out) {
    const Pack<T, N> a = load<N>(x);
#pragma unroll
    for (int n = 0; n < N; ++n) {
        out[n] = normalise ? rounded<T>(rounded<T>(to_float(a.v[n]) * factor) * gain) : to_float(a.v[n]);
    }
}

template <typename T, int N>
__device__ inline float squares_of(const T* x, int head_dim) {
    float sum = 0.0f;
    for (int j = threadIdx.x * N; j < head_dim; j += blockDim.x * N) {
        const Pack<T, N> a = load<N>(x + j);
#pragma unroll
        for (int n = 0; n < N; ++n) sum += to_float(a.v[n]) * to_float(a.v[n]);
    }
    return sum;
}

// own + swapped·sin at the lane's elements of one half.
template <typename T, int N>
__device__ inline void store_half(const float* own, const float* swapped, const T* cos, const T* sin, T* out) {
    const Pack<T, N> c = load<N>(cos), s = load<N>(sin);
    Pack<T, N> made;
#pragma unroll
    for (int n = 0; n < N; ++n) made.v[n] = from_float<T>(own[n] * to_float(c.v[n]) + swapped[n] * to_float(s.v[n]));
    store(out, made);
}

template <typename T, int N, bool normalise>
__global__ void rope_tables(const T* qkv, const T* cos, const T* sin, const T* gain, T* q, T* k_cache, T* v_cache, int tokens, int heads,
                            int kv_heads, int head_dim, int capacity, int start, int table_rows) {
    const int row = blockIdx.x / tokens, token = blockIdx.x % tokens, half = head_dim / 2, step = blockDim.x * N;
    const int rotated = heads + kv_heads, total = rotated + kv_heads;
    const T* source = qkv + static_cast<long long>(blockIdx.x) * total * head_dim;
    const long long table = (static_cast<long long>(table_rows > 1 ? row : 0) * tokens + token) * head_dim;
    for (int first = 0; first < total; first += blockDim.y) {
        const int head = first + threadIdx.y;
        const bool mine = head < total;  // the others only take part in the sums
        const T* x = source + head * head_dim;
        float factor = 1.0f;
        if constexpr (normalise) factor = inverse_norm(group_sum(mine ? squares_of<T, N>(x, head_dim) : 0.0f, blockDim.x));
        if (!mine) continue;
        const float scale = normalise && head < heads ? to_float(gain[head]) : 1.0f;
        const int kv_head = head < rotated ? head - heads : head - rotated;
        const long long kv_at = ((static_cast<long long>(row) * kv_heads + kv_head) * capacity + start + token) * head_dim;
        T* out = (head < rotated ? k_cache : v_cache) + kv_at;
        if (head < heads) out = q + (static_cast<long long>(blockIdx.x) * heads + head) * head_dim;
        for (int j = threadIdx.x * N; j < half; j += step) {
            if (head >= rotated) {
                store(out + j, load<N>(x + j));
                store(out + half + j, load<N>(x + half + j));
                continue;
            }
            float x1[N], x2[N];
            load_half<T, N, normalise>(x + j, factor, scale, x1);
            load_half<T, N, normalise>(x + half + j, factor, scale, x2);
            store_half<T, N>(x1, x2, cos + table + j, sin + table + j, out + j);
            store_half<T, N>(x2, x1, cos + table + half + j, sin + table + half + j, out + half + j);
        }
    }
}

}  // namespace hart
