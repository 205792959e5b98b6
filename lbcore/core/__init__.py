"""The pure core: values, bytes and time in; values and bytes out.

Nothing here opens a socket, reads a clock, starts a process, writes a log or draws a random number
that it was not handed.  Three drivers run it: real sockets (``lbcore.shell``), simulation, and
tests.
"""
