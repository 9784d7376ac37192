"""What an export holds beside weights: the code that transformers loads it with. It imports nothing of this project."""
