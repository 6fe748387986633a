"""Bugs that are put into the component on purpose, to see that they are caught."""
