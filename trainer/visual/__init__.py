"""Networks that look at frames: clips of pixels in, one vector a time step out."""
