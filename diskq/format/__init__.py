"""Bytes to values and back: rows, segments, pages of LMDB. Pure."""
