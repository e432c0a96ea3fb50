"""Reports on undelivered mail, in the manner of the servers that write them.

Each function returns the bytes of one mail. `sent` is what the report is about.
"""

from base64 import encodebytes
from dataclasses import dataclass

NO_SUCH_USER = "The email account that you tried to reach does not exist"


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that a server took."""

    message_id: str
    recipient: str
    return_path: str = "bounces@school.example"
    mail_id: int = 0

    @property
    def head(self) -> str:
        return (
            f"From: School <noreply@school.example>\r\nTo: {self.recipient}\r\n"
            f"Subject: Sports day\r\nMessage-ID: {self.message_id}\r\n"
        )


def _mail(
    head: str, *parts: str, kind: str = 'multipart/report; report-type="delivery-status"'
) -> bytes:
    head = "\r\n".join(line.strip() for line in head.strip().splitlines())
    if len(parts) == 1:
        return f"{head}\r\n{parts[0].lstrip()}".encode("latin-1", errors="replace")
    body = "".join(f"--=_part\r\n{part}\r\n" for part in parts)
    head += f'\r\nMIME-Version: 1.0\r\nContent-Type: {kind}; boundary="=_part"'
    return f"{head}\r\n\r\n{body}--=_part--\r\n".encode("utf-8", errors="surrogateescape")


def _status(*fields: str, kind: str = "message/delivery-status") -> str:
    return f"Content-Type: {kind}\r\n\r\nReporting-MTA: dns; mx.example\r\n\r\n" + "\r\n".join(
        fields
    )


def _text(text: str, charset: str = "utf-8") -> str:
    encoded = encodebytes(text.encode(charset, errors="replace")).decode()
    return (
        f"Content-Type: text/plain; charset={charset}\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        f"{encoded}"
    )


def _returned(sent: Sent, kind: str = "message/rfc822") -> str:
    return f"Content-Type: {kind}\r\n\r\n{sent.head}\r\nHello"


def postfix(
    sent: Sent, *, status: str = "5.1.1", action: str = "failed", headers: bool = False
) -> bytes:
    code = "550" if status[0] == "5" else "450"
    return _mail(
        f"""Return-Path: <>
        From: MAILER-DAEMON@mx.example (Mail Delivery System)
        To: {sent.return_path}
        Subject: Undelivered Mail Returned to Sender""",
        _text(
            "I'm sorry to have to inform you that your message could not be delivered.\n\n"
            f"<{sent.recipient}>: {code} {status} said so"
        ),
        _status(
            f"Final-Recipient: rfc822; {sent.recipient}",
            f"Original-Recipient: rfc822;{sent.recipient}",
            f"Action: {action}",
            f"Status: {status}",
            "Remote-MTA: dns; mail.example",
            f"Diagnostic-Code: smtp; {code} {status} <{sent.recipient}>:\r\n"
            "    Recipient address rejected",
        ),
        _returned(sent, "text/rfc822-headers" if headers else "message/rfc822"),
    )


def exchange(sent: Sent, *, status: str = "5.1.10", charset: str = "iso-8859-1") -> bytes:
    return _mail(
        f"""From: =?iso-8859-1?Q?Postmaster_f=FCr_Sch=FCler?= <postmaster@school.example>
        To: {sent.return_path}
        Subject: Unzustellbar: Sports day
        In-Reply-To: {sent.message_id}
        X-MS-Exchange-Message-Is-Ndr:""",
        _text(f"Fehler bei der Zustellung an folgende Empfänger: {sent.recipient}", charset),
        _status(
            f"Final-recipient: RFC822;{sent.recipient}",
            "Action: failed",
            f"Status: {status}",
            f"Diagnostic-code: smtp;550 {status} RESOLVER.ADR.RecipientNotFound; not found",
        ),
        _returned(sent),
    )


def gmail(sent: Sent, *, status: str = "5.1.1", action: str = "failed") -> bytes:
    return _mail(
        f"""From: Mail Delivery Subsystem <mailer-daemon@googlemail.com>
        To: {sent.return_path}
        X-Failed-Recipients: {sent.recipient}
        References: {sent.message_id}
        Subject: Delivery Status Notification ({action})""",
        _text(f"Address not found\n\nYour message wasn't delivered to {sent.recipient}"),
        _status(
            f"Final-Recipient: rfc822; {sent.recipient}",
            f"Action: {action}",
            f"Status: {status}",
            f"Diagnostic-Code: smtp; 550-{status} {NO_SUCH_USER}. Please try\r\n"
            f" 550-{status} double-checking the address",
        ),
        _returned(sent),
    )


def qmail(sent: Sent, *, said: str = "Sorry, no mailbox here by that name. (#5.1.1)") -> bytes:
    return _mail(
        f"""From: MAILER-DAEMON@mx.example
        To: {sent.return_path}
        Subject: failure notice""",
        f"""

