// Nearest-neighbour enlargement by two, channels last: y[b, i, j] = x[b, i / 2, j / 2]; x [B, H, W, C], y [B, 2H, 2W, C].
//
// Block x: cells x·blockDim.y … of all B·H·W; thread (i, j): channels i·N … of cell j. A thread reads once and writes four
// times; the rows of all images lie below each other, in x as in y.
#pragma once

#include "common.cuh"

namespace hart {

template <typename T, int N>
__global__ void upsample(const T* x, T* y, long long cells, int columns, int channels) {
    const long long cell = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (cell >= cells) return;
    const long long row = cell / columns, column = cell % columns, stride = 2LL * columns * channels;
    T* target = y + 2 * row * stride + 2 * column * channels;
    for (int i = threadIdx.x * N; i < channels; i += blockDim.x * N) {
        const Pack<T, N> a = load<N>(x + cell * channels + i);
        store(target + i, a);
        store(target + channels + i, a);
        store(target + stride + i, a);
        store(target + stride + channels + i, a);
    }
}

}  // namespace hart
