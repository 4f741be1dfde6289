"""`pose2seg selftest`: the promises of live runs, provoked on this machine; `servers` are what breaks."""
