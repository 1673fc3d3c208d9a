"""Decisions about work: what is dirty, what may be acknowledged, what is counted. No socket, no clock, no await."""
