"""How bytes travel: connections, proxies, certificates, and what their trouble means."""
