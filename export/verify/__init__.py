"""Verification: recording → reference → engines, stage by stage, with a gate for every stage."""

from .certificate import write_certificate
from .checks import Check, Report
from .run import PROMPTS, verify_bundle, verify_recording

__all__ = ["PROMPTS", "Check", "Report", "verify_bundle", "verify_recording", "write_certificate"]
