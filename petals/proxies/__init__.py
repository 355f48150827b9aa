"""The proxies: how a petal reaches Redis, the vehicle, databases, buckets and the cloud. One page of docs each."""
