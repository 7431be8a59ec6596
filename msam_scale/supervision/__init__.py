"""Stopping in order and never hanging: signals, launchers that are gone, a watchdog, lost ranks."""
