"""Plain classes for the tests of actors; an own module, because an actor imports it by name."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from dist_train.errors import ConfigError
from dist_train.runtime.remote import Process


class Adder:
    """Adds to a number, and remembers what."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._seen: list[int] = []

    def add(self, other: int) -> int:
        self._seen.append(other)
        return self._number + other

    async def add_later(self, other: int) -> int:
        await asyncio.sleep(0)
        return self.add(other)

    def seen(self) -> list[int]:
        return self._seen

    def refuse(self, error: Exception) -> None:
        raise error

    async def never(self) -> None:
        await asyncio.Event().wait()

    async def through(self, actor: Any, other: int) -> int:
        return int(await actor.insist("add", other))

    def sum_of(self, ref: Any) -> tuple[float, bool]:
        array = ref.fetch()
        return float(array.sum()), bool(array.flags.writeable)

    def place(self) -> Process:
        from dist_train.runtime.ray_cluster import this_process

        return this_process()

    def surroundings(self) -> tuple[str, dict[str, str]]:
        """Return the working directory, and the variables that the process was started with."""
        entries = Path("/proc/self/environ").read_bytes().decode().split("\0")
        return str(Path.cwd()), dict(entry.split("=", 1) for entry in entries if "=" in entry)

    def vanish(self) -> None:
        os._exit(3)


class Unmakeable:
    def __init__(self) -> None:
        raise ConfigError("cannot be made")
