"""What the component tells: events, log, status."""
