"""Fashion-MNIST with captions: ten kinds of clothing, for experiments that need little time."""
