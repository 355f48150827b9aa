"""What petals exchange with the cloud and the vehicle, as pydantic models."""
