"""What a training leaves, and how it goes on."""
