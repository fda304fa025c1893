"""Harnesses that kill, stop and interrupt the processes of a store, and judge what came of it."""
