"""Files: written whole or not at all, read without unpickling; and what ships with the code."""
