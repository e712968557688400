"""What a student takes along: a file that runs without PyTorch, and a card that says what it is."""
