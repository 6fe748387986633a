"""Coverage-guided fuzzing of every decoder and of the configuration; run as `python -m local_core.fuzz`."""
