"""The embedded local core: a development core device for the component, its demo and its tests."""
