"""The wire: transports, frames, dialects, signing, and conversations over one link."""
