"""Sites in virtual time around the whole component, with the truth beside it: how many of the dead go, and who else."""
