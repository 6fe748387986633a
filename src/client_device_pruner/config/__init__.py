"""What a deployment configures, and what the bridge and EMQX must carry."""
