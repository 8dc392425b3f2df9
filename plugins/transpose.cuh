// The last two axes exchanged: y[i, n, m] = x[i, m, n]. Through tiles in shared memory, so that both sides are read and
// written in runs. Block (32 columns, 32 rows, image) of 32 × 8 threads.
#pragma once

#include <cuda_fp8.h>

namespace hart {

template <typename T>
__global__ void transpose(const T* x, T* y, int rows, int columns) {
    __shared__ T tile[32][33];
    const long long image = static_cast<long long>(blockIdx.z) * rows * columns;
    const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
    for (int i = part; i < 32; i += 8) {
        const int row = blockIdx.y * 32 + i, column = blockIdx.x * 32 + lane;
        if (row < rows && column < columns) tile[i][lane] = x[image + static_cast<long long>(row) * columns + column];
    }
    __syncthreads();
    for (int i = part; i < 32; i += 8) {
        const int row = blockIdx.y * 32 + lane, column = blockIdx.x * 32 + i;
        if (row < rows && column < columns) y[image + static_cast<long long>(column) * rows + row] = tile[lane][i];
    }
}

}  // namespace hart
