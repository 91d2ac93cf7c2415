"""A line: calls from one process of a machine to another, without Ray in between.

For the two calls that every gradient takes: a member's to the coordinator, and the coordinator's to a shard.
Through Ray a call crosses several threads at either end, and so costs many times what such a small message
does. A line promises less: when it breaks, nobody knows whether the last call happened, or whether the other
side lives. Its user then asks again through Ray, which knows; so only methods that recognise a call that
comes twice are called by line.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dist_train.errors import TrainingError
from dist_train.runtime.remote import Answer, failure, unwrap

_LENGTH = struct.Struct("!I")
_CREDENTIALS = struct.Struct("3i")  # process, user, group: unix(7)

Method = Callable[..., Any]


class LineBroken(TrainingError):
    """There is no line, or it broke before the answer was in."""


@dataclass(frozen=True)
class Listener:
    """Takes calls at ``address`` until it is closed; lines that are open stay open."""

    address: str
    server: asyncio.Server

    def close(self) -> None:
        self.server.close()


async def listen(methods: Mapping[str, Method]) -> Listener:
    """Let processes of this user and machine call ``methods`` in the running event loop.

    Methods that return an awaitable overlap, others run one at a time, as an actor's do.
    """
    # A name in the kernel's own namespace goes with the process: no file can be left behind.
    address = f"\0dist-train-{secrets.token_hex(16)}"
    own = socket.socket(socket.AF_UNIX)
    own.bind(address)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            _admit(writer.get_extra_info("socket"))
            while True:
                method, arguments = pickle.loads(await _read(reader))
                writer.write(_frame(await _answer(methods[method], arguments)))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return Listener(address, await asyncio.start_unix_server(serve, sock=own))


class Line:
    """A caller's end, for a thread that may wait. LineBroken when nobody is at ``address``."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(address)
            _admit(self._socket)
        except OSError as error:
            self._socket.close()
            raise LineBroken(f"nobody is on the line ({error.strerror})") from error
        self._answers = self._socket.makefile("rb")

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call and wait for the answer; raises what the method raised, LineBroken when there is none."""
        try:
            self._socket.sendall(_frame((method, arguments)))
            answer: Answer = pickle.loads(self._exactly(*_LENGTH.unpack(self._exactly(_LENGTH.size))))
        except (OSError, EOFError) as error:
            raise LineBroken(f"{method} was not answered") from error
        return unwrap(answer)

    def _exactly(self, count: int) -> bytes:
        found = self._answers.read(count)
        if len(found) < count:
            raise EOFError
        return found

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


class AsyncLine:
    """A caller's end in an event loop, for one call at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: str) -> AsyncLine:
        """Raises LineBroken when nobody is at ``address``."""
        try:
            reader, writer = await asyncio.open_unix_connection(address)
        except OSError as error:
            raise LineBroken(f"nobody is on the line ({error.strerror})") from error
        line = cls(reader, writer)
        try:
            _admit(writer.get_extra_info("socket"))
        except PermissionError as error:
            line.close()
            raise LineBroken(str(error)) from error
        return line

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Like ``Line.ask``."""
        try:
            self._writer.write(_frame((method, arguments)))
            answer: Answer = pickle.loads(await _read(self._reader))
        except (OSError, asyncio.IncompleteReadError) as error:
            raise LineBroken(f"{method} was not answered") from error
        except asyncio.CancelledError:
            # The answer that is still to come must not be taken for another's.
            self.close()
            raise
        return unwrap(answer)

    def close(self) -> None:
        self._writer.close()


async def _answer(method: Method, arguments: tuple[Any, ...]) -> Answer:
    try:
        result = method(*arguments)
        return True, await result if isinstance(result, Awaitable) else result
    except Exception as error:
        return failure(error)


def _frame(content: Any) -> bytes:
    packed = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(packed)) + packed


async def _read(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(*_LENGTH.unpack(await reader.readexactly(_LENGTH.size)))


def _admit(peer: socket.socket) -> None:
    """Raises PermissionError unless the other end is this user's: pickles are read from nobody else."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    if _CREDENTIALS.unpack(credentials)[1] != os.getuid():
        raise PermissionError("the other end of the line is another user")
