"""Reading and writing files: checkpoints, media, atomic replacement."""
