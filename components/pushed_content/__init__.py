"""Takes up what another pipeline has learned of videos."""
