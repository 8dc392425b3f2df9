// Attention to a cache on Hopper's tensor cores: y = softmax(scale · q · kᵀ) · v, statistics on the fly, half, heads of 64.
//
// q, y [R, L, H, 64]; k, v [R, H, capacity, 64], of which the first `length` positions are read; scale > 0. A block has three
// warpgroups of 64 queries of a head each, and one that copies tiles of 128 keys and values into a ring in shared memory. Each
// group multiplies q · kᵀ of a tile (wgmma, both operands in shared memory) and, behind it, weights · v of the tile before (weights
// in registers), and computes the exponentials of the first product while the second runs. The groups take turns to start their
// products, so that the tensor cores work for one while the others compute exponentials. Scores, statistics and sums are float;
// weights are rounded to half for the second product.
//
// The last tile, which `length` may cut, comes first: no other one needs a mask. In shared memory the 16-byte chunks of a row of
// 128 bytes are permuted, chunk c of row r at c xor r mod 8: wgmma's 128-byte swizzle. Fragments, descriptors and swizzles: PTX ISA,
// "Asynchronous Warpgroup Level Matrix Instructions". The order of the products and the turns: Shah et al., FlashAttention-3
// (arXiv 2407.08608), section 3.
#pragma once

#include "common.cuh"
#include "flash_rows.cuh"

namespace hart {

__device__ inline void pack_weights(unsigned (&weights)[flash_keys / 4], const float (&scores)[flash_own]) {
#pragma unroll
    for (int i = 0; i < flash_keys / 4; ++i) {
        const __half2 pair = __floats2half2_rn(scores[2 * i], scores[2 * i + 1]);
        weights[i] = *reinterpret_cast<const unsigned*>(&pair);
    }
}

__device__ inline void multiply_keys(float (&scores)[flash_own], unsigned q, unsigned tile) {
    const unsigned long long queries = tile_descriptor(q), keys = tile_descriptor(tile);
#pragma unroll
    for (int i = 0; i < flash_head / 16; ++i) multiply_transposed(scores, queries + 2 * i, keys + 2 * i, i > 0);
    product_commit();
}

__device__ inline void multiply_values(float (&out)[32], const unsigned (&weights)[flash_keys / 4], unsigned tile) {
    const unsigned long long values = tile_descriptor(tile);
#pragma unroll
    for (int i = 0; i < flash_keys / 16; ++i) multiply_rows(out, weights + 4 * i, values + 128 * i);
    product_commit();
}

// One of the groups that compute: `out`, not yet divided by the sums of the weights.
__device__ inline void flash_attend(const FlashMemory& memory, unsigned q, FlashSource source, int group, int tiles, int length,
                                    float factor, float (&out)[32], FlashRows& rows) {
    const int own = 1 + group, following = group == flash_groups - 1 ? 1 : own + 1;  // named barriers of the turns
    float scores[flash_own];
    unsigned weights[flash_keys / 4];
    if (group == flash_groups - 1) named_arrive(following, 2 * flash_group);
#pragma unroll
    for (int i = 0; i < 32; ++i) out[i] = 0.0f;
    memory.k.await_copied(0);
    product_fence();
    multiply_keys(scores, q, memory.k.tile(0));
    product_wait<0>();
    hold(scores);
    memory.k.announce_read(0);
    const int left = length - (tiles - 1) * flash_keys - threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < flash_own; ++i) {
        if (i / 4 * 8 + i % 2 >= left) scores[i] = -3.0e38f;
    }
    rows.begin(scores, factor);
    pack_weights(weights, scores);
#pragma unroll 1
    for (int at = 1; at < tiles; ++at) {
        memory.k.await_copied(at);
        named_wait(own, 2 * flash_group);
        product_fence();
        multiply_keys(scores, q, memory.k.tile(at));
        memory.v.await_copied(at - 1);
        multiply_values(out, weights, memory.v.tile(at - 1));
        named_arrive(following, 2 * flash_group);
        product_wait<1>();
        hold(scores);
        source.first_key = (tiles - 1 - at) * flash_keys;
        const bool same = rows.add(scores, factor, source);
        memory.k.announce_read(at);
        product_wait<0>();
        hold(out);
        memory.v.announce_read(at - 1);
        if (!same) rows.shrink(out);
        pack_weights(weights, scores);
    }
    memory.v.await_copied(tiles - 1);
    product_fence();
    multiply_values(out, weights, memory.v.tile(tiles - 1));
    product_wait<0>();
    hold(out);
}

// A thread's two rows of the output, `first` and the eighth after it.
__device__ inline void store_rows(__half* y, const float (&out)[32], const FlashRows& rows, int first, int tokens, int stride) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int token = first + 8 * row;
        const float inverse = rows.inverse(row);
        if (token >= tokens) continue;
        __half* target = y + static_cast<long long>(token) * stride + threadIdx.x % 4 * 2;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            *reinterpret_cast<__half2*>(target + 8 * i) = __floats2half2_rn(out[4 * i + 2 * row] * inverse, out[4 * i + 2 * row + 1] * inverse);
        }
    }
}

// Grid: (tiles of 3 · 64 queries, H, R); block: 4 warpgroups, the last one copies. Shared memory: queries, two rings, a barrier of 8
// bytes for every place of a ring and purpose, and 1024 bytes to begin where the swizzle wants it.
__global__ void __launch_bounds__((flash_groups + 1) * flash_group, 1)
    flash_attention(const __half* q, const __half* k, const __half* v, __half* y, int tokens, int heads, int capacity, int length, float scale) {
    extern __shared__ unsigned char shared[];
    const FlashMemory memory(shared_address(shared));
    // A warp has one group, which the shuffle lets the compiler know: what follows from it needs no register of every thread.
    const int group = __shfl_sync(0xffffffffu, threadIdx.x / flash_group, 0);
    const int tiles = (length + flash_keys - 1) / flash_keys, stride = heads * flash_head;
    const long long in_cache = (static_cast<long long>(blockIdx.z) * heads + blockIdx.y) * capacity * flash_head;
    if (threadIdx.x == 0) memory.init_barriers();
    __syncthreads();
    if (group == flash_groups) {
        give_registers<32>();
        for (int i = 0; i <= tiles; ++i) {
            copy_next(memory.k, k + in_cache, i, tiles, length);
            copy_next(memory.v, v + in_cache, i, tiles, length);
        }
    } else {
        take_registers<160>();  // 3 · 160 + 32 = 4 · 128
        const long long at = static_cast<long long>(blockIdx.z) * tokens * stride + blockIdx.y * flash_head;
        const int first = (blockIdx.x * flash_groups + group) * flash_rows;
        const int row = first + threadIdx.x % flash_group / 32 * 16 + threadIdx.x % 32 / 4;
        const unsigned own = memory.q + group * flash_rows * 128;
        copy_tile<flash_rows>(own, q + at, first, tokens, stride);
        copies_commit();
        copies_wait<0>();
        proxy_fence();
        named_wait(8 + group, flash_group);
        float out[32];
        FlashRows rows;
        const FlashSource source{q + at, k + in_cache, row, tokens - 1, stride, 0};
        flash_attend(memory, own, source, group, tiles, length, scale * 1.44269504f, out, rows);
        store_rows(y + at, out, rows, row, tokens, stride);
    }
}

}  // namespace hart
