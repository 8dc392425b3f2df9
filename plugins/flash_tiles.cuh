// Tiles of keys and values for `flash_attention.cuh`: a ring of them in shared memory, and the copies that fill it.
//
// A tile's row has 128 bytes. Its 16-byte chunks are permuted, chunk c of row r at c xor r mod 8, which is wgmma's 128-byte swizzle.
#pragma once

#include "hopper.cuh"

namespace hart {

constexpr int flash_head = 64;                  // elements of a row
constexpr int flash_groups = 3, flash_rows = 64;  // groups that compute, queries of each
constexpr int flash_keys = 128, flash_stages = 4;  // keys of a tile, tiles of a ring
constexpr int flash_group = 128;                // threads of a warpgroup

// A ring of tiles in shared memory, and for each place a barrier for "copied" and one for "read".
struct FlashRing {
    unsigned tiles, full, free;  // addresses

    __device__ unsigned tile(unsigned at) const { return tiles + at % flash_stages * (flash_keys * 128); }
    __device__ void await_copied(unsigned at) const { barrier_wait(full + at % flash_stages * 8, at / flash_stages & 1); }
    __device__ void await_read(unsigned at) const {  // of the tile that was in this one's place
        if (at >= flash_stages) barrier_wait(free + at % flash_stages * 8, (at / flash_stages - 1) & 1);
    }
    __device__ void announce_copied(unsigned at) const { barrier_arrive(full + at % flash_stages * 8); }
    __device__ void announce_read(unsigned at) const {  // by one warp
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(free + at % flash_stages * 8);
    }
};

// Shared memory of a block, from the first address that is a multiple of 1024 on: queries, keys, values, barriers.
struct FlashMemory {
    static constexpr int queries = flash_groups * flash_rows * 128, ring = flash_stages * flash_keys * 128;
    unsigned q;
    FlashRing k, v;

    __device__ explicit FlashMemory(unsigned start) : q((start + 1023) / 1024 * 1024) {
        const unsigned barriers = q + queries + 2 * ring;
        k = {q + queries, barriers, barriers + flash_stages * 8};
        v = {k.tiles + ring, k.free + flash_stages * 8, k.free + 2 * flash_stages * 8};
    }

    // By one thread, before all others use them.
    __device__ void init_barriers() const {
        for (int i = 0; i < flash_stages; ++i) {
            barrier_init(k.full + 8 * i, flash_group), barrier_init(k.free + 8 * i, flash_groups * 4);
            barrier_init(v.full + 8 * i, flash_group), barrier_init(v.free + 8 * i, flash_groups * 4);
        }
    }
};

// A warpgroup's copy of ROWS rows from row `first` on, `stride` elements apart, into a tile; rows from `stop` on become 0.
template <int ROWS>
__device__ inline void copy_tile(unsigned tile, const __half* source, int first, int stop, int stride) {
    const int row = threadIdx.x % flash_group / 8, chunk = threadIdx.x % 8;
    const __half* from = source + static_cast<long long>(first + row) * stride + chunk * 8;
    const unsigned target = tile + row * 128 + ((chunk ^ (row % 8)) << 4);
#pragma unroll
    for (int i = 0; i < ROWS / 16; ++i) copy_16(target + i * 2048, from + i * 16 * stride, first + row + 16 * i < stop);
}

// The next tile of a ring, if there is one, and word that the tile before it is there.
__device__ inline void copy_next(const FlashRing& ring, const __half* source, int at, int tiles, int length) {
    if (at < tiles) {
        ring.await_read(at);
        copy_tile<flash_keys>(ring.tile(at), source, (tiles - 1 - at) * flash_keys, length, flash_head);
    }
    copies_commit();
    if (at == 0) return;
    copies_wait<2>();  // the other ring's tile and this one may be under way
    proxy_fence();
    ring.announce_copied(at - 1);
}

}  // namespace hart
