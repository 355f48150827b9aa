"""MQTT on the bus: what comes from a broker is in topic ``mqtt.rx``, what goes to it in the inbox of app ``mqtt``."""
