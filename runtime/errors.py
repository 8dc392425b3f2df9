"""The errors a user can meet. Each message names the value, what was expected and the remedy.

Knows nothing of what raises them; the command line turns any of them into one line and its exit code.
"""

from __future__ import annotations


class HartError(Exception):
    """Base of every error that hart-edge raises on purpose.

    Args:
        message: what is wrong, with the offending value and what was expected.
        hint: the remedy, in one sentence; printed after the message.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class InputError(HartError, ValueError):
    """A prompt, an option or a path that cannot be used as given."""


class BundleError(HartError):
    """A bundle folder that is missing, incomplete, damaged, foreign or uncertified."""


class EngineError(HartError):
    """An engine that does not load, or a tensor that does not fit its binding."""


class CheckpointError(HartError):
    """A checkpoint whose files, keys, shapes or configuration cannot be used."""


class MissingPackageError(HartError):
    """A feature whose optional packages are not installed."""


class KernelError(HartError):
    """A CUDA kernel that does not compile, or a launch that does not fit the card."""


class GpuError(HartError):
    """A GPU, its driver or a use of either that cannot work; the message names the remedy."""


class GpuMemoryError(GpuError):
    """The GPU has too little free memory; a smaller request may fit."""


class GpuLostError(GpuError):
    """The context is broken (illegal address, hang, removed card): every later call of this process to this GPU fails."""


class HartWarning(UserWarning):
    """Something the user should know that does not stop the work."""
