// Noise of one stream for every image: out [B, size] float32, Gumbel or normal, from seeds [B] and (index, purpose).
//
// A thread makes one block of four; block (x, y): image y.
#pragma once

#include "philox.cuh"

namespace hart {

template <bool is_normal>
__global__ void noise(const unsigned long long* seeds, float* out, int size, int index, int purpose) {
    const long long block = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (4 * block >= size) return;
    unsigned bits[4];
    float value[4];
    philox(seeds[blockIdx.y], block, index, purpose, bits);
    if constexpr (is_normal) {
        normal(bits[0], bits[1], value[0], value[1]);
        normal(bits[2], bits[3], value[2], value[3]);
    } else {
        for (int i = 0; i < 4; ++i) value[i] = gumbel(bits[i]);
    }
    for (int i = 0; i < 4 && 4 * block + i < size; ++i) out[blockIdx.y * static_cast<long long>(size) + 4 * block + i] = value[i];
}

}  // namespace hart
