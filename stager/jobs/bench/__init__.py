"""`stager bench`: loaders and commands as processes, cold starts that are proven, runs that are thrown away, and the report."""
