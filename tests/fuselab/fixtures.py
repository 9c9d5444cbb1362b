"""Filled by the FUSE lab."""
