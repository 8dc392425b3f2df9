// Four phases of an image twice as high and wide, side by side, put in their places, channels last:
//
//   y[b, 2r + p, 2c + q] = z[b, r + p, c + q, 2p + q]      z [B, H + 1, W + 1, 4, C], y [B, 2H, 2W, C]
//
// Block (x, y): row y of all B·2H of y, columns x·blockDim.y …; thread (i, j): channels i·N … of column j.
#pragma once

#include "common.cuh"

namespace hart {

template <typename T, int N>
__global__ void join_phases(const T* z, T* y, int height, int width, int channels) {
    const int column = blockIdx.x * blockDim.y + threadIdx.y;
    if (column >= 2 * width) return;
    const int image = blockIdx.y / (2 * height), row = blockIdx.y % (2 * height), p = row % 2, q = column % 2;
    const long long cell = (static_cast<long long>(image) * (height + 1) + row / 2 + p) * (width + 1) + column / 2 + q;
    const T* source = z + (4 * cell + 2 * p + q) * channels;
    T* target = y + (static_cast<long long>(blockIdx.y) * 2 * width + column) * channels;
    for (int i = threadIdx.x * N; i < channels; i += blockDim.x * N) store(target + i, load<N>(source + i));
}

}  // namespace hart
