// From logits to tokens and codes: guidance, top-k, top-p, Gumbel-max, smooth mixture.
//
//   g = (1+t)·c − t·u;  drop g < k-th largest;  drop all outside the nucleus of p
//   token = argmax(g + gumbel);  codes = softmax((g·(1+ratio) + gumbel') / τ) @ codebook, or codebook[token]
//
// One block of 256 threads per token of an image. The row's logits are in shared memory as unsigned numbers of the same
// order. The k-th largest is found by bisection of that order, which counts instead of sorting: no atomics, and it ends as
// soon as exactly k are above. What is kept is listed in the order of its index, so that noise, which needs float64
// logarithms, is made for kept codes only, all threads busy. Sums are taken in a fixed order.
// Shared memory: `size` words and `size` 16-bit indices.
#pragma once

#include "common.cuh"
#include "philox.cuh"

namespace hart {

constexpr int sample_threads = 256;
constexpr int sample_warps = sample_threads / 32;
constexpr float lowest_exponent = -80.0f;    // as runtime/sampling.py: smaller weights are far below float's resolution
constexpr float negligible = 9.094947e-13f;  // 2⁻⁴⁰ of the largest weight: 4096 of them change no code by an ulp

__device__ inline float minus_infinity() { return __uint_as_float(0xff800000u); }

__device__ inline unsigned ordered(float x) {
    const unsigned bits = __float_as_uint(x + 0.0f);  // −0 becomes +0: they are equal
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float unordered(unsigned key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// State of a row that all steps share.
struct Row {
    unsigned* keys;         // [size]; a dropped code below `cut`
    unsigned short* kept;   // [size]
    int size;
    unsigned cut, greatest;
    int* counts;            // [32] scratch
    float* sums;            // [32] scratch

    __device__ int count_from(unsigned bound) const {
        int n = 0;
        for (int j = threadIdx.x; j < size; j += sample_threads) n += keys[j] >= bound;
        return block_sum(n, counts);
    }

    // Probability of everything kept whose key is at most `bound`; total: the sum of all weights.
    __device__ float mass(unsigned bound, float total) const {
        float m = 0.0f;
        for (int j = threadIdx.x; j < size; j += sample_threads) {
            if (keys[j] >= cut && keys[j] <= bound) m += weight(keys[j]) / total;
        }
        return block_sum(m, sums);
    }

    __device__ float weight(unsigned key) const { return expf(fmaxf(unordered(key) - unordered(greatest), lowest_exponent)); }
};

// Guided logits into the row's keys, and the least and greatest of them.
__device__ inline void read_row(Row& row, const float* conditional, const float* unconditional, float keep, float take) {
    unsigned least = 0xffffffffu, greatest = 0u;
    for (int j = threadIdx.x; j < row.size; j += sample_threads) {
        float g = conditional[j];
        if (unconditional) g = __fsub_rn(__fmul_rn(keep, g), __fmul_rn(take, unconditional[j]));
        const unsigned key = ordered(g);
        row.keys[j] = key;
        least = min(least, key);
        greatest = max(greatest, key);
    }
    for (int step = 16; step > 0; step /= 2) {
        least = min(least, __shfl_xor_sync(0xffffffffu, least, step));
        greatest = max(greatest, __shfl_xor_sync(0xffffffffu, greatest, step));
    }
    __shared__ unsigned bounds[2][sample_warps];
    if (threadIdx.x % 32 == 0) {
        bounds[0][threadIdx.x / 32] = least;
        bounds[1][threadIdx.x / 32] = greatest;
    }
    __syncthreads();
    for (int i = 0; i < sample_warps; ++i) {
        least = min(least, bounds[0][i]);
        greatest = max(greatest, bounds[1][i]);
    }
    row.cut = least;
    row.greatest = greatest;
}

// Raise the cut to the k-th largest key, or to any bound that keeps exactly the same codes.
__device__ inline void keep_top_k(Row& row, int k) {
    unsigned low = row.cut, high = min(row.greatest, 0xfffffffeu) + 1u;  // count(low) ≥ k > count(high)
    while (high - low > 1u) {
        const unsigned middle = low + (high - low) / 2u;
        const int n = row.count_from(middle);
        if (n >= k) low = middle;
        if (n == k) break;
        if (n < k) high = middle;
    }
    row.cut = low;
}

// Raise the cut until the dropped probability would pass `limit` = 1 − p; of codes equal to the cut the first go first.
__device__ inline void keep_top_p(Row& row, float limit) {
    float all = 0.0f;
    for (int j = threadIdx.x; j < row.size; j += sample_threads) all += row.keys[j] >= row.cut ? row.weight(row.keys[j]) : 0.0f;
    const float total = block_sum(all, row.sums);
    unsigned low = row.cut - 1u, high = row.greatest;  // mass(low) ≤ limit < mass(high), or high is the greatest
    while (high - low > 1u) {
        const unsigned middle = low + (high - low) / 2u;
        if (row.mass(middle, total) <= limit) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const int equal = row.count_from(high) - row.count_from(high + 1u);
    const float share = row.weight(high) / total;
    float dropped = row.mass(low, total);
    int drop = 0;
    while (drop < equal - 1 && dropped + share <= limit) {
        dropped += share;
        ++drop;
    }
    __syncthreads();  // every thread has finished reading the keys
    if (threadIdx.x == 0) {
        for (int j = 0; drop > 0; ++j) {
            if (row.keys[j] == high) {
                row.keys[j] = 0u;
                --drop;
            }
        }
    }
    row.cut = high;
    __syncthreads();
}

// List the indices of the kept codes in ascending order; returns how many.
__device__ inline int list_kept(const Row& row) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int before = 0;
    for (int start = 0; start < row.size; start += sample_threads) {
        const int j = start + threadIdx.x;
        const bool keep = j < row.size && row.keys[j] >= row.cut;
        const unsigned votes = __ballot_sync(0xffffffffu, keep);
        __syncthreads();  // the last round's counts have been read
        if (lane == 0) row.counts[warp] = __popc(votes);
        __syncthreads();
        int place = before;
        for (int i = 0; i < sample_warps; ++i) {
            if (i < warp) place += row.counts[i];
            before += row.counts[i];
        }
        if (keep) row.kept[place + __popc(votes & ((1u << lane) - 1u))] = static_cast<unsigned short>(j);
    }
    __syncthreads();
    return before;
}

// Index of the first maximum over the block, the same in every thread.
__device__ inline int block_argmax(float value, int index) {
    __shared__ float values[sample_warps];
    __shared__ int indices[sample_warps];
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, value, step);
        const int place = __shfl_xor_sync(0xffffffffu, index, step);
        if (other > value || (other == value && place < index)) {
            value = other;
            index = place;
        }
    }
    if (threadIdx.x % 32 == 0) {
        values[threadIdx.x / 32] = value;
        indices[threadIdx.x / 32] = index;
    }
    __syncthreads();
    value = values[0];
    index = indices[0];
    for (int i = 1; i < sample_warps; ++i) {
        if (values[i] > value || (values[i] == value && indices[i] < index)) {
            value = values[i];
            index = indices[i];
        }
    }
    return index;
}

__device__ inline float block_max(float value, float* scratch) {
    for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    for (int i = 0; i < sample_warps; ++i) value = fmaxf(value, scratch[i]);
    return value;
}

// codes = Σ w·codebook / Σ w over the n kept codes; the weights replace their keys.
__device__ inline void mix(const Row& row, int n, const float* codebook, float* codes, int channels, float sharpen, float temperature,
                           unsigned long long seed, unsigned long long first, int scale, const float* given) {
    float greatest = minus_infinity(), sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += sample_threads) {
        const int j = row.kept[i];
        const float noise = given ? given[j] : gumbel_at(seed, first + j, scale, SMOOTH);
        const float score = __fdiv_rn(__fadd_rn(__fmul_rn(unordered(row.keys[j]), sharpen), noise), temperature);
        greatest = fmaxf(greatest, score);
        row.keys[j] = __float_as_uint(score);
    }
    greatest = block_max(greatest, row.sums);
    for (int i = threadIdx.x; i < n; i += sample_threads) {
        const int j = row.kept[i];
        const float weight = expf(fmaxf(__uint_as_float(row.keys[j]) - greatest, lowest_exponent));
        sum += weight;
        row.keys[j] = __float_as_uint(weight);
    }
    const float total = block_sum(sum, row.sums);  // its barriers also publish the weights
    __shared__ float parts[sample_warps][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int start = 0; start < channels; start += 32) {
        const int z = start + lane;
        float part = 0.0f;
        for (int i = warp; i < n; i += sample_warps) {
            const int j = row.kept[i];
            const float weight = __uint_as_float(row.keys[j]);
            if (weight > negligible && z < channels) part += weight * codebook[static_cast<long long>(j) * channels + z];
        }
        parts[warp][lane] = part;
        __syncthreads();
        if (warp == 0 && z < channels) {
            float mixed = 0.0f;
            for (int i = 0; i < sample_warps; ++i) mixed += parts[i][lane];
            codes[z] = mixed / total;
        }
        __syncthreads();
    }
}

