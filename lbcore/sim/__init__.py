"""A whole system in virtual time: the real cores, simulated processes and a simulated network.

``world`` is the clock, ``network`` the connections, ``broker_process``, ``worker_process``,
``client_process`` and ``supervisor`` the processes, each around the core that production runs.
``faults`` breaks them, ``oracles`` keeps books of its own about what was promised, ``run`` puts one
seed's run together, ``campaign`` runs many of them.  Imports ``core`` only; ``lb simulate`` calls.
"""
