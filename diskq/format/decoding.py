"""The rules of all decoders of stored bytes: wrong bytes raise Corrupt, and never another error.

A file may come from anywhere, and its checksums may be right. So whatever a key or a row is,
decoding it either works or raises Corrupt.
"""

from __future__ import annotations

from struct import Struct, error
from typing import Any

from ..base.errors import WAY_OUT, Corrupt

WRONG = error, IndexError, ValueError, OverflowError  # raised by decoding wrong bytes


def damaged(what: str) -> Corrupt:
    """The error for bytes that cannot be decoded."""
    return Corrupt(f"{what} cannot be decoded; run 'diskq verify', then {WAY_OUT}")


def unpacked(layout: Struct, data: bytes) -> tuple[Any, ...]:
    """The numbers of a key, or of a row that consists of numbers only. Raises: Corrupt."""
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
