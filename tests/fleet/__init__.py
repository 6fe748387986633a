"""The calls of a whole fleet's core devices to the cloud in virtual time, against the account's quota."""
