// Decoder output to 8-bit pixels: u = trunc((clamp(x, −1, 1)·0.5 + 0.5)·255 + 0.5), every operation rounded on its own.
//
// x [B, 3, H, W] or, channels last, [B, H, W, 3]; out [B, H, W, 3]. A thread takes N pixels; block (x, y): image y.
#pragma once

#include "common.cuh"

namespace hart {

__device__ inline unsigned char level(float x) {
    const float clamped = fminf(fmaxf(x, -1.0f), 1.0f);
    return static_cast<unsigned char>(__fadd_rn(__fmul_rn(__fadd_rn(__fmul_rn(clamped, 0.5f), 0.5f), 255.0f), 0.5f));
}

template <typename T, int N, bool channels_last>
__global__ void to_uint8(const T* x, unsigned char* out, int pixels) {
    const int pixel = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (pixel >= pixels) return;
    const long long image = static_cast<long long>(blockIdx.y) * pixels * 3;
    unsigned char bytes[3 * N];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const Pack<T, N> values = load<N>(x + image + (channels_last ? 3LL * pixel + i * N : static_cast<long long>(i) * pixels + pixel));
#pragma unroll
        for (int j = 0; j < N; ++j) bytes[channels_last ? i * N + j : 3 * j + i] = level(to_float(values.v[j]));
    }
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        Pack<unsigned char, N> packed;
#pragma unroll
        for (int j = 0; j < N; ++j) packed.v[j] = bytes[i * N + j];
        store(out + image + 3LL * pixel + i * N, packed);
    }
}

}  // namespace hart
