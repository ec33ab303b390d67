"""What a person starts and stays in."""

import stages  # noqa: F401  (switches network and telemetry off before anything else is imported)
