"""Parameters: as they travel, many at once over a link that loses messages, and all of them in the quickest way."""
