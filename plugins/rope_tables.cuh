// Rotary embedding from tables, and k and v into the cache: the text encoder's, and whatever gets its angles from outside.
//
//   out = x·cos + swap(x)·sin      swap exchanges the halves of a head; signs are in sin
//
// qkv [R·L, (H + 2·KV)·D], biases added already; cos, sin [1 or R, L, D]. q goes to [R, L, H, D], k and v to
// [R, KV, capacity, D] at positions start … start + L − 1. With `gain` [H], q and k are first divided by their length per
// head, and q is multiplied by the head's gain. One block per token; a row of the block, a power of two of lanes, takes three heads
// at a time, and a lane N neighbouring elements of both their halves, whose cosines and sines it reads once for all heads. Float
// inside, rounded once (after the normalisation too, as the engine's graph does).
#pragma once

#include "common.cuh"

namespace hart {

constexpr int heads_at_once = 3;

// Neighbouring elements of both halves of a head.
template <typename T, int N>
struct Halves {
    Pack<T, N> first, second;
};

template <int N, typename T>
__device__ inline Halves<T, N> load_halves(const T* x, int half) { return {load<N>(x), load<N>(x + half)}; }

template <typename T, int N>
__device__ inline void store_halves(T* out, const Halves<T, N>& x, int half) {
    store(out, x.first);
    store(out + half, x.second);
}

template <typename T, int N>
__device__ inline float squares_of(const Halves<T, N>& x) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < N; ++n) sum += to_float(x.first.v[n]) * to_float(x.first.v[n]) + to_float(x.second.v[n]) * to_float(x.second.v[n]);
    return sum;
}

// x divided by its head's length and multiplied by the head's gain.
template <typename T, int N>
__device__ inline Pack<T, N> normalised(const Pack<T, N>& x, float factor, float gain) {
    Pack<T, N> out;
#pragma unroll
    for (int n = 0; n < N; ++n) out.v[n] = from_float<T>(rounded<T>(to_float(x.v[n]) * factor) * gain);
    return out;
}

// own·cos + swapped·sin.
template <typename T, int N>
__device__ inline Pack<T, N> turned(const Pack<T, N>& own, const Pack<T, N>& swapped, const Pack<T, N>& cos, const Pack<T, N>& sin) {
    Pack<T, N> out;
#pragma unroll
    for (int n = 0; n < N; ++n) {
        out.v[n] = from_float<T>(to_float(own.v[n]) * to_float(cos.v[n]) + to_float(swapped.v[n]) * to_float(sin.v[n]));
    }
    return out;
}

template <typename T, int N, bool normalise>
__global__ void rope_tables(const T* qkv, const T* cos, const T* sin, const T* gain, T* q, T* k_cache, T* v_cache, int tokens, int heads,
                            int kv_heads, int head_dim, int capacity, int start, int table_rows) {
    const int row = blockIdx.x / tokens, token = blockIdx.x % tokens, half = head_dim / 2, step = blockDim.x * N;
    const int rotated = heads + kv_heads, total = rotated + kv_heads;
    const T* source = qkv + static_cast<long long>(blockIdx.x) * total * head_dim;
    const long long table = (static_cast<long long>(table_rows > 1 ? row : 0) * tokens + token) * head_dim;
    const int own = threadIdx.x * N;
    for (int base = 0; base < half; base += step) {  // once, but where a head is longer than its lanes reach
        const int j = base + own;
        const bool inside = j < half;  // the others only take part in the sums
        Halves<T, N> c = {}, s = {};
        if (inside) c = load_halves<N>(cos + table + j, half), s = load_halves<N>(sin + table + j, half);
        for (int first = 0; first < total; first += heads_at_once * blockDim.y) {
            Halves<T, N> x[heads_at_once] = {};
#pragma unroll
            for (int u = 0; u < heads_at_once; ++u) {
                const int head = first + u * blockDim.y + threadIdx.y;
                if (inside && head < total) x[u] = load_halves<N>(source + head * head_dim + j, half);
            }
#pragma unroll
            for (int u = 0; u < heads_at_once; ++u) {
                const int head = first + u * blockDim.y + threadIdx.y;
                if constexpr (normalise) {
                    float squares = squares_of(x[u]);
                    for (int i = own; half > step && i < half && head < total; i += step) {
                        if (i != j) squares += squares_of(load_halves<N>(source + head * head_dim + i, half));
                    }
                    const float factor = inverse_norm<T>(group_sum(squares, blockDim.x)), scale = head < heads ? to_float(gain[head]) : 1.0f;
                    if (head < rotated) x[u] = {normalised(x[u].first, factor, scale), normalised(x[u].second, factor, scale)};
                }
                if (!inside || head >= total) continue;
                const int kv_head = head < rotated ? head - heads : head - rotated;
                const long long kv_at = ((static_cast<long long>(row) * kv_heads + kv_head) * capacity + start + token) * head_dim;
                T* out = (head < rotated ? k_cache : v_cache) + kv_at;
                if (head < heads) out = q + (static_cast<long long>(blockIdx.x) * heads + head) * head_dim;
                if (head < rotated) x[u] = {turned(x[u].first, x[u].second, c.first, s.first), turned(x[u].second, x[u].first, c.second, s.second)};
                store_halves(out + j, x[u], half);
            }
        }
    }
}

}  // namespace hart
