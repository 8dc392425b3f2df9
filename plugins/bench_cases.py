"""Every case of the kernels' benchmark: each operator of the catalogue, in float16 and float32 where it has both."""

from __future__ import annotations

from .bench_case import Case
from .bench_decoding import decoder, diffusion, latent
from .bench_scales import sampling, transformer


def cases(size: int) -> tuple[Case, ...]:
    """Of a picture of size × size pixels, 1024 or 512."""
    typed = [case for dtype in ("float16", "float32") for stage in (transformer, diffusion, decoder) for case in stage(dtype, size)]
    return (*typed, *sampling(size), *latent(size))
