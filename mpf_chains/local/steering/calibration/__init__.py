"""The convex fit of steering tokens' output rows on cached hidden states."""
