"""The rules of all decoders of stored bytes: wrong bytes are Corrupt, and never another error.

A file may come from anybody, and its checksums may be right. So whatever a key or a row is, taking
it apart either works or raises Corrupt.
"""

from __future__ import annotations

from struct import Struct, error
from typing import Any

from ..base.errors import WAY_OUT, Corrupt

WRONG = error, IndexError, ValueError, OverflowError  # what decoding wrong bytes raises


def damaged(what: str) -> Corrupt:
    """The error for bytes that cannot be decoded."""
    return Corrupt(f"{what} cannot be decoded; run 'diskq verify', then {WAY_OUT}")


def unpacked(layout: Struct, data: bytes) -> tuple[Any, ...]:
    """The numbers in a key, or in a row that has nothing else. Raises: Corrupt."""
    try:
        return layout.unpack(data)
    except error:
        raise damaged(f"row {data[:32]!r}") from None


def decode_name(data: bytes) -> str:
    """The name of a topic or group. Raises: Corrupt."""
    try:
        return data.decode()
    except ValueError:
        raise damaged(f"the name {data[:128]!r}") from None
