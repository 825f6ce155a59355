"""dfd: a notebook-driven laboratory for GAN-image forensics."""

__version__ = "0.2.0"
