"""The parts of a bundle's weights that come and go together: planned from the file's header, then put on the device whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ..bundle import Bundle
from .context import FusedContext
from .upload import Uploader
from .weights import DeviceWeights, Weights, WeightsPlan

T = TypeVar("T")


class PartPlan(Generic[T]):
    """What a part takes; no tensor is read.

    Args:
        load: takes everything from the weights, always in the same order.

    Attributes:
        sizes: the part with offsets for addresses: for the shapes of its buffers.
        bytes: of device memory, one allocation.
        used: names of the stored tensors that it takes; fp8: of those among them that are FP8.
    """

    def __init__(self, name: str, bundle: Bundle, load: Callable[[Weights], T]) -> None:
        self.name, self.bundle, self.load = name, bundle, load
        plan = WeightsPlan(bundle)
        self.sizes = load(plan)
        self.bytes, self.used, self.fp8 = plan.bytes, plan.used, plan.fp8


class Part(Generic[T]):
    """A part on the device, from the first `get` to `close`; `get` after that reads it again."""

    def __init__(self, plan: PartPlan[T], context: FusedContext) -> None:
        self.plan, self._context = plan, context
        self._weights: DeviceWeights | None = None
        self._value: T = plan.sizes

    def get(self) -> T:
        """Load it unless it is there; GpuMemoryError when it does not fit."""
        if self._weights is None:
            try:
                with Uploader(self._context.device) as uploader:
                    self.begin(uploader)
            except BaseException:
                self.close()
                raise
            self.settle()
        return self._value

    def begin(self, uploader: Uploader) -> None:
        """Take the memory and have everything copied; `settle` when the uploader has ended, `close` when it has failed."""
        plan, context = self.plan, self._context
        what = f"weights of the {plan.name}"
        self._weights = DeviceWeights(plan.bundle, context, plan.bytes, what, uploader)
        self._value = plan.load(self._weights)

    def settle(self) -> None:
        """What is asked for from now on is copied at once."""
        if self._weights is not None:
            self._weights.settle()

    def close(self) -> None:
        """Free the device memory; nothing may use it any more. Idempotent."""
        if self._weights is not None:
            self._context.wait_to_free()
            self._weights.close()
        self._weights, self._value = None, self.plan.sizes
