"""dfd: a notebook-driven laboratory for GAN-image forensics."""

__version__ = "0.1.0"
