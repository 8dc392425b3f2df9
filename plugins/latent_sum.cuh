// The last scale's latent: out = f_hat + codes (+ residual), every operation rounded; out may be f_hat.
#pragma once

namespace hart {

__global__ void latent_sum(const float* f_hat, const float* codes, const float* residual, float* out, int size) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    const float sum = __fadd_rn(f_hat[i], codes[i]);
    out[i] = residual ? __fadd_rn(sum, residual[i]) : sum;
}

}  // namespace hart
