"""Benchmarks of the component on the local core, against a bare SDK subscriber in the same run."""
