"""The labeling site: pages for people over the same domain layer as the RPCs."""
