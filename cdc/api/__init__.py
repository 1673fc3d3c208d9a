"""The HTTP face: metrics, health, status page, search and sync, in a thread and event loop of its own."""
