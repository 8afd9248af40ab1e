"""Composition root: command line, settings, local servers, the demo. Nothing imports it but tests."""
