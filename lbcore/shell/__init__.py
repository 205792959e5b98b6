"""The shell: sockets, processes, clocks, psutil and files.  It performs; the core decides."""
