"""What a petal's author uses: the base class, the decorators, the proxies, the test kit; and the petals we ship."""
