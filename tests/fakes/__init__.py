"""The one set of fakes that all tests share."""
