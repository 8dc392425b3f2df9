"""The comparison as one HTML file: no network, no other files; pictures are inside."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

from ..evaluate.pictures import Pixels
from ..evaluate.run import CATEGORIES
from . import plots
from .facts import REFERENCE
from .pictures import Drawings, difference

TEMPLATE = "report.html.j2"
THUMBNAIL, QUALITY = 128, 82


def render(facts: Mapping[str, Any], drawings: Drawings, grid: int = 6) -> str:
    """The page.

    Args:
        facts: of `compare`.
        drawings: of the same run.
        grid: prompts whose pictures are shown.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=select_autoescape(["j2"]), trim_blocks=True
    )
    environment.filters |= {"mib": _mib, "figure": _figure, "percent": _percent}
    bundles = facts["bundles"]
    contenders = {REFERENCE: facts["reference"], **bundles}
    timed = {name: row["time"] for name, row in contenders.items() if row["time"]}
    page: str = environment.get_template(TEMPLATE).render(
        facts=facts,
        bundles=bundles,
        first=next(iter(bundles)),
        reference=REFERENCE,
        timed=timed,
        stages=list(dict.fromkeys(stage for time in timed.values() for stage in time["stages"])),
        categories=CATEGORIES,
        curves=_inline(plots.curves(bundles), "png"),
        times=_inline(plots.times(timed), "png") if timed else None,
        rows=_rows(facts, drawings, grid),
        gates=_gates(bundles),
    )
    return page


def _rows(facts: Mapping[str, Any], drawings: Drawings, grid: int) -> list[dict[str, Any]]:
    """Prompt, the reference's picture, and every bundle's with its difference."""
    rows = []
    for number, prompt in enumerate(facts["prompts"][:grid]):
        reference = drawings.reference[number]
        cells = [
            {"name": name, "picture": _thumbnail(own[number]), "difference": _thumbnail(difference(own[number], reference))}
            for name, own in drawings.pictures.items()
        ]
        rows.append({"prompt": prompt, "seed": number + 1, "reference": _thumbnail(reference), "cells": cells})
    return rows


def _gates(bundles: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every gated figure as a row, with each bundle's worst value beside its limit."""
    keys = dict.fromkeys(_key(check) for row in bundles.values() for check in row["gates"] if check["gate"] is not None)
    rows = []
    for key in keys:
        cells = [next((check for check in row["gates"] if _key(check) == key), None) for row in bundles.values()]
        rows.append({"stage": key[0], "mode": key[1], "metric": key[2], "cells": cells})
    return rows


def _key(check: Mapping[str, Any]) -> tuple[str, str, str]:
    return check["stage"], check["mode"], check["metric"]


def _thumbnail(pixels: Pixels) -> Markup:
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY)
    return _inline(buffer.getvalue(), "jpeg")


def _inline(data: bytes, kind: str) -> Markup:
    return Markup(f"data:image/{kind};base64,{b64encode(data).decode()}")


def _mib(size: float | None) -> str:
    return "–" if size is None else f"{size / 2**20:.1f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _figure(value: float | str | None) -> str:
    """Four digits, whole numbers as they are; what is not finite came as a word."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.4g}"
