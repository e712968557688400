"""Writes files whole or not at all, reads them without unpickling, finds what ships with us."""
