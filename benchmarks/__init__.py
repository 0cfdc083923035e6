"""How fast the platform is, beside the straightforward way, the engine alone and this machine without an engine: `make bench`."""
