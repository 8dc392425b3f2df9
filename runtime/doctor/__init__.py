"""What this machine has, what every backend lacks on it, and the command that mends it."""

from .report import Report, diagnose

__all__ = ["Report", "diagnose"]
