"""The classifier over every clip: content vectors of videos and of their frames."""
