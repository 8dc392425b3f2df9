"""Judges pictures of the shapes data set: what the prompt says, reconstruction, and distance to real pictures.

Reads pictures without a neural network; see `hart_edge.export.shapes.judge`. `hart-edge eval` scores one setting,
`python -m hart_edge.export.evaluate.table` a table of them.
"""

from .pictures import engine_painter, open_reference, reference_painter
from .prompts import held_out_prompts, own_prompts
from .real import RealPictures
from .reconstruction import reconstruct
from .run import Evaluation, evaluate
from .sheet import write_sheet

__all__ = [
    "Evaluation",
    "RealPictures",
    "engine_painter",
    "evaluate",
    "held_out_prompts",
    "open_reference",
    "own_prompts",
    "reconstruct",
    "reference_painter",
    "write_sheet",
]
