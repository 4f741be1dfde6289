"""`pose2seg bench`: frames a second of this machine; `measure` measures, `command` shows."""
