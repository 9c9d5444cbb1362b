"""stager: warm model files into the page cache, prove it, and open the gate for the engine."""

__version__ = "0.1.0"
