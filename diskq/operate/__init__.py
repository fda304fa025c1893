"""Verbs of operators: settings, positions, dead letters, schedules, purges, numbers."""
