"""The programs that are measured, one module each, and what is known about them."""
