"""Measures lb beside its peers; not part of the installed package.  Entry: ``bench/run.py``."""
