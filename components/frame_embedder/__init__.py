"""FrameEmbedder: what each candidate for a video's cover looks like."""
