"""Flight logs in S3: what a log must look like, how it is named, and the bucket itself."""
