"""One nn.Module per engine, built from the reference: the graphs that are exported.

Weights stand in the layout that the graph multiplies with (matrices [in, out]), so every parameter becomes one
initializer of the same name and `state_dict()` is exactly what the bundle's weights file must hold. Work that is the
same for every image is done here, once: level embeddings, the unconditional rows, the system prompt's keys and values.
"""

from .context import ContextEntry
from .decoder import PictureDecoder
from .residual import ResidualCondition, ResidualStep
from .text import TextEncoder
from .transformer import Transformer
from .transition import Transition

__all__ = ["ContextEntry", "PictureDecoder", "ResidualCondition", "ResidualStep", "TextEncoder", "Transformer", "Transition"]
