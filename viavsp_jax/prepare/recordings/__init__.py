"""Recordings of any kind: what they show and what they sound like, the faces in them, and mouth crops of those."""

from viavsp_jax.prepare.recordings.recording import Recording, read_recording

__all__ = ["Recording", "read_recording"]
