"""Exports a student: as a file that runs without PyTorch, with a card that says what it is."""
