"""Tell a person, by mail or to a webhook, what turned bad and which jobs failed for good."""
