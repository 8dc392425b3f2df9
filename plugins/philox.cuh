// Counter-based noise of runtime/noise.py: Philox 4x32-10 (Salmon et al., SC 2011).
//
// Key = the 64-bit seed, counter = (block low, block high, index, purpose); element e is lane e mod 4 of block e div 4.
// Logarithms, roots and cosines are taken in float64 and rounded to float32, so the numbers are those of the CPU.
#pragma once

namespace hart {

enum Purpose : unsigned { TOKEN = 0, SMOOTH = 1, DIFFUSION_INIT = 2, DIFFUSION_STEP = 3 };

// Four words of random bits.
__device__ inline void philox(unsigned long long seed, unsigned long long block, unsigned index, unsigned purpose, unsigned out[4]) {
    unsigned c0 = static_cast<unsigned>(block), c1 = static_cast<unsigned>(block >> 32), c2 = index, c3 = purpose;
    unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
#pragma unroll
    for (int i = 0; i < 10; ++i) {
        const unsigned low0 = 0xD2511F53u * c0, low1 = 0xCD9E8D57u * c2;
        const unsigned high0 = __umulhi(0xD2511F53u, c0), high1 = __umulhi(0xCD9E8D57u, c2);
        c0 = high1 ^ c1 ^ k0;
        c2 = high0 ^ c3 ^ k1;
        c1 = low1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

// (bits + ½)·2⁻³², strictly inside (0, 1); exact.
__device__ inline double uniform(unsigned bits) { return (bits + 0.5) * 0x1p-32; }

__device__ inline float gumbel(unsigned bits) { return static_cast<float>(-log(-log(uniform(bits)))); }

// Box-Muller: two normal numbers from two lanes.
__device__ inline void normal(unsigned first, unsigned second, float& a, float& b) {
    const double radius = sqrt(-2.0 * log(uniform(first)));
    double s, c;
    sincospi(2.0 * uniform(second), &s, &c);
    a = static_cast<float>(radius * c);
    b = static_cast<float>(radius * s);
}

// Element e of a Gumbel tensor.
__device__ inline float gumbel_at(unsigned long long seed, unsigned long long element, unsigned index, unsigned purpose) {
    unsigned bits[4];
    philox(seed, element / 4, index, purpose, bits);
    const unsigned lane = element % 4;  // selected, not indexed: bits stay in registers
    return gumbel(lane == 0 ? bits[0] : lane == 1 ? bits[1] : lane == 2 ? bits[2] : bits[3]);
}

}  // namespace hart
