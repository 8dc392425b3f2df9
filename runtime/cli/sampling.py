"""The flags that commands share. A sampling flag that is not given is None and leaves the model's own setting."""

from __future__ import annotations

from typing import Annotated

import typer

from ..backends import AUTO, BACKENDS

Cfg = Annotated[float | None, typer.Option(help="Guidance strength; 0 switches it off [default: the model's].")]
TopK = Annotated[int | None, typer.Option(help="Codes kept at every scale [default: the model's; as published 600, from scale 7 on 300].")]
TopP = Annotated[float | None, typer.Option(help="Nucleus kept after top-k; 0 switches it off [default: the model's].")]
Smooth = Annotated[bool | None, typer.Option("--smooth/--no-smooth", help="Mix codes by Gumbel-softmax [default: the model's].")]
DiffusionSteps = Annotated[int | None, typer.Option(help="Steps of the residual diffusion [default: the model's].")]
Residual = Annotated[bool | None, typer.Option("--residual/--no-residual", help="Add the residual diffusion [default: the model's].")]
Backend = Annotated[str, typer.Option(help=f"{AUTO} (the fastest that works here), or one of {', '.join(BACKENDS[1:])}.")]
LowVram = Annotated[bool, typer.Option("--low-vram", help="Hold only what the present phase needs on the GPU; slower (backend cuda).")]
