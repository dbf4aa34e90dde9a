from __future__ import annotations

from hypothesis import settings

# The deadline measures the machine as much as the code: a shared runner would fail at random.
settings.register_profile("tidegate", deadline=None)
settings.load_profile("tidegate")
