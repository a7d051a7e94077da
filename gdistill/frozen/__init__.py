"""The frozen networks around a latent network."""
