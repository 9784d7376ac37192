"""The code that transformers loads an export with. In an export it imports nothing of this project."""
