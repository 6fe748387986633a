"""What is known of the client devices: observed time, sightings, sessions, the client list."""
