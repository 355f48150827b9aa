"""What is measured, one module each: who plays which part, and which figures come of it."""
