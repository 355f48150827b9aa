"""The way to the broker through a client program on this machine, which speaks HTTP with us and MQTT with the broker.

publish, subscribe: transport -> lanes -> api -> http -> client program
what arrives:       client program -> callback_routes -> callbacks -> the link's Receiver
"""
