"""Missions, fences and rally points: items, files of ground stations, and their exchange with a vehicle."""
