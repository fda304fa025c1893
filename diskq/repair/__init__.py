"""Whether a store is sound, and what to do when it is not: verify, backup, salvage."""
