// Attention to a cache, without a score matrix in memory: y = softmax(scale · q · kᵀ) · v, statistics on the fly.
//
// The path for what cuDNN does not do: float32, and the text encoder's mask. One block per 32 queries of a head; keys and
// values pass through shared memory in tiles of 32. Eight neighbouring threads share a query: each has four of a tile's
// scores and every eighth column of the output. Scores, statistics and sums are float.
//
// q, y [R, L, H, D]; k, v [R, KV, capacity, D], of which the first `length` positions are read; query head h reads head
// h / (H / KV). first null: every key counts. Otherwise query t of row r attends to key s if s ≤ length − L + t and, from
// key length − L on, mask[r, s − (length − L)] ≠ 0; a query that precedes first[r], so that nothing is left of its keys,
// attends to all. A tile of keys that none of the block's queries attends to is left out: most of them where a short prompt
// was padded. Shared memory: 2·32·(D + 1) + 32·33 floats.
#pragma once

#include "common.cuh"

namespace hart {

constexpr int attention_rows = 32, attention_keys = 32, attention_share = 8;  // queries, keys, threads of a query

// Rows first … first + 31 of a [stop, width] array with rows `stride` apart into a tile; rows from `stop` on become 0.
template <typename T>
__device__ inline void load_tile(float* tile, const T* source, int first, int stop, int width, long long stride) {
    for (int i = threadIdx.x; i < attention_rows * width; i += attention_rows * attention_share) {
        const int row = i / width, column = i % width;
        tile[row * (width + 1) + column] = first + row < stop ? to_float(source[(first + row) * stride + column]) : 0.0f;
    }
}

__device__ inline float share_max(float x) {
    for (int step = attention_share / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

__device__ inline float share_sum(float x) {
    for (int step = attention_share / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

// COLUMNS · 8 ≥ D: columns of the output per thread. Grid: (tiles of queries, H, R).
template <typename T, int COLUMNS>
__global__ void attention(const T* q, const T* k, const T* v, T* y, const long long* mask, const long long* first, int tokens, int heads,
                          int kv_heads, int head_dim, int capacity, int length, float scale) {
    extern __shared__ float memory[];
    float* queries = memory;                                      // [32, D + 1]
    float* tile = queries + attention_rows * (head_dim + 1);      // [32, D + 1], keys, then values
    float* weights = tile + attention_keys * (head_dim + 1);      // [32, 33]
    const int row = threadIdx.x / attention_share, part = threadIdx.x % attention_share;
    const int token = blockIdx.x * attention_rows + row, head = blockIdx.y, image = blockIdx.z, before = length - tokens;
    const long long width = static_cast<long long>(heads) * head_dim;
    const long long q_at = image * tokens * width + head * head_dim;
    const long long kv_at = (static_cast<long long>(image) * kv_heads + head / (heads / kv_heads)) * capacity * head_dim;
    const bool all = first == nullptr || before + token < first[image];
    load_tile(queries, q + q_at, blockIdx.x * attention_rows, tokens, head_dim, width);

    float out[COLUMNS], greatest = -3.0e38f, total = 0.0f;
    for (int i = 0; i < COLUMNS; ++i) out[i] = 0.0f;
    const int last = before + min(static_cast<int>((blockIdx.x + 1) * attention_rows), tokens) - 1;  // position of the last query
    for (int start = 0; start < length; start += attention_keys) {
        const int own = start + static_cast<int>(threadIdx.x) % attention_keys;
        const bool seen = own < length && own <= last && (own < before || (mask && mask[image * tokens + own - before] != 0));
        if (!__syncthreads_or(all || seen)) continue;  // and the last tile's values have been read
        load_tile(tile, k + kv_at, start, length, head_dim, head_dim);
        __syncthreads();
        float score[attention_keys / attention_share], most = -3.0e38f;
#pragma unroll
        for (int i = 0; i < attention_keys / attention_share; ++i) {
            const int at = part + attention_share * i, key = start + at;
            float sum = 0.0f;
            for (int d = 0; d < head_dim; ++d) sum += queries[row * (head_dim + 1) + d] * tile[at * (head_dim + 1) + d];
            const bool counts = key < length && (all || (key <= before + token && (key < before || mask[image * tokens + key - before] != 0)));
            score[i] = counts ? sum * scale : __uint_as_float(0xff800000u);  // −∞
            most = fmaxf(most, score[i]);
        }
        const float next = fmaxf(greatest, share_max(most)), keep = expf(greatest - next);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < attention_keys / attention_share; ++i) {
            const float weight = expf(score[i] - next);
            weights[row * (attention_keys + 1) + part + attention_share * i] = weight;
            sum += weight;
        }
        total = total * keep + share_sum(sum);
        greatest = next;
        __syncthreads();  // the keys have been read
        load_tile(tile, v + kv_at, start, length, head_dim, head_dim);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) out[i] *= keep;
        for (int key = 0; key < attention_keys; ++key) {
            const float weight = weights[row * (attention_keys + 1) + key];
#pragma unroll
            for (int i = 0; i < COLUMNS; ++i) {
                const int column = part + attention_share * i;
                if (column < head_dim) out[i] += weight * tile[key * (head_dim + 1) + column];
            }
        }
    }
    if (token >= tokens) return;
    for (int i = 0; i < COLUMNS; ++i) {
        const int column = part + attention_share * i;
        if (column < head_dim) y[q_at + token * width + column] = from_float<T>(out[i] / total);
    }
}

}  // namespace hart
