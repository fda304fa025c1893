"""The rules: what a put, a get and a settle do to the rows."""
