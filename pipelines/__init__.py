"""When and where: one file a verb. The only package that imports apache_beam."""

__version__ = "0.1.0"
