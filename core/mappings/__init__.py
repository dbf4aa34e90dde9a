"""Mappings: records of your topics become messages on channels."""

from core.mappings.mapping import Delayed, Failed, Mapped, Mapping, MappingConfig
from core.mappings.schemas import Schemas
from core.mappings.steering import Seek, Steering, Wanted
from core.mappings.template import SourceRecord

__all__ = ["Delayed", "Failed", "Mapped", "Mapping", "MappingConfig", "Schemas", "Seek", "SourceRecord", "Steering", "Wanted"]
