"""The runtime of petals: finds them, starts and stops each on its own, keeps them running, here or in a process."""
