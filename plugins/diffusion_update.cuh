// One DDPM step behind the network: guidance, clipped x0, posterior mean, noise. In float throughout.
//
//   eps = (1 + t) · eps_c − t · eps_u;  x0 = clip(recip · x − recip_minus_1 · eps, −1, 1);  f = (v + 1) / 2
//   x'  = factor · (mean_x0 · x0 + mean_xt · x + gain · exp(½ · (f · log_beta + (1 − f) · log_posterior)) · noise)
//
// x, next [images · size]; raw [2 · images · rows, 2Z]: (eps, v) of the conditional rows, then of the unconditional ones;
// size = rows · Z. The noise is read, or drawn as runtime/noise.py does: element e of an image, purpose DIFFUSION_STEP,
// index `step`. input, if not null, gets x' as T for both halves; prediction, if not null, the guided eps and v as float.
// A thread takes the four elements of one block of noise; block (x, y): image y.
#pragma once

#include "common.cuh"
#include "philox.cuh"

namespace hart {

template <typename T, bool drawn>
__global__ void diffusion_update(const float* x, const T* raw, const float* noise, const unsigned long long* seeds, float* next, T* input,
                                 float* prediction, int size, int channels, int step, float recip, float recip_minus_1, float mean_x0,
                                 float mean_xt, float log_beta, float log_posterior, float gain, float t, float factor) {
    const int block = blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= (size + 3) / 4) return;
    const long long total = static_cast<long long>(gridDim.y) * size;
    float z[4] = {};
    if constexpr (drawn) {
        unsigned bits[4];
        philox(seeds[blockIdx.y], block, step, DIFFUSION_STEP, bits);
        normal(bits[0], bits[1], z[0], z[1]);
        normal(bits[2], bits[3], z[2], z[3]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        if (4LL * block + j >= size) return;
        const long long at = static_cast<long long>(blockIdx.y) * size + 4 * block + j;
        const long long row = at / channels, channel = at % channels, eps_at = 2 * row * channels + channel;
        const float eps_c = to_float(raw[eps_at]), eps_u = to_float(raw[2 * total + eps_at]), v = to_float(raw[eps_at + channels]);
        const float eps = (1.0f + t) * eps_c - t * eps_u;
        const float x0 = fminf(fmaxf(recip * x[at] - recip_minus_1 * eps, -1.0f), 1.0f), fraction = (v + 1.0f) / 2.0f;
        const float deviation = expf(0.5f * (fraction * log_beta + (1.0f - fraction) * log_posterior));
        const float drawn_or_read = drawn ? z[j] : noise[at];
        const float earlier = factor * (mean_x0 * x0 + mean_xt * x[at] + gain * deviation * drawn_or_read);
        next[at] = earlier;
        if (input) input[at] = input[total + at] = from_float<T>(earlier);
        if (prediction) {
            prediction[eps_at] = eps;
            prediction[eps_at + channels] = v;
        }
    }
}

}  // namespace hart
