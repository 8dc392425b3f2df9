// RMSNorm with what surrounds it.
//
//   s = x (+ residual), rounded to T, written to `sum`
//   y = round_T(s / sqrt(mean(s²) + eps)) · weight        (· (1 + scale) + shift)
//
// then y is rounded to T, or quantised. One block per row of `width` elements; what of it a thread cannot keep is read twice.
// weight, scale and shift are asked for before the row: waiting for them behind the block's sum would be a second trip to
// memory in every block's short life. `sum` may be `residual` or `x`. scale, shift [rows / tokens, width].
#pragma once

#include "common.cuh"

namespace hart {

template <typename T, typename Out, int N>
__global__ void rms_norm(const T* x, const T* residual, T* sum, const T* weight, const T* scale, const T* shift, Out* y,
                         int width, int tokens, float eps, float inverse) {
    __shared__ float scratch[32];
    const long long base = static_cast<long long>(blockIdx.x) * width;
    const long long modulation = static_cast<long long>(blockIdx.x / tokens) * width;
    Pack<T, N> row[held], gain[held], a[held], b[held];
    each_pack<N>(width, [&](int i, int v) {
        if (v == held) return;
        gain[v] = load<N>(weight + i);
        if (scale) {
            a[v] = load<N>(scale + modulation + i);
            b[v] = load<N>(shift + modulation + i);
        }
    });
    float squares = 0.0f;
    each_pack<N>(width, [&](int i, int v) {
        Pack<T, N> s = load<N>(x + base + i);
        if (residual) {
            const Pack<T, N> r = load<N>(residual + base + i);
#pragma unroll
            for (int j = 0; j < N; ++j) s.v[j] = from_float<T>(to_float(s.v[j]) + to_float(r.v[j]));
            store(sum + base + i, s);
        }
#pragma unroll
        for (int j = 0; j < N; ++j) squares += to_float(s.v[j]) * to_float(s.v[j]);
        if (v < held) row[v] = s;
    });
    const float factor = 1.0f / sqrtf(block_sum(squares, scratch) / width + eps);
    const T* source = residual ? sum : x;  // every thread reads what it wrote itself
    each_pack<N>(width, [&](int i, int v) {
        const bool kept = v < held;
        const int at = kept ? v : 0;
        const Pack<T, N> s = kept ? row[at] : load<N>(source + base + i), w = kept ? gain[at] : load<N>(weight + i);
        float value[N];
#pragma unroll
        for (int j = 0; j < N; ++j) value[j] = rounded<T>(to_float(s.v[j]) * factor) * to_float(w.v[j]);
        if (scale) {
            const Pack<T, N> m = kept ? a[at] : load<N>(scale + modulation + i), n = kept ? b[at] : load<N>(shift + modulation + i);
#pragma unroll
            for (int j = 0; j < N; ++j) value[j] = value[j] * (1.0f + to_float(m.v[j])) + to_float(n.v[j]);
        }
        Pack<Out, N> out;
#pragma unroll
        for (int j = 0; j < N; ++j) out.v[j] = emit<T, Out>(value[j], inverse);
        store(y + base + i, out);
    });
}

}  // namespace hart
