"""Tables in the cloud: two kinds of them behind one interface, and writes that wait until the cloud can be reached."""
