"""One module per command: parse, call one job, choose a reporter. The only place that knows click."""


def main() -> None:
    """The ``stager`` command."""
