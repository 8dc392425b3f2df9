// Rows of a table by index: y[r] = table[index[r mod count]]; table [entries, width], index [count], y [rows, width].
//
// Block (x, y): row x, columns y·blockDim·N and on. An index outside the table would read outside it: the sampler makes none.
#pragma once

#include "common.cuh"

namespace hart {

template <typename T, int N>
__global__ void take_rows(const T* table, const long long* index, T* y, int count, int width) {
    const int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (i >= width) return;
    const long long row = blockIdx.x, entry = index[row % count];
    store(y + row * width + i, load<N>(table + entry * width + i));
}

}  // namespace hart
