"""Servers, faults and data for tests and the demo; nothing here runs in production."""
