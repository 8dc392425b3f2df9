// Rotary embedding from tables, and k and v into the cache: the text encoder's, and whatever gets its angles from outside.
//
//   out = x·cos + swap(x)·sin      swap exchanges the halves of a head; signs are in sin
//
// qkv [R·L, (H + 2·KV)·D], biases added already; cos, sin [1 or R, L, D]. q goes to [R, L, H, D], k and v to
// [R, KV, capacity, D] at positions start … start + L − 1. With `gain` [H], q and k are first divided by their length per
// head, and q is multiplied by the head's gain. One block per token, a warp per head, float inside, rounded once (after the
// normalisation too, as the engine's graph does).
#pragma once

#include "common.cuh"

namespace hart {

template <typename T>
__device__ inline float inverse_length(const T* x, int head_dim) {
    float squares = 0.0f;
    for (int d = threadIdx.x % 32; d < head_dim; d += 32) squares += to_float(x[d]) * to_float(x[d]);
    return 1.0f / fmaxf(sqrtf(warp_sum(squares)), 1e-12f);
}

template <typename T>
__global__ void rope_tables(const T* qkv, const T* cos, const T* sin, const T* gain, T* q, T* k_cache, T* v_cache, int tokens, int heads,
                            int kv_heads, int head_dim, int capacity, int start, int table_rows) {
    const int row = blockIdx.x / tokens, token = blockIdx.x % tokens, lane = threadIdx.x % 32, half = head_dim / 2;
    const int total = heads + 2 * kv_heads;
    const T* source = qkv + static_cast<long long>(blockIdx.x) * total * head_dim;
    const long long table = (static_cast<long long>(table_rows > 1 ? row : 0) * tokens + token) * head_dim;
    for (int head = threadIdx.x / 32; head < total; head += blockDim.x / 32) {
        const T* x = source + head * head_dim;
        const int kv_head = head < heads + kv_heads ? head - heads : head - heads - kv_heads;
        const long long kv_at = ((static_cast<long long>(row) * kv_heads + kv_head) * capacity + start + token) * head_dim;
        if (head >= heads + kv_heads) {
            for (int d = lane; d < head_dim; d += 32) v_cache[kv_at + d] = x[d];
            continue;
        }
        float factor = 1.0f, scale = 1.0f;
        if (gain) {
            factor = inverse_length(x, head_dim);
            scale = head < heads ? to_float(gain[head]) : 1.0f;
        }
        T* out = head < heads ? q + (static_cast<long long>(blockIdx.x) * heads + head) * head_dim : k_cache + kv_at;
        for (int d = lane; d < head_dim; d += 32) {
            float a = to_float(x[d]), b = to_float(x[d < half ? d + half : d - half]);
            if (gain) {
                a = rounded<T>(rounded<T>(a * factor) * scale);
                b = rounded<T>(rounded<T>(b * factor) * scale);
            }
            out[d] = from_float<T>(a * to_float(cos[table + d]) + b * to_float(sin[table + d]));
        }
    }
}

}  // namespace hart
