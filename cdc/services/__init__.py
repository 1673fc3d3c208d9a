"""The journey of a row: intake, delivery, writing, scanning, and the engine that keeps them going."""
