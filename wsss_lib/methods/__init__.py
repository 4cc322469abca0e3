"""One file a method: network head, loss, localization."""
