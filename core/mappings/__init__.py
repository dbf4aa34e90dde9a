"""Mappings: records of your topics become messages on channels."""

from core.mappings.mapping import Mapped, Mapping, MappingConfig, Skipped
from core.mappings.template import SourceRecord

__all__ = ["Mapped", "Mapping", "MappingConfig", "Skipped", "SourceRecord"]
