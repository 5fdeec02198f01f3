"""The databases as they are distributed, a module each, and the classes, faces and corpora of their clips."""
