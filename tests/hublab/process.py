"""The hub as a process of its own: for clients whose CPU time is looked at, and for killing it."""

from __future__ import annotations

from tests.osslab.process import ServerProcess


class HubProcess(ServerProcess):
    """``python -m tests.hublab`` with these options."""

    module = "tests.hublab"
    patience = 120.0  # it hashes what it serves first

    @property
    def token(self) -> str:
        """The token that may read all."""
        return str(self.told["token"])

    def env(self, *, token: bool | str = False) -> dict[str, str]:
        """The environment of its clients, with a token only when that is asked for."""
        return client_env(self.endpoint, self.token if token is True else token or "")


def client_env(endpoint: str, token: str = "") -> dict[str, str]:
    """What makes both SDKs, and stager, use this hub."""
    found = {"MODELSCOPE_ENDPOINT": endpoint, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    if token:
        found |= {"MODELSCOPE_API_TOKEN": token, "HF_TOKEN": token}
    return found
