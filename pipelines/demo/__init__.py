"""DigitScenes: a small captioned data set of handwritten digits, and the scorer that reads it."""
