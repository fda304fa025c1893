"""The words that every layer uses: errors, limits, clocks, checks, the values that users see."""
