"""What the tests of reading share: a configuration that is right, and a way to read a text as a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dist_train.config import Config, load_config


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Reads a text as the file x.yaml, with overrides."""
    monkeypatch.chdir(tmp_path)

    def read_text(text: str | bytes, *overrides: str) -> Config:
        Path("x.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return load_config("x.yaml", overrides)

    return read_text
