"""What is measured of a student: with real images, and without any."""
