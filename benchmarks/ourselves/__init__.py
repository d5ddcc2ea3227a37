"""This project by itself: how time and memory grow, where they go."""
