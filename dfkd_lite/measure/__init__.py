"""What is measured: a student on real images, and what can be said of it without any."""
