"""The one table of gates. A gate is a limit on one figure; precision decides how tight it is.

fp32 engines differ from the reference only by the order of additions (measured near 1e-6), so their limits leave a
factor of about ten. fp16 has 11 significant bits: a layer's rounding is near 5e-4 and grows with depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """`value ≤ limit` or, with at_least, `value ≥ limit`. NaN never passes."""

    limit: float
    at_least: bool = False

    def allows(self, value: float) -> bool:
        if math.isnan(value):
            return False
        return value >= self.limit if self.at_least else value <= self.limit

    def worse(self, value: float, other: float) -> bool:
        """Is `value` further towards the gate than `other`?"""
        return value < other if self.at_least else value > other

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


def at_least(limit: float) -> Gate:
    return Gate(limit, at_least=True)


RECORDING = {"tensor": Gate(1e-4), "picture": Gate(1e-3), "indices": at_least(1.0)}
"""Reference against a recorded run: relative error of tensors and pictures, share of equal indices."""

NONE_DIFFERS = Gate(0)

_ACTIVATIONS_OF_8_BITS = {
    "relative error": Gate(0.2),
    "sampling codes": Gate(1e-2),
    "transition f_hat": Gate(1e-2),
    "transition x": Gate(1e-2),
    "residual_step prediction": Gate(0.5),
    "residual_step x": Gate(0.3),
    "residual_step x, first step": Gate(0.8),
    "logits cosine": at_least(0.99),
    "logits KL": Gate(0.1),
    "tokens equal": at_least(0.999),
    "decoder PSNR dB": at_least(30),
    "8-bit difference": Gate(128),
    "flip gap": Gate(2.0),
    "picture PSNR dB": at_least(25),
    "picture SSIM": at_least(0.8),
}

ENGINE: dict[str, dict[str, Gate]] = {
    "fp32": {
        "relative error": Gate(2e-5),
        "residual_step x": Gate(5e-4),
        "residual_step x, first step": Gate(5e-4),
        "decoder decoded": Gate(2e-4),
        "logits cosine": at_least(0.99999),
        "tokens equal": at_least(0.999),
        "decoder PSNR dB": at_least(50),
        "8-bit difference": Gate(1),
        "flip gap": Gate(1e-3),
        "picture PSNR dB": at_least(60),
        "picture SSIM": at_least(0.999),
    },
    "fp16": {
        "relative error": Gate(1e-2),
        "residual_step prediction": Gate(2e-2),
        "residual_step x": Gate(5e-2),
        "residual_step x, first step": Gate(0.2),
        "decoder decoded": Gate(3e-2),
        "logits cosine": at_least(0.999),
        "tokens equal": at_least(0.999),
        "decoder PSNR dB": at_least(40),
        "8-bit difference": Gate(8),
        "flip gap": Gate(0.25),
        "picture PSNR dB": at_least(30),
        "picture SSIM": at_least(0.9),
    },
    "int8-weight-only": {
        "relative error": Gate(0.06),
        "sampling codes": Gate(1e-2),
        "transition f_hat": Gate(1e-2),
        "transition x": Gate(1e-2),
        "residual_step prediction": Gate(0.15),
        "residual_step x": Gate(0.2),
        "residual_step x, first step": Gate(0.6),
        "logits cosine": at_least(0.99),
        "logits KL": Gate(0.04),
        "tokens equal": at_least(0.999),
        "decoder PSNR dB": at_least(40),
        "8-bit difference": Gate(32),
        "flip gap": Gate(1.0),
        "picture PSNR dB": at_least(30),
        "picture SSIM": at_least(0.9),
    },
    "int8-w8a8": _ACTIVATIONS_OF_8_BITS,
    "fp8": _ACTIVATIONS_OF_8_BITS | {"logits cosine": at_least(0.9), "logits KL": Gate(0.3)},
}
"""Engines against the reference, by precision. "relative error" holds for every tensor that has no entry of its own:

`residual_step x`: the first steps multiply the prediction, and its rounding, by √(1/ᾱ), up to some thousands.
`residual_step x, first step`: there √ᾱ is 5e-5, so that clip((x − eps) / √ᾱ, −1, 1) is −1 or 1 nearly everywhere, and where
eps is within its rounding of x that rounding decides which. In fp16 that flips a few elements: 0.019 measured on a CPU,
which computes in float32 between the roundings; 0.079 with the fused engine and 0.090 with ONNX Runtime on an H200, for the
bundled model of the day before. A last layer that is 1 % too large gives 0.23. Faults below the rounding of fp16 (1 % of an
inner layer gives 0.085, where it is 0.002 of the prediction) are found by comparing every stored weight with the checkpoint:
none may differ.
`residual_step prediction`: at step 6 the model predicts a small noise, and what rounds every operation is further off there, as
ONNX Runtime does on a GPU: 0.014 on an H200 for the bundled model of that day, where the fused engine had 0.0024 and a CPU
0.0014. What this lets pass of the last layer, the first step's gate does not.
`decoder decoded`: some forty convolutions in a row (3.4e-5 measured at the released width in fp32).

Quantised engines: a weight of 8 bits is wrong by up to a step, 0.8 % of its channel's largest, and an activation by half of one;
the limits are two to four times what the bundled model was measured at. The residual diffusion's gates are wide, because its
last steps predict little noise: of that W8A8 is 0.09 off at step 6, and FP8 0.13.
E4M3 has 4 significant bits: FP8 engines are furthest off, and are judged by what they draw. Sampling and transition stay float,
and their gates are those of fp16.

`flip gap`: where a free-running engine first chooses another token, how far apart the two candidates were for the
reference (noise included). A flip is only accepted as a tie broken the other way; after one, the picture's own gates
no longer apply, because the run has taken another branch.
"""

QUANTIZATION: dict[str, dict[str, Gate]] = {
    "int8-weight-only": {"logits KL": Gate(0.004), "logits cosine": at_least(0.995), "picture PSNR dB": at_least(40)},
    "int8-w8a8": {"logits KL": Gate(0.01), "logits cosine": at_least(0.995), "picture PSNR dB": at_least(38)},
    "fp8": {"logits KL": Gate(0.1), "logits cosine": at_least(0.95), "picture PSNR dB": at_least(36)},
}
"""What a quantised model may differ from the float engines that it is made of, while `calibrate` chooses what to quantise:

"logits KL": mean over the tokens of any scale, nats. "logits cosine": smallest of any token. "picture PSNR dB": of 8-bit
pictures that follow from the same tokens. Tighter than the gates above, because a few prompts choose for all.
"""
