"""What samples and models are worth: fidelity, memorisation, speed and size."""
