"""What the component takes, against a bare SDK subscriber in the same run: memory, processor time, bytes written."""
