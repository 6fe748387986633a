"""Disassociates client devices from their Greengrass core device once they are gone."""

__version__ = "0.2.0"
