"""Other people's teachers in, students out."""