// logits of an image [tokens, size]; unconditional null: no guidance. limit < 0: no top-p. token_noise and smooth_noise, as
// the logits, are taken in place of noise from the seeds where they are not null. Grid: (tokens, images).
template <bool smooth>
__global__ void guided_sample(const float* conditional, const float* unconditional, const unsigned long long* seeds,
                              const float* codebook, const float* token_noise, const float* smooth_noise, long long* token, float* codes,
                              int size, int channels, float keep, float take, int top_k, float limit, float sharpen, float temperature,
                              int scale) {
    extern __shared__ unsigned row_keys[];
    __shared__ int counts[32];
    __shared__ float sums[32];
    const long long place = static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned long long seed = seeds[blockIdx.y], first = static_cast<unsigned long long>(blockIdx.x) * size;
    Row row{row_keys, reinterpret_cast<unsigned short*>(row_keys + size), size, 0u, 0u, counts, sums};
    read_row(row, conditional + place * size, unconditional ? unconditional + place * size : nullptr, keep, take);
    if (top_k < size) keep_top_k(row, top_k);
    if (limit >= 0.0f) keep_top_p(row, limit);
    const int n = list_kept(row);

    float best = minus_infinity();
    int chosen = row.kept[0];
    for (int i = threadIdx.x; i < n; i += sample_threads) {
        const int j = row.kept[i];
        const float noise = token_noise ? token_noise[place * size + j] : gumbel_at(seed, first + j, scale, TOKEN);
        const float score = __fadd_rn(unordered(row.keys[j]), noise);
        if (score > best) {
            best = score;
            chosen = j;
        }
    }
    chosen = block_argmax(best, chosen);
    if (threadIdx.x == 0) token[place] = chosen;
    if constexpr (smooth) {
        const float* given = smooth_noise ? smooth_noise + place * size : nullptr;
        mix(row, n, codebook, codes + place * channels, channels, sharpen, temperature, seed, first, scale, given);
    } else {
        for (int z = threadIdx.x; z < channels; z += sample_threads) {
            codes[place * channels + z] = codebook[static_cast<long long>(chosen) * channels + z];
        }
    }
}

}  // namespace hart
