"""From a device that is gone to one that is disassociated, and back."""
