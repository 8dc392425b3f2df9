// Two rows of scores of a thread for `flash_attention.cuh`: weights of a tile, their sums, and what earlier sums shrink by.
#pragma once

#include "common.cuh"
#include "flash_tiles.cuh"

namespace hart {

constexpr int flash_own = flash_keys / 2;     // scores of a thread in a tile
constexpr float flash_limit = 32768.0f;       // of the sum of a row's weights in a thread: half holds 65504
constexpr float flash_float_limit = 1.0e30f;  // of a weight before it is made smaller

// Where a thread's scores come from: the head's queries and keys, and which rows of them.
struct FlashSource {
    const __half *q, *k;
    int row, last_row, stride, first_key;  // the second row is row + 8; first_key: of the tile

    // The scores once more, without the tensor cores. It reads the tensors themselves, so that nobody waits for it with the tile.
    __device__ void multiply(float (&scores)[flash_own]) const {
        const __half* first = q + static_cast<long long>(min(row, last_row)) * stride;
        const __half* second = q + static_cast<long long>(min(row + 8, last_row)) * stride;
        const __half* keys = k + static_cast<long long>(first_key + threadIdx.x % 4 * 2) * flash_head;
#pragma unroll
        for (int i = 0; i < flash_own; ++i) scores[i] = 0.0f;
#pragma unroll 1
        for (int at = 0; at < flash_head; ++at) {
            const float a = to_float(first[at]), b = to_float(second[at]);
#pragma unroll
            for (int i = 0; i < flash_own; i += 4) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const float c = to_float(keys[(2 * i + j) * flash_head + at]);
                    scores[i + j] += a * c, scores[i + 2 + j] += b * c;
                }
            }
        }
    }
};

// Two rows of scores of a thread, as wgmma leaves them: of each four, two columns of the first row and two of the second. A row's
// columns are spread over four neighbouring lanes.
//
// Weights are 2^(factor · score − offset), the offset of a row common to its lanes. It is the first tile's greatest exponent, and
// stays while no weight of a later tile comes near what half can hold: most tiles need no maximum.
struct FlashRows {
    float offset[2], total[2], keep[2];

    // The first tile: offsets from its maxima.
    __device__ void begin(float (&scores)[flash_own], float factor) {
        set_offsets(scores, factor);
        sum_up(scores, factor, total);
    }

    // A later tile: scores → weights. False when the sums so far shrink by `keep`.
    __device__ bool add(float (&scores)[flash_own], float factor, const FlashSource& source) {
        float sum[2];
        sum_up(scores, factor, sum);
        const bool small = __all_sync(0xffffffffu, sum[0] <= flash_limit && sum[1] <= flash_limit);
        if (!small) grow(scores, factor, source, sum);
        total[0] += sum[0], total[1] += sum[1];
        return small;
    }

    __device__ void sum_up(float (&scores)[flash_own], float factor, float (&sum)[2]) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float part[2] = {0.0f, 0.0f};
#pragma unroll
            for (int i = 2 * row; i < flash_own; i += 4) {
                part[0] += scores[i] = exp2_fast(fmaf(scores[i], factor, -offset[row]));
                part[1] += scores[i + 1] = exp2_fast(fmaf(scores[i + 1], factor, -offset[row]));
            }
            sum[row] = part[0] + part[1];
        }
    }

    __device__ float greatest(const float (&scores)[flash_own], int row) const {
        float most = fmaxf(scores[2 * row], scores[2 * row + 1]);
#pragma unroll
        for (int i = 4 + 2 * row; i < flash_own; i += 4) most = fmaxf(most, fmaxf(scores[i], scores[i + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        return fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
    }

    __device__ void set_offsets(const float (&scores)[flash_own], float factor) {
        offset[0] = greatest(scores, 0) * factor, offset[1] = greatest(scores, 1) * factor;
    }

    // Weights of a tile that are too large → smaller by a power of two, and the offset larger.
    __device__ __forceinline__ void grow(float (&scores)[flash_own], float factor, const FlashSource& source, float (&sum)[2]) {
        const float most[2] = {greatest(scores, 0), greatest(scores, 1)};
        if (__all_sync(0xffffffffu, most[0] < flash_float_limit && most[1] < flash_float_limit)) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                const int more = max(0, (__float_as_int(most[row]) >> 23) - 127);
                offset[row] += static_cast<float>(more);
                keep[row] = __int_as_float((127 - more) << 23);
                sum[row] *= keep[row];
#pragma unroll
                for (int i = 2 * row; i < flash_own; i += 4) scores[i] *= keep[row], scores[i + 1] *= keep[row];
            }
        } else {  // float may not have held them or their sum: from the beginning
            const float before[2] = {offset[0], offset[1]};
            source.multiply(scores);
            set_offsets(scores, factor);
            for (int row = 0; row < 2; ++row) offset[row] = fmaxf(offset[row], before[row]), keep[row] = exp2_fast(before[row] - offset[row]);
            sum_up(scores, factor, sum);
        }
        total[0] *= keep[0], total[1] *= keep[1];
    }

    __device__ void shrink(float (&out)[32]) const {
#pragma unroll
        for (int i = 0; i < 32; ++i) out[i] *= keep[i / 2 % 2];
    }

    __device__ float inverse(int row) const {
        const float half = total[row] + __shfl_xor_sync(0xffffffffu, total[row], 1);
        return 1.0f / (half + __shfl_xor_sync(0xffffffffu, half, 2));
    }
};

}  // namespace hart
