"""What the vehicle's side costs and how quick it is: parameters over bad wires, frames, commands, logs."""
