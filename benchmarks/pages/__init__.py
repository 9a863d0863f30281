"""One document in three forms: page, Markdown, paper."""
