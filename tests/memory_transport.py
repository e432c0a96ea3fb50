"""A mail transport that keeps what it takes."""

from collections.abc import Iterator

from services.mail.transport import Answer, Verdict


class MemoryTransport:
    """Keeps what it takes, and answers as it is told to."""

    name = "memory"

    def __init__(self, answers: Iterator[Answer] | None = None) -> None:
        self.taken: list[tuple[str, str, bytes]] = []
        self._answers = answers

    def send(self, sender: str, recipient: str, content: bytes) -> Answer:
        """Take one message, unless another answer was ordered."""
        answer = next(self._answers, None) if self._answers else None
        answer = answer or Answer(Verdict.SENT, "250 kept")
        if answer.verdict is Verdict.SENT:
            self.taken.append((sender, recipient, content))
        return answer

    def close(self) -> None:
        """Do nothing: there is nothing to close."""
