"""The rows of `state` and `held`, and their keys. Pure bytes to values and back.

Bytes come from a file that any program may have written: bytes that cannot be decoded raise
Corrupt, and no other error.

Integers are big-endian, so that plain byte order sorts keys; `docs/reference/format.md` has every
field. To change the format:

1. raise FORMAT_VERSION;  2. teach the decoders both versions, or refuse the old one in engine.py;
3. keep a store written by the last release under tests/ and open it there;  4. amend format.md.

    'M'                                    the store
    'T' topic u32                          a topic: counters, next offset per lane, configuration
    'N' name                               id of a topic
    'G' group u32                          a group: counters, cursor per lane, configuration
    'H' topic u32, name                    id of a group
    'L' group u32, deadline u64, first u64 a lease over a run of offsets; deadline 0: given back
    'D' group u32, due_ns u64, offset u64  a waiting message's next delivery; SOLO: it is a suspect
    'K' group u32, key hash u64            the offset that has this key: leased, ready or waiting
    'O' topic u32, first u64               a gap in a topic's log: the offset where it stops
    'X' kind u8, id u32                    a deleted topic or group whose rows are being removed

    held, messages that were copied out of the log for one group:
    group u32, kind u8, offset u64             waiting, leased again or dead
    group u32, PARK u8, key hash u64, offset u64   parked: an earlier message has their key

    schedule: topic u32, due_ns u64, n u64     a message without an offset yet
    dedup: topic u32, bucket u64, digest       the receipt of a put with a dedup_id
"""

from __future__ import annotations

from struct import Struct
from zlib import crc32

from ..base.errors import WAY_OUT, Corrupt

FORMAT_VERSION = 2
MAX_RUN = 1 << 24  # messages of a lease: one commit has no more tokens

U16, U32, U64 = Struct(">H"), Struct(">I"), Struct(">Q")
ID_KEY = Struct(">cI")  # a prefix of `state`, and a topic or group
TIME_KEY = Struct(">cIQQ")  # lease and due rows: prefix, group, time, offset
HELD_KEY = Struct(">IBQ")
PARK_KEY = Struct(">IBQQ")
SCHEDULE_KEY = Struct(">IQQ")
DEDUP_KEY = Struct(">IQ16s")
KEY_KEY = Struct(">cIQ")  # of the row that says which message has a key
GAP_KEY = Struct(">cIQ")
DELETED_KEY = Struct(">cBI")  # of a deleted topic or group: prefix, kind, id
META_KEY = b"M"

COPY = b"\xff" * 16  # a boot id that no machine has: the first opening of a copy voids its leases

HELD, SOLO, PREFETCHED = 1, 2, 4  # flags of a lease; SOLO of a held message too
RETURNED = 4  # flag of a held message: it was delivered, and released with a delay

LIVE, DEAD, PARK = 0, 1, 2  # kinds of keys of held messages
WAITING, BURIED, PARKED = STATES = 1, 3, 4  # their states; a leased one keeps WAITING, see held.py
DELETED_TOPIC, DELETED_GROUP = 0, 1  # kinds of the rows of what is deleted
CAUSES = ("", "nack", "reject", "expired", "crashed", "redriven", "ttl")


def checked(content: bytes) -> bytes:
    """The content of a row with messages, behind its checksum."""
    return U32.pack(crc32(content)) + content


def unchecked(data: bytes) -> bytes:
    """The inverse of `checked`. Raises: Corrupt."""
    if data[:4] != U32.pack(crc32(data[4:])):
        raise Corrupt(
            f"a message out of the log fails its checksum; run 'diskq verify', then {WAY_OUT}"
        )
    return data[4:]
