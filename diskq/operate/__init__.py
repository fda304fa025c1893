"""What operators do: settings, positions, dead letters, schedules, purges, numbers."""
