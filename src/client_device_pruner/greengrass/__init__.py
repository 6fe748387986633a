"""The edge to Greengrass: one connection, one subscription, the probe."""
