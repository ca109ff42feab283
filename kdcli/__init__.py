"""kdcli: distil large pretrained vision models into small ones."""

__version__ = "0.1.0"
