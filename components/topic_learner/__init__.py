"""Cover, title and tags of videos to topics."""
