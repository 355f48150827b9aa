"""The vehicle's files by MAVLink FTP, its flight logs, PX4's shell, and .tlog recordings."""
