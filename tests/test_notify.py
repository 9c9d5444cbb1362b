"""Words to systemd and to the kubelet: over real sockets and files, and never an exception."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from stager.node.notify import sd_notify, write_termination_log


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = str(tmp_path / "notify") if request.param == "path" else f"@stager-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(name.replace("@", "\0", 1))
        server.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield server


class TestSdNotify:
    def test_ready_and_status_in_one_message(self, systemd: socket.socket):
        assert sd_notify(ready=True, status="starting `vllm`")
        assert systemd.recv(4096) == b"READY=1\nSTATUS=starting `vllm`"

    def test_one_of_them(self, systemd: socket.socket):
        assert sd_notify(ready=True)
        assert systemd.recv(4096) == b"READY=1"
        assert sd_notify(status="x")
        assert systemd.recv(4096) == b"STATUS=x"
        assert not sd_notify()

    def test_a_status_cannot_smuggle_an_assignment(self, systemd: socket.socket):
        assert sd_notify(status="model\nREADY=1\udcff")
        assert systemd.recv(4096) == b"STATUS=model READY=1\\udcff"

    def test_a_deaf_supervisor_holds_nothing_up(self, systemd: socket.socket):
        begin = time.monotonic()
        while sd_notify(status="x" * 1000):
            assert time.monotonic() - begin < 20
        assert time.monotonic() - begin < 5

    @pytest.mark.parametrize(
        "address", [None, "", "relative", "/no/such/socket", "@nobody", "/" + "x" * 200, "vsock:2:1"]
    )
    def test_nobody_there(self, address: str | None, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        if address is not None:
            monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert not sd_notify(ready=True, status="x")


class TestTerminationLog:
    def test_replaces_what_was_there(self, tmp_path: Path):
        log = tmp_path / "log"
        log.write_text("something longer than the text")
        assert write_termination_log("warm: 64 GiB resident", str(log))
        assert log.read_text() == "warm: 64 GiB resident"

    def test_is_never_created(self, tmp_path: Path):
        assert not write_termination_log("text", str(tmp_path / "log"))
        assert not (tmp_path / "log").exists()

    @pytest.mark.parametrize("lead", range(4))
    def test_is_cut_between_characters(self, lead: int, tmp_path: Path):
        log = tmp_path / "log"
        log.touch()
        assert write_termination_log("a" * lead + "€" * 3000, str(log))
        assert log.read_text().rstrip("€") == "a" * lead
        assert 4093 < log.stat().st_size <= 4096

    def test_undecodable_names_are_escaped(self, tmp_path: Path):
        log = tmp_path / "log"
        log.touch()
        assert write_termination_log("od\udcffd", str(log))
        assert log.read_text() == "od\\udcffd"

    def test_what_cannot_be_written_is_left_alone(self, tmp_path: Path):
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path, tmp_path / "fifo", Path("/dev/full")):
            assert not write_termination_log("text", str(path))