Hi. This is the qmail-send program at mx.example.
I'm afraid I wasn't able to deliver your message to the following addresses.
This is a permanent error; I've given up. Sorry it didn't work out.

<{sent.recipient}>:
{said}

--- Below this line is a copy of the message.

Return-Path: <{sent.return_path}>
{sent.head}
Call 500 or 5.7.1 for help.
""".lstrip(),
    ).replace(b"\r\nHi.", b"\r\n\r\nHi.", 1)


def exim(sent: Sent, *, said: str = "550 5.1.1 User unknown") -> bytes:
    return _mail(
        f"""From: Mail Delivery System <Mailer-Daemon@mx.example>
        To: {sent.return_path}
        X-Failed-Recipients: {sent.recipient}
        Auto-Submitted: auto-replied
        Subject: Mail delivery failed: returning message to sender""",
        f"""

This message was created automatically by mail delivery software.

A message that you sent could not be delivered to one or more of its
recipients. This is a permanent error. The following address(es) failed:

  {sent.recipient}
    SMTP error from remote mail server after RCPT TO:<{sent.recipient}>:
    {said}

------ This is a copy of the message, including all the headers. ------

{sent.head}
Hello
""".lstrip(),
    ).replace(b"\r\nThis message was", b"\r\n\r\nThis message was", 1)


def new_exim(sent: Sent) -> bytes:
    """Return what Exim writes since 4.83."""
    return _mail(
        f"""From: Mail Delivery System <Mailer-Daemon@mx.example>
        To: {sent.return_path}
        X-Failed-Recipients: {sent.recipient}
        Subject: Mail delivery failed: returning message to sender""",
        _text("This message was created automatically by mail delivery software."),
        _status(
            f"Action: failed\r\nFinal-Recipient: rfc822;{sent.recipient}",
            "Status: 5.0.0",
            "Diagnostic-Code: smtp; 550 5.1.1 No such user",
        ),
        _returned(sent),
    )


def complaint(sent: Sent, *, kind: str = "abuse") -> bytes:
    return _mail(
        f"""From: <feedback@mail.example>
        To: {sent.return_path}
        Subject: FW: Sports day""",
        _text("This is an email abuse report."),
        "Content-Type: message/feedback-report\r\n\r\n"
        f"Feedback-Type: {kind}\r\nUser-Agent: SomeGenerator/1.0\r\nVersion: 1\r\n"
        f"Original-Rcpt-To: {sent.recipient}",
        _returned(sent),
        kind="multipart/report; report-type=feedback-report",
    )


def vacation(sent: Sent) -> bytes:
    return _mail(
        f"""From: Anna <{sent.recipient}>
        To: {sent.return_path}
        In-Reply-To: {sent.message_id}
        Auto-Submitted: auto-replied
        Subject: I am away""",
        "\nI am away until Monday, call 555 5.1.1.\n",
    )


def encoded_status(sent: Sent) -> bytes:
    """Return a report whose fields are in base64, which RFC 3464 forbids."""
    fields = (
        f"Reporting-MTA: dns; mx.example\n\nFinal-Recipient: rfc822; {sent.recipient}\n"
        "Action: failed\nStatus: 5.1.1\n"
    )
    return _mail(
        f"To: {sent.return_path}\nSubject: failed",
        _text("It failed."),
        "Content-Type: message/delivery-status\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + encodebytes(fields.encode()).decode(),
        _returned(sent),
    )


def international(sent: Sent) -> bytes:
    """Return a report in the manner of RFC 6533, for addresses that are not ASCII."""
    return _mail(
        f"To: {sent.return_path}\nSubject: =?utf-8?B?VW56dXN0ZWxsYmFy?=",
        _text("配信できません", "iso-2022-jp"),
        _status(
            f"Final-Recipient: utf-8; {sent.recipient}",
            "Action: failed",
            "Status: 5.1.1",
            kind="message/global-delivery-status",
        ),
        _returned(sent, "message/global-headers"),
    )
