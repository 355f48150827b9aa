"""The test kit for petals; its public name is ``petalbus.testing``."""
