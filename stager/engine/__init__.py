"""How a job lives: lanes, pace, signals, deadline, reports."""
