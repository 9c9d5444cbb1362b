"""Where models live: the protocol, OSS, a directory, credentials, retry."""
