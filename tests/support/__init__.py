"""Helpers of the tests: servers, a proxy, child processes. Import as `from support.servers import ...`."""
