"""Services of Linux: files, locks, wake-ups, the shared file of a store, child processes."""
