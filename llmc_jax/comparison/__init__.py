"""What llmc_jax.compare measures, how it is kept, and how it is shown."""
