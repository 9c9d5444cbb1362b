"""A small model hub of our own: ModelScope and Hugging Face on one address, their CDN on another, over real sockets.

It is an independent witness: it shares nothing with the product, and both SDKs can download from it. ``python -m tests.hublab``
serves it alone; `tests.hublab.fixtures` gives it to tests.
"""
