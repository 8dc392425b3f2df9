// Entry of the text conditioning: out = e + level, pooled = silu(max over tokens of e); out may be e.
//
// e, out [B, tokens, width], level [width], pooled [B, width]. Block (32 columns, image): 8 tokens at a time.
#pragma once

#include "common.cuh"

namespace hart {

template <typename T>
__global__ void context_entry(const T* e, const T* level, T* out, T* pooled, int tokens, int width) {
    __shared__ float greatest[8][33];
    const int lane = threadIdx.x % 32, part = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    const long long image = static_cast<long long>(blockIdx.y) * tokens * width;
    float most = -3.4e38f;
    if (column < width) {
        const float offset = to_float(level[column]);
        for (int token = part; token < tokens; token += 8) {
            const long long at = image + static_cast<long long>(token) * width + column;
            const float value = to_float(e[at]);
            most = fmaxf(most, value);
            out[at] = from_float<T>(value + offset);
        }
    }
    greatest[part][lane] = most;
    __syncthreads();
    if (part > 0 || column >= width) return;
    for (int i = 1; i < 8; ++i) most = fmaxf(most, greatest[i][lane]);
    pooled[static_cast<long long>(blockIdx.y) * width + column] = from_float<T>(silu<T>(most));
}

}  // namespace hart
