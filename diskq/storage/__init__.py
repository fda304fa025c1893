"""One LMDB environment for each store and process: opening, reading, committing, forking."""
