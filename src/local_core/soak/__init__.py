"""Endurance: the component on the local core, with real devices, random faults and kills."""
