"""Rules: records of the log become records of your topics."""

from core.rules.batch import Batched, Batcher, Output
from core.rules.checks import ConfigError
from core.rules.rule import (
    Cluster,
    Drop,
    Outcome,
    Rule,
    RuleAuth,
    RuleConfig,
    RuleHeader,
    RuleSet,
    RuleSource,
    RuleTarget,
    Sasl,
    Version,
)

__all__ = [
    "Batched",
    "Batcher",
    "Cluster",
    "ConfigError",
    "Drop",
    "Outcome",
    "Output",
    "Rule",
    "RuleAuth",
    "RuleConfig",
    "RuleHeader",
    "RuleSet",
    "RuleSource",
    "RuleTarget",
    "Sasl",
    "Version",
]
