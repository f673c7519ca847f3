"""OpenAI's interface over programs: requests become launches, and what they send answers."""
