"""What an export holds beside weights: the code that transformers loads it with. There, it imports nothing of this project."""
