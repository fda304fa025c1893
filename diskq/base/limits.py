"""Every limit of diskq, named, with its unit. Tests try each at -1, 0 and +1."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB
PAGE_BYTES = 4096

# One message.
MAX_BODY_BYTES = 16 * MIB
MAX_KEY_BYTES = 1024
MAX_HEADERS = 64
MAX_HEADERS_BYTES = 64 * KIB - 1  # all names and values of a message together

# One call: small enough that no write transaction holds other writers up for long.
MAX_PUT_MESSAGES = 100_000
MAX_PUT_BYTES = 256 * MIB
MAX_GET_MESSAGES = 10_000
MAX_EXPIRED_LEASES = 64  # lease rows past their deadline that one get takes back
MAX_DEAD_OWNERS_LEASES = 1_000  # lease rows of dead processes that one get takes back
MAX_REDRIVE_MESSAGES = 1_000  # dead letters that one transaction gives back
MAX_TRIM_SEGMENTS = 1_000  # segments that one transaction deletes
MAX_TRIM_RUNS = 1_000  # runs of unsettled messages between which one transaction looks for them
MAX_PURGE_SEGMENTS = 100  # segments that one transaction reads to purge a key

MAX_DEDUP_BYTES = 1024  # of a dedup_id
MAX_FORGOTTEN_IDS = 1_000  # old ids that one transaction removes, and one more for each new id
MAX_PRIORITIES = 10
MAX_DUE_MESSAGES = 1_000  # scheduled messages that one transaction gives their offsets
MAX_COPIED_MESSAGES = 1_000  # messages that one get copies out of the log: parked, expired

# Names of topics, groups and consumers.
MAX_NAME_BYTES = 128

# Settings of a group.
MIN_LEASE_SECONDS = 0.001
MAX_LEASE_SECONDS = 7 * 86400.0
MAX_DELIVERIES = 10_000
MAX_DELAY_SECONDS = 10 * 365 * 86400.0
MAX_IN_FLIGHT = 1_000_000

# Settings of a topic, and options of a put.
MIN_AGE_SECONDS = 0.001
MAX_TOPIC_MESSAGES = 2**48
MAX_DEDUP_SECONDS = 30 * 86400.0

# The history of a message that failed.
MAX_HISTORY = 32  # the latest entries
MAX_HISTORY_BYTES = 4 * KIB - 256  # a small message and its history then fit in one page
SHORT_HISTORY_BYTES = 256  # while room is short; entries stay, their texts are cut
MAX_ERROR_CHARS = 2_000

# The store.
SEGMENT_BYTES = 4 * PAGE_BYTES - 16  # fills four LMDB overflow pages exactly
MAP_BYTES = (TIB, 64 * GIB, 4 * GIB, 256 * MIB)  # address space asked for, in this order
MAX_READERS = 1024
MAX_LOG_DATABASES = 96  # each topic with an id below that has a separate log database
MIN_STORE_BYTES = 4 * MIB
MIN_RESERVE_BYTES = 512 * KIB  # room that only settling, trim and purge may use ...
MAX_RESERVE_BYTES = 64 * MIB  # ... a sixteenth of the store, between these two
BUSY_SECONDS = 30.0  # how long a call waits for the write lock, unless told otherwise
NOWAIT_SECONDS = 0.1  # ... in a call that must not wait
CLOSE_SECONDS = 1.0  # ... and in the close of a consumer
FORK_SECONDS = 10.0  # how long a fork waits for what other threads are doing
MAX_SHARED_COMMIT = 256  # operations of one process that share a commit
TRIM_MESSAGES = 128  # acks after which a group looks for passed segments
TRIM_BYTES = 128 * KIB  # ... or acked bytes

# Live consumers of a store, and how a blocked get waits.
MAX_CONSUMERS = 1024
WAKE_WORDS = 4096
LOOK_SECONDS = 0.05  # how often a get looks whether a holder of leases died
HAND_OVER_SECONDS = 1.0  # how long a thread that got a suspect may take to hand it to another
WAIT_SECONDS = 1.0  # the longest sleep of a blocked get
