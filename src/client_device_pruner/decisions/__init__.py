"""The decisions: pure functions of the settings, what is stored, and now."""
