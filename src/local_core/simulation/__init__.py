"""A seeded simulation of whole sites in virtual time, around the real component; never shipped."""
