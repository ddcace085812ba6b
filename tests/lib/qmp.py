# SPDX-License-Identifier: BSD-2-Clause
"""A small synchronous QMP client, and the raw socket below it for what is no QMP."""

import json
import os
import socket
from pathlib import Path
from typing import Any, Self

SECONDS = float(os.environ.get("VALE_TEST_SECONDS", "20"))


class QmpError(Exception):
    """The server answered with an error object."""

    def __init__(self, error: dict[str, str]) -> None:
        super().__init__(f"{error['class']}: {error['desc']}")
        self.kind, self.desc = error["class"], error["desc"]


class RawQmp:
    """A connection that sends bytes and receives lines."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))  # blocks while valed's backlog is full
        self.sock.settimeout(SECONDS)
        self._lines = self.sock.makefile("rb")

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def line(self) -> Any:
        """The next object, None at the end."""
        text = self._lines.readline()
        return json.loads(text) if text else None

    def close(self) -> None:
        self._lines.close()
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Qmp(RawQmp):
    """A client that has negotiated; events that come between answers are kept."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.greeting: dict[str, Any] = self.line()["QMP"]
        self.events: list[dict[str, Any]] = []
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """The result of a command; QmpError when it fails. Arguments are spelled with dashes."""
        return self.call(command, {k.replace("_", "-"): v for k, v in arguments.items()})

    def call(self, command: str, arguments: dict[str, Any]) -> Any:
        """The same, arguments spelled as they are."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self.send(json.dumps(request).encode() + b"\n")
        while True:
            answer = self.line()
            if answer is None:
                raise ConnectionResetError("qmp.sock: hung up")
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(answer["error"])
            else:
                return answer["return"]

    def event(self) -> tuple[str, dict[str, Any]]:
        """The next event: its name and data (QEMU leaves out what is empty)."""
        event = self.events.pop(0) if self.events else self.line()
        assert event is not None, "qmp.sock: hung up while waiting for an event"
        return event["event"], event.get("data", {})

    def ports(self, switch: str | None = None) -> dict[str, dict[str, Any]]:
        """query-ports, by name."""
        arguments = {"switch": switch} if switch else {}
        return {port["name"]: port for port in self.execute("query-ports", **arguments)}

    def port(self, name: str) -> dict[str, Any]:
        port: dict[str, Any] = self.ports(name.partition(":")[0])[name]
        return port
