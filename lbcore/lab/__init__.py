"""Policies compared in virtual time: scenarios, their traffic, and what each policy makes of it.

The broker is the real one, the very same core as in production; the workers are models of a speed
that changes.  Pure like the core: everything follows from a scenario and a seed.
"""
