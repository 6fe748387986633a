"""The command line on the core device; it reads the store."""
