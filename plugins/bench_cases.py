"""Every case of the kernels' benchmark: each operator of the catalogue, in float16 and float32 where it has both, and the
float16 operators that feed FP8 products with FP8 outputs."""

from __future__ import annotations

from .bench_case import Case
from .bench_decoding import decoder, diffusion, diffusion_fp8, latent
from .bench_scales import sampling, transformer, transformer_fp8, transformer_hopper


def cases(size: int) -> tuple[Case, ...]:
    """Of a picture of size × size pixels, 1024 or 512."""
    typed = [case for dtype in ("float16", "float32") for stage in (transformer, diffusion, decoder) for case in stage(dtype, size)]
    return (*typed, *sampling(size), *latent(size), *transformer_hopper(size), *transformer_fp8(size), *diffusion_fp8(size))
