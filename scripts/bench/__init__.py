"""The parts of scripts/bench-warm: data, cold starts, timed processes, rivals, rows."""
