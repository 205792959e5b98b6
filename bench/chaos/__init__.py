"""Chaos: real processes are killed, stopped and starved while clients send checked work."""
