"""Rules: records of the log become records of your topics."""

from core.rules.checks import ConfigError
from core.rules.rule import (
    Drop,
    Outcome,
    Output,
    Rule,
    RuleAuth,
    RuleConfig,
    RuleHeader,
    RuleSet,
    RuleSource,
    RuleTarget,
    Sasl,
)

__all__ = [
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
]
