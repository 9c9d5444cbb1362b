"""The serving node: its memory, mounts, page cache and files. Adapters make one attempt and translate errors once."""
