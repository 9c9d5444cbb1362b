"""What `stager bench` plans, counts and shows: rounds, statistics, tables, charts and the page of a report. Pure."""
