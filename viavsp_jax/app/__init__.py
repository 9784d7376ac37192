"""From a file with a speaking face to text: see viavsp_jax/transcribe.py for the command and the Python API."""
