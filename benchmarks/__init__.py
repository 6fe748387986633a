"""What the component takes: memory, processor time, and how it bears a storm."""
