"""The scale loop with sampling on the GPU: of the logits, which are most of what would come down, nothing does."""

from __future__ import annotations

import warnings

import numpy as np

from hart_edge.plugins import Buffer, guided_sample, sources
from hart_edge.plugins.guided_sample import Sampling

from .cuda import Device
from .device_memory import DeviceMemory
from .engine import DeviceTensor, Tensor
from .errors import GpuError, HartWarning, KernelError, MissingPackageError
from .kernels import KernelLibrary
from .noise import Float32, Noise, PhiloxNoise
from .options import Options, top_k_of
from .sampling import Int64, scale_ratio
from .scale_loop import ScaleLoop
from .spec import CODEBOOK


class DeviceSampledLoop(ScaleLoop):
    """`ScaleLoop` with the kernel `guided_sample` in place of its `sample`.

    Args:
        loop: what it takes the place of.
        memory: of the engines; its stream launches the kernel.
        library: holds the kernel.
    """

    def __init__(self, loop: ScaleLoop, memory: DeviceMemory, library: KernelLibrary) -> None:
        super().__init__(loop.spec, loop.transformer, loop.transition, loop.diffusion, {CODEBOOK: loop.codebook}, memory)
        self._memory, self._library = memory, library
        self._codebook = memory.upload(loop.codebook)

    def sample(self, scale: int, logits: Tensor, batch: int, options: Options, noise: Noise) -> tuple[Int64, Float32]:
        """See `ScaleLoop.sample`. Noise that is not made from seeds, such as a recorded run's, is the host's affair."""
        if not isinstance(noise, PhiloxNoise):
            return super().sample(scale, logits, batch, options, noise)
        spec, memory, side = self.spec, self._memory, self.spec.patch_nums[scale]
        conditional, unconditional = self._rows(scale, logits if isinstance(logits, DeviceTensor) else memory.upload(logits), batch)
        tokens = memory.empty((batch, side * side), np.int64)
        codes = memory.empty((batch, side * side, spec.latent_channels), np.float32)
        seeds = memory.upload(np.array(noise.seeds, np.uint64))
        ratio = scale_ratio(scale, spec.scales)
        how = Sampling(options.cfg * ratio, top_k_of(options, scale), options.top_p, ratio, scale, options.smooth)
        launch = guided_sample.launch(
            _buffer(conditional),
            None if unconditional is None else _buffer(unconditional),
            _buffer(seeds),
            _buffer(self._codebook),
            _buffer(tokens),
            _buffer(codes),
            how,
        )
        self._library.launch(launch, memory.stream)
        h = memory.download(codes).transpose(0, 2, 1).reshape(batch, -1, side, side)
        return memory.download(tokens), np.ascontiguousarray(h)

    def _rows(self, scale: int, logits: DeviceTensor, batch: int) -> tuple[DeviceTensor, DeviceTensor | None]:
        """Conditional and unconditional logits [B, p², V]; scale 0 has the last context position's only."""
        if scale > 0:
            return logits[:batch], logits[batch:]
        last = self._memory.empty((batch, 1, logits.shape[2]), logits.dtype)
        for j in range(batch):
            self._memory.write(last[j], logits[j][logits.shape[1] - 1 :])
        return last, None


def sampled_on(device: Device, memory: DeviceMemory, loop: ScaleLoop) -> ScaleLoop:
    """The loop with sampling on the GPU; `loop` itself, with HartWarning, where the kernel for that cannot be made."""
    try:
        library = KernelLibrary(device, sources(), guided_sample.KERNELS)
        library.load()
    except (GpuError, KernelError, MissingPackageError) as error:
        warnings.warn(f"sampling runs on the CPU, which takes longer: {error}", HartWarning, stacklevel=3)
        return loop
    return DeviceSampledLoop(loop, memory, library)


def _buffer(tensor: DeviceTensor) -> Buffer:
    return Buffer(tensor.address, tensor.shape, tensor.dtype.name)
