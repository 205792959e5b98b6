"""One module per peer; each holds one ``Contender`` and everything that peer needs to run."""
