"""The runtime that hosts everything: bus core, embedded server, command line, replay."""
