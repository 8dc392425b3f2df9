"""Free-running check: the engines run on their own, with the reference's noise; how far do they stay together?"""

from __future__ import annotations

import numpy as np
import torch

from hart_edge.runtime.engine import Array
from hart_edge.runtime.pipeline import Pipeline
from hart_edge.runtime.timing import StageTimes
from hart_edge.runtime.transformer import Conditioning

from ..recording import Arrays, Recording
from ..reference.sampling import default_top_k, truncate
from . import metrics
from .checks import Report
from .engines import decode, runtime_options
from .gates import ENGINE

MODE = "free-running"


def check_free_running(pipe: Pipeline, conditioning: Conditioning, recording: Recording, reference: Arrays, report: Report) -> None:
    """Run all scales, the diffusion and the decoder; report flips, token agreement and the picture."""
    gates = ENGINE[pipe.bundle.manifest.precision]
    results = list(pipe.loop.run(conditioning, runtime_options(recording), recording.noise, StageTimes()))
    tokens = [pipe.memory.download(result.tokens) for result in results]
    same = [chosen == reference[f"idx_{scale}"] for scale, chosen in enumerate(tokens)]
    flipped = next((scale for scale, equal in enumerate(same) if not equal.all()), None)
    where = "no flip" if flipped is None else f"first flip at scale {flipped}"
    gap = 0.0 if flipped is None else _flip_gap(recording, reference, flipped, tokens[flipped])
    report.add("pipeline", MODE, "flip gap", gap, gates["flip gap"], where)
    report.add("pipeline", MODE, "token agreement", float(np.mean(np.concatenate([equal.reshape(-1) for equal in same]))), None, where)
    _, decoded = decode(pipe, results[-1].f_hat)
    picture = decoded * 0.5 + 0.5
    for metric, value in (("picture PSNR dB", metrics.psnr), ("picture SSIM", metrics.ssim)):
        report.add("pipeline", MODE, metric, value(picture, reference["image"]), gates[metric] if flipped is None else None, where)


def _flip_gap(recording: Recording, reference: Arrays, scale: int, tokens: Array) -> float:
    """Largest difference, for the reference, between its own choice and the engine's at the first flipped scale."""
    settings = recording.settings
    guided = torch.from_numpy(reference[f"cfg_logits_{scale}"])
    top_k = default_top_k(scale) if settings.top_k is None else settings.top_k
    masked = truncate(guided, top_k, settings.top_p).numpy()
    noise = np.stack([recording.noise.token(j, scale, masked.shape[1:]) for j in range(recording.batch)])
    score = masked + noise
    chosen = np.take_along_axis(score, tokens[..., None], axis=-1)[..., 0]
    return float(np.max(score.max(axis=-1) - chosen))
