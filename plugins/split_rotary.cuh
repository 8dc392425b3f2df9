// From the packed qkv product to rotated q and k, and v, heads first: rotary embedding and layout, one pass.
//
//   q, k: out = x·cos + swap(x)·sin, swap exchanging the halves of a head      v: as it is
//
// The tables hold what differs between text and image tokens, and the signs. qkv [R·L, 3·H·D]; tables [R, L, D]; q, k, v
// [R, H, L, D]. One block per token; a thread takes N neighbouring elements of both halves.
#pragma once

#include "common.cuh"

namespace hart {

template <typename T, int N>
__global__ void split_rotary(const T* qkv, const T* cosine, const T* sine, T* q, T* k, T* v, int tokens, int heads, int head_dim) {
    const int half = head_dim / 2, pairs = half / N, width = heads * head_dim;
    const long long token = blockIdx.x, row = token / tokens, within = token % tokens;
    const T* source = qkv + token * 3 * width;
    for (int i = threadIdx.x; i < heads * pairs; i += blockDim.x) {
        const int head = i / pairs, j = i % pairs * N, at = head * head_dim + j;
        const Pack<T, N> c1 = load<N>(cosine + token * head_dim + j), c2 = load<N>(cosine + token * head_dim + half + j);
        const Pack<T, N> s1 = load<N>(sine + token * head_dim + j), s2 = load<N>(sine + token * head_dim + half + j);
        const long long target = ((row * heads + head) * tokens + within) * head_dim + j;
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            const Pack<T, N> x1 = load<N>(source + part * width + at), x2 = load<N>(source + part * width + at + half);
            Pack<T, N> y1, y2;
#pragma unroll
            for (int n = 0; n < N; ++n) {
                y1.v[n] = from_float<T>(to_float(x1.v[n]) * to_float(c1.v[n]) + to_float(x2.v[n]) * to_float(s1.v[n]));
                y2.v[n] = from_float<T>(to_float(x2.v[n]) * to_float(c2.v[n]) + to_float(x1.v[n]) * to_float(s2.v[n]));
            }
            T* out = part == 0 ? q : k;
            store(out + target, y1);
            store(out + target + half, y2);
        }
        store(v + target, load<N>(source + 2 * width + at));
        store(v + target + half, load<N>(source + 2 * width + at + half));
    }
}

}  // namespace hart
