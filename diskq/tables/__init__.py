"""One module for each kind of row, inside a transaction."""
