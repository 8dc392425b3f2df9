// LayerNorm and modulation of the diffusion MLP.
//
//   y = ((x − mean) / sqrt(var + eps) (· weight + bias)) · (1 + scale) + shift
//
// Float throughout, rounded once, or quantised from the rounded value; the variance is that of the centred values. One block per
// row of `width` elements, which is read three times, from the cache after the first. scale and shift are rows `stride` apart, so
// they may be parts of one product's output. weight and bias may be null.
#pragma once

#include "common.cuh"

namespace hart {

template <typename T, typename Out, int N>
__global__ void layer_norm_modulate(const T* x, const T* weight, const T* bias, const T* scale, const T* shift, Out* y, int width,
                                    int stride, float eps, float inverse) {
    __shared__ float scratch[32];
    const long long row = blockIdx.x, base = row * width, modulation = row * stride;
    float sum = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        const Pack<T, N> a = load<N>(x + base + i);
#pragma unroll
        for (int j = 0; j < N; ++j) sum += to_float(a.v[j]);
    }
    const float mean = first_block_sum(sum, scratch) / width;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        const Pack<T, N> a = load<N>(x + base + i);
#pragma unroll
        for (int j = 0; j < N; ++j) squares += (to_float(a.v[j]) - mean) * (to_float(a.v[j]) - mean);
    }
    const float factor = inverse_root_mean<T>(block_sum(squares, scratch), width, eps);
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        const Pack<T, N> a = load<N>(x + base + i), gain = load<N>(scale + modulation + i), offset = load<N>(shift + modulation + i);
        float value[N];
#pragma unroll
        for (int j = 0; j < N; ++j) value[j] = (to_float(a.v[j]) - mean) * factor;
        if (weight) {
            const Pack<T, N> w = load<N>(weight + i), b = load<N>(bias + i);
#pragma unroll
            for (int j = 0; j < N; ++j) value[j] = value[j] * to_float(w.v[j]) + to_float(b.v[j]);
        }
        Pack<Out, N> out;
#pragma unroll
        for (int j = 0; j < N; ++j) out.v[j] = emit<T, Out>(value[j] * (1.0f + to_float(gain.v[j])) + to_float(offset.v[j]), inverse);
        store(y + base + i, out);
    }
}

}  // namespace hart
