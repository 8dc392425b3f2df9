"""Teacher-forced checks: every engine gets the reference's inputs, so an error shows at the stage that makes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hart_edge.runtime.diffusion import RESIDUAL_GAIN, effective_guidance, schedule, timesteps
from hart_edge.runtime.options import Options
from hart_edge.runtime.pipeline import Pipeline
from hart_edge.runtime.transformer import Conditioning, TransformerRun

from ..recording import Arrays, Recording
from ..reference.hart import HartReference
from . import metrics
from .checks import Report
from .gates import ENGINE

MODE = "teacher-forced"


class TeacherForced:
    """Args: the loaded bundle, the reference model, the run, the reference's tensors for it, where to report."""

    def __init__(self, pipe: Pipeline, model: HartReference, recording: Recording, reference: Arrays, report: Report) -> None:
        self.pipe, self.model, self.recording, self.reference, self.report = pipe, model, recording, reference, report
        self.gates = ENGINE[pipe.bundle.manifest.precision]
        self.options = runtime_options(recording)

    def run(self) -> None:
        self.context()
        self.transformer()
        self.sampling()
        self.transition()
        self.residual()
        self.decoder()

    def add(self, stage: str, metric: str, value: float, where: str = "") -> None:
        self.report.add(stage, MODE, metric, value, self.gates.get(metric), where)

    def add_relative(self, stage: str, tensor: str, value: Any, reference: Any, where: str, case: str = "") -> None:
        """case: what the tensor's gate is called where it has one of its own for that."""
        gate = self.gates.get(f"{stage} {tensor}{case}", self.gates["relative error"])
        error = metrics.relative_error(self.pipe.memory.download(value), reference)
        self.report.add(stage, MODE, f"{tensor} relative error", error, gate, where)

    def context(self) -> None:
        conditioning = Conditioning(self.recording.context, self.recording.position_ids)
        x, head = self.pipe.loop.transformer.embed(conditioning)
        batch = self.recording.batch
        self.add_relative("context", "x", x, self.reference["x_0"][:batch], "")
        for name, value in head.items():
            self.add_relative("context", name, value, self.reference[name], "")

    def transformer(self) -> None:
        transformer, batch = self.pipe.loop.transformer, self.recording.batch
        dtype = self.pipe.engines["transformer"].inputs["x"].dtype
        head = {name: self.pipe.memory.upload(self.reference[name].astype(dtype)) for name in ("head_scale", "head_shift")}
        run = TransformerRun(transformer, self.recording.position_ids, head)
        for scale in range(self.pipe.spec.scales):
            rows = batch if scale == 0 else 2 * batch
            hidden, device_logits = run.step(scale, self.pipe.memory.upload(self.reference[f"x_{scale}"][:rows].astype(dtype)))
            logits = self.pipe.memory.download(device_logits)
            want, where = self.reference[f"logits_{scale}"][:rows], f"scale {scale}"
            self.add_relative("transformer", "hidden", hidden, self.reference[f"hidden_{scale}"][:rows], where)
            self.add_relative("transformer", "logits", logits, want, where)
            self.add("transformer", "logits cosine", metrics.cosine(logits, want), where)
            self.add("transformer", "logits max error", metrics.max_error(logits, want), where)
            self.add("transformer", "logits KL", metrics.kl_divergence(logits, want), where)
            self.add("transformer", "top-1 agreement", metrics.top1_agreement(logits, want), where)

    def sampling(self) -> None:
        for scale in range(self.pipe.spec.scales):
            logits = self.reference[f"logits_{scale}"]
            tokens, h = self.pipe.loop.sample(scale, logits, self.recording.batch, self.options, self.recording.noise)
            want = self.reference["h_last" if scale == self.pipe.spec.scales - 1 else f"h_{scale}"]
            self.add("sampling", "tokens equal", float(np.mean(tokens == self.reference[f"idx_{scale}"])), f"scale {scale}")
            self.add_relative("sampling", "codes", h, want, f"scale {scale}")

    def transition(self) -> None:
        f_hat = self.pipe.loop.transition.initial(self.recording.batch)
        for scale in range(self.pipe.spec.scales - 1):
            f_next, x = self.pipe.loop.transition.step(scale, np.ascontiguousarray(self.reference[f"h_{scale}"]), f_hat)
            f_hat = self.reference[f"f_hat_{scale}"]
            self.add_relative("transition", "f_hat", f_next, f_hat, f"scale {scale}")
            self.add_relative("transition", "x", x, self.reference[f"x_{scale + 1}"], f"scale {scale}")

    def residual(self) -> None:
        diffusion, last = self.pipe.loop.diffusion, self.pipe.spec.scales - 1
        dtype = self.pipe.engines["residual_condition"].inputs["hidden"].dtype
        condition = diffusion.condition(self.reference[f"hidden_{last}"].astype(dtype), self.reference[f"idx_{last}"])
        embed = self.model.transformer.diffloss.net.cond_embed
        want = embed(torch.from_numpy(self.reference["diffusion_cond"])).numpy()
        self.add_relative("residual_condition", "condition", condition, want, "")
        self._steps(want.astype(dtype))

    def _steps(self, condition: Any) -> None:
        diffusion, reference = self.pipe.loop.diffusion, self.reference
        steps = sum(name.startswith("diff_x_") for name in reference)
        guidance = np.float32(effective_guidance(float(reference["diffusion_cfg"])))
        rows = condition.shape[0] // 2
        shape = (rows // self.recording.batch, self.pipe.spec.latent_channels)
        for k, (timestep, constants) in enumerate(zip(timesteps(steps)[::-1], schedule(steps), strict=True)):
            noise = np.concatenate([self.recording.noise.diffusion_step(j, k, shape) for j in range(self.recording.batch)])
            x, prediction = diffusion.predict(reference[f"diff_x_{k}"], condition, int(timestep), np.append(constants, guidance), noise)
            following = reference[f"diff_x_{k + 1}"] if k + 1 < steps else reference["diffusion_out"][:rows] / RESIDUAL_GAIN
            self.add_relative("residual_step", "prediction", prediction, reference[f"diff_out_{k}"][:rows], f"step {k}")
            self.add_relative("residual_step", "x", x, following, f"step {k}", "" if k else ", first step")

    def decoder(self) -> None:
        pixels, decoded = decode(self.pipe, np.ascontiguousarray(self.reference["f_hat_final"]))
        want = self.reference["image"]
        levels = np.floor(want * 255 + 0.5).transpose(0, 2, 3, 1)
        self.add("decoder", "decoder PSNR dB", metrics.psnr(decoded * 0.5 + 0.5, want))
        self.add_relative("decoder", "decoded", decoded, self.reference["decoded"], "")
        self.add("decoder", "8-bit difference", metrics.max_error(pixels, levels))


def runtime_options(recording: Recording) -> Options:
    settings = recording.settings
    return Options(settings.cfg, settings.top_k, settings.top_p, settings.smooth, settings.diffusion_steps, settings.residual)


def decode(pipe: Pipeline, f_hat: Any) -> tuple[Any, Any]:
    """f_hat → pixels [B, H, W, 3] uint8 and decoded [B, 3, H, W] float32 in −1…1."""
    side = pipe.spec.image_size
    pixels = np.empty((f_hat.shape[0], side, side, 3), np.uint8)
    decoded = np.empty((f_hat.shape[0], 3, side, side), np.float32)
    pipe.engines["decoder"].run({"f_hat": f_hat}, {"image": pixels, "decoded": decoded})
    return pixels, decoded
