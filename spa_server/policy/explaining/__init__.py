"""One decision, explained: the facts (`explain`), in words (`words`), as fields (`fields`)."""
