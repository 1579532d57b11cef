"""Each method's step in the form of its release, for ``bench.py released`` to compare with.

Written from the papers and from notes about the authors' code, in words of our own. Frozen weights
are shared with the trainer that a form is made from, what is learned is copied.
"""
