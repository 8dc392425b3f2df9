"""What each TensorRT package builds for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hart_edge.runtime.errors import InputError
from hart_edge.runtime.trt.packages import CLASSIC, PACKAGES, RTX, TensorRtPackage

if TYPE_CHECKING:
    from hart_edge.runtime.bundle import Bundle

NATIVE = "native"  # the card of the machine that builds
PRECISIONS = ("fp16", "int8", "fp8")
"""Kinds of bundles that can be built; a bundle of one kind may say more, such as "int8-w8a8"."""

LEAST_FP8 = 89


@dataclass(frozen=True)
class BuildBackend:
    """How one package builds.

    Attributes:
        package: which one.
        targets: what an engine can be built for, in the order in which the sidecar lists them. All targets share one engine
            file. `native` alone: the package has no ahead-of-time targets, and building needs the card.
        library: file name under which its parser looks for its own library when it meets a plugin.
        ahead: an engine can carry the kernels of its plugins.
    """

    package: TensorRtPackage
    targets: tuple[str, ...]
    library: str = ""
    ahead: bool = False


BACKENDS = {
    RTX: BuildBackend(PACKAGES[RTX], ("sm75", "sm80", "sm86", "sm89", "sm120"), library="libtensorrt_rtx.so"),
    CLASSIC: BuildBackend(PACKAGES[CLASSIC], (NATIVE,), ahead=True),
}


def check_targets(backend: str, text: str | None, precision: str = "fp16") -> tuple[str, ...]:
    """ "sm89,sm75" as ("sm75", "sm89"), None as all targets that have the precision; InputError for what the backend does not build for."""
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}.")
    known = BACKENDS[backend].targets
    able = tuple(target for target in known if _has(target, precision))
    wanted = set(able if text is None else text.split(","))
    if unknown := sorted(wanted - set(known)):
        raise InputError(f"target {unknown[0]!r} is not one that {backend} builds for; expected a list of {', '.join(known)}.")
    if unable := sorted(wanted - set(able)):
        raise InputError(
            f"target {unable[0]} has no {precision}, and one engine serves all targets; expected a list of {', '.join(able)}.",
            "Name other targets with --target, or build a bundle of another precision.",
        )
    return tuple(target for target in known if target in wanted)


def check_precision(bundle: Bundle, precision: str | None) -> str:
    """The kind of the bundle, one of `PRECISIONS`; InputError for another kind than was asked for, or one that cannot be built."""
    has = bundle.manifest.precision
    kind = has.partition("-")[0]
    if precision is not None and precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} cannot be built; expected one of {', '.join(PRECISIONS)}.")
    if kind not in PRECISIONS or precision not in (None, kind):
        wanted = precision or " or ".join(PRECISIONS)
        raise InputError(
            f"bundle {bundle.root} is {has}; expected {wanted}.",
            "Export it again with `hart-edge export … --precision fp16`, or quantise that with `hart-edge calibrate`.",
        )
    if bundle.manifest.floats != "fp16":
        raise InputError(
            f"bundle {bundle.root} is {has} with {bundle.manifest.floats} floats; expected fp16.",
            "Quantise the fp16 bundle: `hart-edge calibrate FP16_BUNDLE …`.",
        )
    return kind


def _has(target: str, precision: str) -> bool:
    return precision != "fp8" or target == NATIVE or int(target.removeprefix("sm")) >= LEAST_FP8
